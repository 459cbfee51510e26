"""Own data in YOLO's, Pascal VOC's and labelme's form: what is taken of it, changed, and refused.

Folders are as people have them: links, hidden files, names of other systems, missing and surplus files.
"""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from shapes_patient import save_turned

from flatten_det.data.preparation.formats import convert, find_format
from flatten_det.errors import UserError

SIZE = (60, 40)  # width, height
BOX = "0 0.5 0.5 0.2 0.4\n"


def save_image(path: Path, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, SIZE).save(path)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def yolo(tmp_path):
    """As ultralytics' own sets lie: a box, a polygon, a repeated line, and an image of background."""
    paths = "path: ../datasets/mine\ntrain: images/train\nval: images/val\n"
    write(tmp_path / "data.yaml", f"{paths}names: [cat, dog]\n")
    for split in ("train", "val"):
        save_image(tmp_path / "images" / split / "a.jpg")
        save_image(tmp_path / "images" / split / "empty.jpg")
        box, polygon = "1 0.5 0.5 0.2 0.5", "0 0.1 0.1 0.5 0.1 0.5 0.6"
        write(tmp_path / "labels" / split / "a.txt", f"{box}\n{polygon}\n{box}\n")
    return tmp_path


VOC = """<annotation>
  <folder>VOC2012</folder><filename>{name}.jpg</filename>
  <size><width>60</width><height>40</height><depth>3</depth></size>
  <object><name>dog</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult>
    <bndbox><xmin>1</xmin><ymin>11</ymin><xmax>20</xmax><ymax>40</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
  </object>
  <object><name>cat</name><truncated>0</truncated><difficult>1</difficult>
    <bndbox><xmin>31</xmin><ymin>1</ymin><xmax>60</xmax><ymax>20</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def voc(tmp_path):
    """As the challenge's sets lie."""
    for split in ("train", "val"):
        save_image(tmp_path / "JPEGImages" / f"{split}_1.jpg")
        write(tmp_path / "Annotations" / f"{split}_1.xml", VOC.format(name=f"{split}_1"))
        write(tmp_path / "ImageSets" / "Main" / f"{split}.txt", f"{split}_1\n")
    return tmp_path


@pytest.fixture
def plain_yolo(tmp_path):
    """``plain_yolo()``: three images with a box each, and a list of the one class."""

    def make(images="images", labels="labels", suffix=".jpg", mode="RGB") -> Path:
        root = tmp_path / "my data ü"
        for index in range(3):
            save_image(root / images / f"bild ä {index}{suffix}", mode)
            write(root / labels / f"bild ä {index}.txt", BOX)
        write(root / "classes.txt", "cat\n")
        return root

    return make


def shape(label: str, points: list, kind: str = "polygon", **more) -> dict:
    fields = {"label": label, "points": points, "group_id": None, "shape_type": kind}
    return fields | {"flags": {}} | more


def labelled(path: str, shapes: list[dict]) -> str:
    """What labelme writes."""
    content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": path}
    content |= {"imageData": None, "imageWidth": 60, "imageHeight": 40}
    return json.dumps(content, ensure_ascii=False)


PIXELS = np.zeros((5, 6), bool)
PIXELS[1:4, 2:5] = True


def mask_png(mask: np.ndarray, kind: str = "PNG") -> str:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def labelme(tmp_path):
    """As labelme writes: beside the images, one file for each."""
    shapes = [
        shape("dog", [[5, 5], [15, 5], [15, 25]]),
        shape("cat", [[40.0, 30.0], [20.0, 10.0]], "rectangle"),
        shape("cat", [[30, 20], [30, 30]], "circle"),
        shape("dog", [[1, 1], [4, 1], [4, 4]], group_id=7),
        shape("dog", [[11, 1], [14, 1], [14, 4]], group_id=7),
        shape("dog", [[3, 2], [8, 6]], "mask", mask=mask_png(PIXELS)),
        shape("dog", [[3, 2]], "point"),
    ]
    for split in ("train", "val"):
        save_image(tmp_path / split / "a.jpg")
        write(tmp_path / split / "a.json", labelled("a.jpg", shapes))
    return tmp_path


def objects(file, label: str) -> list[dict]:
    (id_,) = (c["id"] for c in file.content["categories"] if c["name"] == label)
    return [a for a in file.content["annotations"] if a["category_id"] == id_]


def count(root: Path, name: str = "yolo") -> dict[str, tuple[int, int]]:
    """The images and objects of each split."""
    assert find_format(root) == name
    return {
        split: (len(file.content["images"]), len(file.content["annotations"]))
        for split, file in convert(name, root).items()
    }


def test_yolo(yolo, capsys):
    assert find_format(yolo) == "yolo"
    files = convert("yolo", yolo)
    assert list(files) == ["train", "val"]
    assert files["val"].image_names == ["images/val/a.jpg", "images/val/empty.jpg"]
    assert files["train"].classes == ("cat", "dog")
    (dog,), (cat,) = (objects(files["train"], label) for label in ("dog", "cat"))
    assert dog["bbox"] == pytest.approx([24, 10, 12, 20])
    assert "segmentation" not in dog
    assert cat["bbox"] == pytest.approx([6, 4, 24, 20])
    assert cat["segmentation"] == [pytest.approx([6, 4, 30, 4, 30, 24])]
    assert cat["area"] == pytest.approx(240, rel=0.1)
    assert (
        "train, from YOLO: 2 images; 2 objects; 1 images without a label file; 1 repeated lines left out; "
        "1 images without objects\n"
    ) in capsys.readouterr().out


@pytest.mark.parametrize(
    "names",
    [
        "names: {0: cat, 1: dog}\ntrain: ../train/images\nval: ../valid/images\n",
        "classes.txt",
        "obj.names",
    ],
)
def test_yolo_of_other_exporters(tmp_path, names):
    """Roboflow's paths lead out of the folder; CVAT and Label Studio list the classes in a file of text."""
    is_yaml = names.startswith("names")
    write(tmp_path / ("data.yaml" if is_yaml else names), names if is_yaml else "cat\ndog\n")
    write(tmp_path / "notes.json", '{"categories": [{"id": 0, "name": "cat"}], "info": {}}')
    assert find_format(tmp_path) == "yolo"
    for folder in ("train", "valid"):
        save_image(tmp_path / folder / "images" / "a.jpg")
        write(tmp_path / folder / "labels" / "a.txt", "1 0.5 0.5 0.2 0.5\n")
    files = convert("yolo", tmp_path)
    assert [file.image_names for file in files.values()] == [
        ["train/images/a.jpg"],
        ["valid/images/a.jpg"],
    ]
    assert [len(objects(file, "dog")) for file in files.values()] == [1, 1]


def test_yolo_lists_of_images(yolo):
    """As CVAT exports them, with paths of its own machine."""
    write(yolo / "data.yaml", "train: train.txt\nnames: [cat, dog]\n")
    write(yolo / "train.txt", "data/images/train/a.jpg\ndata/images/val/a.jpg\n")
    (file,) = convert("yolo", yolo).values()
    assert file.image_names == ["images/train/a.jpg", "images/val/a.jpg"]


def test_voc(voc, capsys):
    assert find_format(voc) == "voc"
    files = convert("voc", voc)
    assert files["train"].image_names == ["JPEGImages/train_1.jpg"]
    assert files["train"].classes == ("cat", "dog")
    (dog,), (cat,) = (objects(files["val"], label) for label in ("dog", "cat"))
    assert dog["bbox"] == [0, 10, 20, 30]
    assert (dog["iscrowd"], cat["iscrowd"]) == (0, 1)
    assert cat["bbox"] == [30, 0, 30, 20]
    assert "2 objects; 1 difficult objects that count neither" in capsys.readouterr().out


@pytest.mark.parametrize(
    "source",
    [
        "<source><database>MyDatabase</database></source><owner><name>Label Studio</name></owner>",
        "<source><annotation>Unknown</annotation><image>Unknown</image></source>",
    ],
    ids=["Label Studio", "CVAT"],
)
def test_voc_of_programs_that_count_from_0(voc, source):
    edit(voc / "Annotations" / "train_1.xml", "<folder>", f"{source}<folder>")
    (dog,) = objects(convert("voc", voc)["train"], "dog")
    assert dog["bbox"] == [1, 11, 19, 29]


def test_voc_of_programs_that_are_not_known_to_count_from_0(voc, capsys):
    """A box that touches the left edge is cut off by a pixel, in small images too."""
    file = (voc / "Annotations" / "train_1.xml").rename(voc / "Annotations" / "train_1.XML")
    edit(file, "<xmin>1</xmin><ymin>11", "<xmin>0</xmin><ymin>11")
    (dog,) = objects(convert("voc", voc)["train"], "dog")
    assert dog["bbox"] == [0, 10, 20, 30]
    assert "1 objects cut off at the edge of their image" in capsys.readouterr().out
    edit(file, "<xmin>0", "<xmin>300")
    with pytest.raises(UserError, match="the box of dog ends before it begins"):
        convert("voc", voc)


def test_voc_beside_the_images(tmp_path):
    """As labelImg writes; without lists of splits all are for training."""
    save_image(tmp_path / "train_1.jpg")
    write(tmp_path / "train_1.xml", VOC.format(name="train_1"))
    assert list(convert("voc", tmp_path)) == ["train"]


def test_labelme(labelme, capsys):
    assert find_format(labelme) == "labelme"
    files = convert("labelme", labelme)
    assert files["val"].image_names == ["val/a.jpg"]
    dogs, cats = (objects(files["train"], label) for label in ("dog", "cat"))
    assert [dog["bbox"] for dog in dogs] == [[5, 3, 3, 3], [5, 5, 10, 20], [1, 1, 13, 3]]
    assert dogs[1]["segmentation"] == [[5, 5, 15, 5, 15, 25]]
    assert len(dogs[2]["segmentation"]) == 2
    pixels = coco_mask.decode(dogs[0]["segmentation"])
    assert pixels.sum() == 9
    assert pixels[3:6, 5:8].all()
    assert [cat["bbox"] for cat in cats] == [[20, 10, 20, 20], pytest.approx([20, 10, 20, 20])]
    assert cats[1]["area"] == pytest.approx(np.pi * 100, rel=0.05)
    assert "1 shapes of kind point left out" in capsys.readouterr().out


def test_classes_have_the_order_that_is_asked_for(voc):
    assert convert("voc", voc, ["dog", "cat", "cow"])["train"].classes == ("dog", "cat", "cow")


def test_rounding_is_cut_off(yolo):
    write(yolo / "labels" / "train" / "a.txt", "0 0.9 0.5 0.204 0.5\n")
    (cat,) = objects(convert("yolo", yolo)["train"], "cat")
    assert cat["bbox"][0] + cat["bbox"][2] == 60


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: (d / "data.yaml").unlink(), "names of its classes must be in one data.yaml"),
        (lambda d: write(d / "classes.txt", "a\n") and write(d / "data.yaml", "names: [a"), "cannot be read"),
        (lambda d: edit(d / "data.yaml", "images/val", "images/vel"), "images/vel is nowhere in"),
        (lambda d: edit(d / "data.yaml", "train:", "tran:"), "does not say where the images for training"),
        (lambda d: write(d / "labels/train/a.txt", "2 .5 .5 .1 .1"), "line 1: class 2 is none of the 2"),
        (lambda d: write(d / "labels/train/a.txt", "\n0 .9 .5 .4 .1"), "line 2: an object .* leaves"),
        (lambda d: write(d / "labels/train/a.txt", "0 .5 .5 .1"), "line 1: after the class, 3 numbers"),
        (lambda d: write(d / "labels/train/a.txt", "0 .5 .5 x 1"), "line 1: could not convert"),
        (lambda d: write(d / "labels/train/a.txt", "0 nan .5 .1 .1"), "line 1: an object"),
        (lambda d: (d / "labels/val/a.txt").unlink(), "no image for val has labels"),
        (lambda d: write(d / "labels/train/a.txt", ""), "no annotations: there is nothing to learn"),
    ],
)  # fmt: skip
def test_broken_yolo_is_refused(yolo, break_it, message):
    break_it(yolo)
    with pytest.raises(UserError, match=message) as caught:
        convert("yolo", yolo)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<width>60", "<width>40", "60 x 40 pixels, .* labels are for 40 x 40"),
        ("<xmax>60", "<xmax>80", "leaves its image of 60 x 40"),
        ("<xmax>60", "<xmax>many", "could not convert"),
        ("<name>cat</name>", "", "no name, or no bndbox"),
        ("</annotation>", "", "is no XML"),
        ("<annotation>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>', "defines entities"),
    ],
)
def test_broken_voc_is_refused(voc, old, new, message):
    edit(voc / "Annotations" / "train_1.xml", old, new)
    with pytest.raises(UserError, match=message):
        convert("voc", voc)


def test_voc_without_its_files_is_refused(voc):
    (voc / "JPEGImages" / "val_1.jpg").unlink()
    with pytest.raises(UserError, match=r"val_1.xml: its image val_1.jpg is not there"):
        convert("voc", voc)
    (voc / "Annotations" / "val_1.xml").unlink()
    with pytest.raises(UserError, match=r"val.txt: no annotations \(\*.xml\) of val_1"):
        convert("voc", voc)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"imagePath": "a.jpg"', '"imagePath": "b.jpg"', "its image b.jpg is not there"),
        ("[5, 5], [15, 5]", "[5, 5], [150, 5]", "leaves its image"),
        ("[5, 5], [15, 5]", '[5, "x"], [15, 5]', "shape 1 has no label, or no points"),
        ('"mask": "', '"mask": "AAAA', "shape 6: its mask cannot be read"),
        (mask_png(PIXELS), mask_png(PIXELS, "GIF"), "shape 6: its mask cannot be read"),
        (mask_png(PIXELS), mask_png(np.zeros((5, 6, 3), np.uint8)), "shape 6: .* it has colours"),
        ("[[3, 2], [8, 6]]", "[[57, 2], [62, 6]]", "shape 6: its mask leaves its image"),
    ],
)
def test_broken_labelme_is_refused(labelme, old, new, message):
    edit(labelme / "train" / "a.json", old, new)
    with pytest.raises(UserError, match=message):
        convert("labelme", labelme)


def test_labels_beyond_the_classes_are_refused(voc):
    with pytest.raises(UserError, match="none of the classes: cat"):
        convert("voc", voc, ["dog"])


def test_several_formats_are_not_guessed(yolo):
    write(yolo / "a.xml", VOC.format(name="a"))
    with pytest.raises(UserError, match="in voc and yolo: say which by --format"):
        find_format(yolo)


def test_broken_files_of_other_purposes_do_no_harm(yolo, tmp_path_factory):
    for name in ("notes.json", "notes.xml"):
        write(yolo / name, "{broken")
    assert find_format(yolo) == "yolo"
    alone = tmp_path_factory.mktemp("alone")
    write(alone / "a.xml", "<annotation>")
    with pytest.raises(UserError, match=r"a.xml is no XML"):
        find_format(alone)


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
def test_images_of_many_kinds(plain_yolo, options):
    assert count(plain_yolo(**options)) == {"train": (3, 3)}


def test_nested_splits(plain_yolo, capsys):
    root = plain_yolo("train/images", "train/labels")
    for split in ("valid", "test"):
        save_image(root / split / "images" / "a.jpg")
        write(root / split / "labels" / "a.txt", BOX)
    assert count(root) == {"train": (3, 3), "val": (1, 1)}
    assert "1 images for test are left out" in capsys.readouterr().out


def test_names_of_windows(plain_yolo):
    root = plain_yolo("train/images", "train/labels")
    (root / "classes.txt").unlink()
    text = "path: C:\\Users\\me\\data\ntrain: train\\images\nval: ..\\train\\images\nnames: [cat]\n"
    write(root / "DATA.YAML", text)
    assert count(root) == {"train": (3, 3), "val": (3, 3)}


def test_links(plain_yolo, tmp_path):
    root = plain_yolo()
    (root / "images").rename(tmp_path / "disk")
    (root / "images").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "up").symlink_to(root)
    assert count(root) == {"train": (3, 3)}
    (tmp_path / "disk" / "bild ä 0.jpg").rename(tmp_path / "other.jpg")
    (tmp_path / "disk" / "bild ä 0.jpg").symlink_to(tmp_path / "other.jpg")
    assert count(root) == {"train": (3, 3)}


def test_files_that_are_no_data(plain_yolo):
    root = plain_yolo()
    write(root / "images" / "._bild ä 0.jpg", "a Mac's")
    write(root / "__MACOSX" / "images" / "a.jpg", "a Mac's")
    write(root / ".ipynb_checkpoints" / "a.json", "{")
    write(root / ".git" / "a.xml", "<annotation>")
    assert count(root) == {"train": (3, 3)}


def test_photographs_that_are_turned(plain_yolo):
    root = plain_yolo()
    save_turned(Image.new("RGB", SIZE), root / "images" / "bild ä 0.jpg", 6)
    first = convert("yolo", root)["train"].content["annotations"][0]
    assert first["bbox"] == pytest.approx([16, 18, 8, 24])


def test_what_is_left_out_is_told(plain_yolo, capsys):
    root = plain_yolo()
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
def test_what_contradicts_itself_is_refused(plain_yolo, break_it, message):
    root = plain_yolo()
    if "no images with" in message:
        for path in (root / "labels").iterdir():
            path.rename(root / "images" / path.name)
    break_it(root)
    with pytest.raises(UserError, match=message) as caught:
        convert("yolo", root)
    assert "\n" not in str(caught.value)


CORNERS = [[10, 5], [50, 5], [50, 35], [10, 35]]


@pytest.mark.parametrize("points", [[CORNERS[0], CORNERS[2]], CORNERS])
@pytest.mark.parametrize("with_polygon", [False, True])
def test_rectangles_of_labelme(tmp_path, points, with_polygon, capsys):
    """Where all shapes are rectangles, labelme's two corners or X-AnyLabeling's four, they are boxes."""
    shapes = [shape("cat", points, "rectangle"), *([shape("cat", CORNERS[:3])] * with_polygon)]
    save_image(tmp_path / "img" / "ü.jpg")
    (tmp_path / "ann").mkdir()
    text = labelled("..\\img\\ü.jpg", shapes)
    (tmp_path / "ann" / "ü.JSON").write_text(text, encoding="utf-8-sig")
    assert count(tmp_path, "labelme") == {"train": (1, len(shapes))}
    file = convert("labelme", tmp_path)["train"]
    assert file.without_masks() == (0 if with_polygon else 1)
    assert file.content["annotations"][0]["bbox"] == [10, 5, 40, 30]
    told = "1 rectangles that are masks too, as there are other shapes"
    assert (told in capsys.readouterr().out) == with_polygon


def test_labels_without_any_object(tmp_path):
    save_image(tmp_path / "a.jpg")
    write(tmp_path / "a.json", labelled("a.jpg", []))
    with pytest.raises(UserError, match="its labels hold no object"):
        convert("labelme", tmp_path)
