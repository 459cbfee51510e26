"""Images with label maps of one's own: what is found, made into indices, and refused."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from bombs import png_bomb
from PIL import Image

from flatten_det.data.preparation.image_size import Sizes
from flatten_det.data.preparation.masks import find_pairs, write_label_maps
from flatten_det.errors import UserError

SIZE = (12, 8)  # width, height
TRUTH = np.repeat(np.arange(4, dtype=np.uint8), 3)[None].repeat(8, axis=0)  # stripes of 0 to 3
COLOURS = np.array([[0, 0, 0], [128, 64, 128], [0, 0, 255], [250, 1, 2]], np.uint8)
CVAT = "# label:color_rgb:parts:actions\nvoid:0,0,0::\nroad:128,64,128::\nsky:0,0,255::\ncar:250,1,2::\n"
CSV = "name,r,g,b\nvoid, 0, 0, 0\nroad,128,64,128\nsky,0,0,255\ncar,250,1,2\n"
CAMVID = "0 0 0\tvoid\n128 64 128\troad\n0 0 255\tsky\n250 1 2\tcar\n"


def save(path: Path, image: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def palette_png(indices: np.ndarray) -> Image.Image:
    image = Image.fromarray(indices).convert("P")
    image.putpalette(COLOURS.flatten().tolist())
    image.putdata(indices.flatten().tolist())
    return image


@pytest.fixture
def dataset(tmp_path):
    """``dataset(label_map)``: a folder with an image of each split and this label map of both."""

    def make(label_map: Image.Image, image: str = "images/{}/a.jpg", mask: str = "masks/{}/a.png"):
        folder = tmp_path / "data"
        for split in ("train", "val"):
            save(folder / image.format(split), Image.new("RGB", SIZE))
            save(folder / mask.format(split), label_map)
        return folder

    return make


class Made(NamedTuple):
    """What was written, and what is said of it."""

    classes: tuple[str, ...]
    palette: list | None
    indices: dict[str, np.ndarray]  # of the only image of each split
    regions: Sizes


def read_masks(folder: Path, classes: list[str] | None = None) -> Made:
    place = folder.parent / "made"
    pairs = find_pairs(folder)
    places = {split: place / split for split in pairs}
    data = write_label_maps(folder, pairs, places, classes)
    made = {}
    for split, ((pair, *_)) in pairs.items():
        name = f"{pair.image.relative_to(folder).as_posix()}.png"
        with Image.open(places[split] / name) as image:
            assert image.mode == "L"
            made[split] = np.asarray(image)
    return Made(data.classes, data.palette, made, data.regions)


def indices(data: Made, split: str = "train") -> np.ndarray:
    return data.indices[split]


@pytest.mark.parametrize("make", [Image.fromarray, palette_png], ids=["grey", "palette"])
def test_indices(dataset, make):
    with_void = TRUTH.copy()
    with_void[0] = 255
    folder = dataset(make(with_void) if make is Image.fromarray else make(TRUTH))
    data = read_masks(folder, ["void", "road", "sky", "car"])
    assert data.classes == ("void", "road", "sky", "car")
    assert np.array_equal(indices(data, "val"), with_void if make is Image.fromarray else TRUTH)


def test_classes_of_a_file(dataset):
    folder = dataset(Image.fromarray(TRUTH))
    (folder / "classes.txt").write_text("void\nroad\n\nsky\ncar\n")
    assert read_masks(folder).classes == ("void", "road", "sky", "car")


@pytest.mark.parametrize(
    ("name", "table"),
    [("labelmap.txt", CVAT), ("class_dict.csv", CSV), ("label_colors.txt", CAMVID)],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours(dataset, name, table, mode):
    image = Image.fromarray(COLOURS[TRUTH])
    folder = dataset(palette_png(TRUTH[:, ::-1]) if mode == "P" else image.convert(mode))
    (folder / name).write_text(table)
    data = read_masks(folder)
    assert data.classes == ("void", "road", "sky", "car")
    assert data.palette == [tuple(map(int, colour)) for colour in COLOURS]
    assert np.array_equal(indices(data), TRUTH[:, ::-1] if mode == "P" else TRUTH)


def test_classes_order_those_of_the_colour_table(dataset):
    folder = dataset(Image.fromarray(COLOURS[TRUTH]))
    (folder / "labelmap.txt").write_text(CVAT)
    data = read_masks(folder, ["car", "sky", "road", "void"])
    assert data.classes == ("car", "sky", "road", "void")
    assert data.palette[0] == (250, 1, 2)
    assert np.array_equal(indices(data), 3 - TRUTH)
    with pytest.raises(UserError, match=r"--classes are others than .*: void, road, sky"):
        read_masks(folder, ["car", "sky"])


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_0_and_255_are_two_classes(dataset, mode):
    folder = dataset(Image.fromarray((TRUTH > 1).astype(np.uint8) * 255).convert(mode))
    data = read_masks(folder)
    assert data.classes == ("background", "foreground")
    assert np.array_equal(indices(data), TRUTH > 1)
    assert read_masks(folder, ["no", "yes"]).classes == ("no", "yes")


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{}/images/a.png", "{}/labels/a.png"),
        ("{}/a.jpg", "{}/a_mask.png"),
        ("JPEGImages/{}/a.jpg", "SegmentationClass/{}/a.png"),
        ("img_dir/{}/a.jpg", "ann_gt/{}/a_label.png"),
        ("{}/images/a.png", "{}/semantic/a.png"),
    ],
)
def test_places(dataset, image, mask):
    folder = dataset(Image.fromarray(TRUTH), image, mask)
    save(folder / "panoptic" / "a.png", Image.new("RGB", SIZE))
    pairs = find_pairs(folder)
    assert {split: len(own) for split, own in pairs.items()} == {"train": 1, "val": 1}
    assert pairs["val"][0].image.as_posix().endswith(image.format("val"))


def test_images_without_label_maps_are_told(dataset, capsys):
    folder = dataset(Image.fromarray(TRUTH))
    save(folder / "images" / "train" / "b.jpg", Image.new("RGB", SIZE))
    find_pairs(folder)
    assert "1 images without a label map are left out\n" in capsys.readouterr().out


def save_values(folder: Path, largest: int) -> None:
    """A label map of 16 bits."""
    values = np.zeros(SIZE[::-1], np.uint16)
    values[0] = largest
    Image.fromarray(values).save(folder / "masks/val/a.png")


def save_jpeg(folder: Path) -> None:
    Image.fromarray(TRUTH).save(folder / "masks/val/a.png", "JPEG")


def test_16_bits_and_alpha(dataset):
    folder = dataset(Image.merge("LA", [Image.fromarray(TRUTH), Image.new("L", SIZE, 9)]))
    save_values(folder, 3)
    data = read_masks(folder, ["void", "road", "sky", "car"])
    assert np.array_equal(indices(data), TRUTH)
    assert set(indices(data, "val").flatten().tolist()) == {0, 3}


def test_a_map_of_0_and_255_among_others_has_indices(dataset):
    """Where nothing but 0 and what does not count is in one of them, it is not two classes."""
    folder = dataset(Image.fromarray(TRUTH))
    only_void = np.where(TRUTH > 1, 255, 0).astype(np.uint8)
    save(folder / "masks/train/a.png", Image.fromarray(only_void))
    (folder / "classes.txt").write_text("a\nb\nc\nd\n")
    data = read_masks(folder)
    assert np.array_equal(indices(data), only_void)
    assert np.array_equal(indices(data, "val"), TRUTH)


def test_regions_are_measured(dataset):
    """Stripes of 3 x 8 pixels, in images of 12 x 8."""
    regions = read_masks(dataset(Image.fromarray(TRUTH)), ["a", "b", "c", "d"]).regions
    assert regions.objects.tolist() == [pytest.approx(24**0.5)] * 4
    assert regions.images.tolist() == [[12, 8]] * 4


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: (d / "images/val/a.jpg").unlink(), "masks/val/a.png has no image of its name"),
        (lambda d: save(d / "images/val/a.png", Image.new("RGB", SIZE)), "belongs to several images"),
        (lambda d: save(d / "labels/val/a.png", Image.new("L", SIZE)), "has two label maps"),
        (lambda d: (d / "masks/val/a.png").write_bytes(b"no"), "^label map [^ ]*val/a.png cannot be"),
        (lambda d: png_bomb(d / "masks/val/a.png"), "^label map [^ ]*val/a.png was not decoded"),
        (lambda d: save(d / "masks/val/a.png", Image.new("RGB", SIZE, "red")), "has colours; which class"),
        (lambda d: None, "the classes of the values 0, 1, 2, 3 .* are not known"),
        (lambda d: (d / "classes.txt").write_text("a\nb\n"), "the values 2, 3, and there are 2 classes"),
        (lambda d: (d / "labelmap.txt").write_bytes(b"r\xfcck:1,2,3"), "labelmap.txt is not UTF-8"),
        (lambda d: (d / "classes.txt").write_bytes(b"\xef\xbb\xbfa\n"), "classes.txt begins with"),
        (lambda d: save_values(d, 300), "has values from 0 to 300: indices"),
        (lambda d: save_jpeg(d), "a.png is a JPEG, which mixes values"),
        (lambda d: (d / "labelmap.txt").write_text("nothing\n"), "no line with a class and its colour"),
        (lambda d: (d / "labelmap.txt").write_text("a:1,2,3\nb:1,2,3\n"), "is there twice"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(dataset, break_it, message):
    folder = dataset(Image.fromarray(TRUTH))
    break_it(folder)
    with pytest.raises(UserError, match=message) as caught:
        read_masks(folder)
    assert "\n" not in str(caught.value)


def test_unknown_colour_is_named(dataset):
    folder = dataset(Image.fromarray(COLOURS[TRUTH]))
    (folder / "labelmap.txt").write_text(CVAT.replace("sky:0,0,255", "sky:0,0,254"))
    with pytest.raises(UserError, match=re.escape("the colour (0, 0, 255) at 24 pixels")):
        indices(read_masks(folder))


def test_label_map_of_another_size_is_refused(dataset):
    folder = dataset(Image.fromarray(TRUTH[:, :11]))
    with pytest.raises(UserError, match=r"has 11 x 8 pixels, its image 12 x 8"):
        indices(read_masks(folder, ["a", "b", "c", "d"]))


def test_no_label_maps_at_all(tmp_path):
    save(tmp_path / "a.jpg", Image.new("RGB", SIZE))
    with pytest.raises(UserError, match="no images with label maps"):
        read_masks(tmp_path)
