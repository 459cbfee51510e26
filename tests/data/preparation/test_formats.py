"""Own data in YOLO's, Pascal VOC's and labelme's form: what is taken of it, changed, and refused."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from flatten_det.data.preparation.formats import convert, find_format
from flatten_det.errors import UserError

SIZE = (60, 40)  # width, height


def save_image(path: Path, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 60)).save(path)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def yolo(tmp_path):
    """As ultralytics' own sets lie: a box, a polygon, a repeated line, and an image of background."""
    write(
        tmp_path / "data.yaml",
        "path: ../datasets/mine\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n",
    )
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


def shape(label: str, points: list, kind: str = "polygon", **more) -> dict:
    return {
        "label": label,
        "points": points,
        "group_id": None,
        "shape_type": kind,
        "flags": {},
        **more,
    }


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
        content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": "a.jpg"}
        content |= {"imageData": None, "imageWidth": 60, "imageHeight": 40}
        write(tmp_path / split / "a.json", json.dumps(content))
    return tmp_path


def objects(file, label: str) -> list[dict]:
    (id_,) = (c["id"] for c in file.content["categories"] if c["name"] == label)
    return [a for a in file.content["annotations"] if a["category_id"] == id_]


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
    if names.startswith("names"):
        write(tmp_path / "data.yaml", names)
    else:
        write(tmp_path / names, "cat\ndog\n")
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


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


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
