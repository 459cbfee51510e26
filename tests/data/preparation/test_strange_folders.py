"""Folders as people have them: links, hidden files, names of other systems, missing and surplus files."""

import json
from pathlib import Path

import pytest
from PIL import Image
from shapes_patient import save_turned

from flatten_det.data.preparation.formats import convert, find_format
from flatten_det.errors import UserError

BOX = "0 0.5 0.5 0.2 0.4\n"


def save_image(path: Path, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (200, 100)).save(path)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def yolo(tmp_path):
    """``yolo()``: three images with a box each, and a list of the one class."""

    def make(images="images", labels="labels", suffix=".jpg", mode="RGB", classes="cat\n") -> Path:
        root = tmp_path / "my data ü"
        for index in range(3):
            save_image(root / images / f"bild ä {index}{suffix}", mode)
            write(root / labels / f"bild ä {index}.txt", BOX)
        write(root / "classes.txt", classes)
        return root

    return make


def count(root: Path, name: str = "yolo") -> dict[str, tuple[int, int]]:
    assert find_format(root) == name
    return {
        split: (len(file.content["images"]), len(file.content["annotations"]))
        for split, file in convert(name, root).items()
    }


@pytest.mark.parametrize(
    "options",
    [
        {"suffix": ".JPG"},
        {"suffix": ".TIFF"},
        {"images": "Images", "labels": "Labels"},
        {"images": "train", "labels": "train"},
        {"suffix": ".png", "mode": "I;16"},
        {"suffix": ".png", "mode": "RGBA"},
        {"mode": "CMYK"},
    ],
)
def test_images_of_many_kinds(yolo, options):
    assert count(yolo(**options)) == {"train": (3, 3)}


def test_nested_splits(yolo, capsys):
    root = yolo("train/images", "train/labels")
    for split in ("valid", "test"):
        save_image(root / split / "images" / "a.jpg")
        write(root / split / "labels" / "a.txt", BOX)
    assert count(root) == {"train": (3, 3), "val": (1, 1)}
    assert "1 images for test are left out" in capsys.readouterr().out


def test_names_of_windows(yolo):
    root = yolo("train/images", "train/labels")
    (root / "classes.txt").unlink()
    text = "path: C:\\Users\\me\\data\ntrain: train\\images\nval: ..\\train\\images\nnames: [cat]\n"
    write(root / "DATA.YAML", text)
    assert count(root) == {"train": (3, 3), "val": (3, 3)}


def test_links(yolo, tmp_path):
    root = yolo()
    (root / "images").rename(tmp_path / "disk")
    (root / "images").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "up").symlink_to(root)
    assert count(root) == {"train": (3, 3)}
    (tmp_path / "disk" / "bild ä 0.jpg").rename(tmp_path / "other.jpg")
    (tmp_path / "disk" / "bild ä 0.jpg").symlink_to(tmp_path / "other.jpg")
    assert count(root) == {"train": (3, 3)}


def test_files_that_are_no_data(yolo):
    root = yolo()
    write(root / "images" / "._bild ä 0.jpg", "a Mac's")
    write(root / "__MACOSX" / "images" / "a.jpg", "a Mac's")
    write(root / ".ipynb_checkpoints" / "a.json", "{")
    write(root / ".git" / "a.xml", "<annotation>")
    assert count(root) == {"train": (3, 3)}


def test_photographs_that_are_turned(yolo):
    root = yolo()
    save_turned(Image.new("RGB", (200, 100)), root / "images" / "bild ä 0.jpg", 6)
    first = convert("yolo", root)["train"].content["annotations"][0]
    assert first["bbox"] == pytest.approx([40, 60, 20, 80])


def test_what_is_left_out_is_told(yolo, capsys):
    root = yolo()
    save_image(root / "images" / "unlabelled.jpg")
    write(root / "labels" / "gone.txt", BOX)
    write(root / "labels" / "bild ä 0.txt", "\n")
    assert count(root) == {"train": (4, 2)}
    told = capsys.readouterr().out
    assert (
        "1 images without a label file; 1 label files without an image left out; 2 images" in told
    )
    write(root / "data.yaml", "train: list.txt\nval: list.txt\nnames: [cat]\n")
    write(root / "list.txt", "images/bild ä 1.jpg\n" * 2)
    assert count(root) == {"train": (1, 1), "val": (1, 1)}
    assert (
        "3 images beside these have no annotations, or are in no split" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: save_image(d / "images" / "bild ä 1.png"), "bild ä 1.png share their labels"),
        (lambda d: write(d / "classes.txt", "cat\ncat\n"), "classes share a name: cat"),
        (lambda d: write(d / "data.yaml", "train: images\nnames: 3\n"), "names is no list of classes"),
        (lambda d: (d / "images").rename(d / "test"), "no images with annotations in YOLO's form"),
        (lambda d: write(d / "images" / "bild ä 2.jpg", "no"), "bild ä 2.jpg cannot be decoded"),
        (lambda d: write(d / "labels" / "bild ä 2.txt", "0 .5 .5 -.1 .1"), "ends before it begins"),
        (lambda d: write(d / "labels" / "bild ä 2.txt", "-1 .5 .5 .1 .1"), "class -1 is none"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(yolo, break_it, message):
    root = yolo()
    if "no images with" in message:
        for path in (root / "labels").iterdir():
            path.rename(root / "images" / path.name)
    break_it(root)
    with pytest.raises(UserError, match=message) as caught:
        convert("yolo", root)
    assert "\n" not in str(caught.value)


VOC = (
    "<annotation><filename>{0}.jpg</filename><size><width>200</width><height>100</height></size>"
    "<object><name>cat</name><bndbox><xmin>{1}</xmin><ymin>0</ymin><xmax>200</xmax><ymax>100</ymax>"
    "</bndbox></object></annotation>"
)


def test_voc_that_counts_from_0(tmp_path):
    """A box that touches the left edge is cut off by a pixel, in small images too."""
    for index in range(2):
        save_image(tmp_path / "JPEGImages" / f"ü {index}.jpg")
        write(tmp_path / "Annotations" / f"ü {index}.XML", VOC.format(f"ü {index}", 0))
    assert count(tmp_path, "voc") == {"train": (2, 2)}
    boxes = [a["bbox"] for a in convert("voc", tmp_path)["train"].content["annotations"]]
    assert boxes == [[0, 0, 200, 100]] * 2
    write(tmp_path / "Annotations" / "ü 0.XML", VOC.format("ü 0", 300))
    with pytest.raises(UserError, match="the box of cat ends before it begins"):
        convert("voc", tmp_path)


CORNERS = [[10, 10], [50, 10], [50, 40], [10, 40]]


@pytest.mark.parametrize("points", [[CORNERS[0], CORNERS[2]], CORNERS])
@pytest.mark.parametrize("with_polygon", [False, True])
def test_rectangles_of_labelme(tmp_path, points, with_polygon, capsys):
    """Where all shapes are rectangles, labelme's two corners or X-AnyLabeling's four, they are boxes."""
    shapes = [{"label": "cat", "points": points, "shape_type": "rectangle"}]
    if with_polygon:
        shapes.append({"label": "cat", "points": CORNERS[:3], "shape_type": "polygon"})
    save_image(tmp_path / "img" / "ü.jpg")
    content = {
        "imagePath": "..\\img\\ü.jpg",
        "imageWidth": 200,
        "imageHeight": 100,
        "imageData": None,
    }
    text = json.dumps({**content, "shapes": shapes}, ensure_ascii=False)
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / "ü.JSON").write_text(text, encoding="utf-8-sig")
    assert count(tmp_path, "labelme") == {"train": (1, len(shapes))}
    file = convert("labelme", tmp_path)["train"]
    assert file.without_masks() == (0 if with_polygon else 1)
    assert file.content["annotations"][0]["bbox"] == [10, 10, 40, 30]
    told = "1 rectangles that are masks too, as there are other shapes"
    assert (told in capsys.readouterr().out) == with_polygon


def test_labels_without_any_object(tmp_path):
    save_image(tmp_path / "a.jpg")
    content = {"imagePath": "a.jpg", "imageWidth": 200, "imageHeight": 100, "shapes": []}
    write(tmp_path / "a.json", json.dumps(content))
    with pytest.raises(UserError, match="its labels hold no object"):
        convert("labelme", tmp_path)
