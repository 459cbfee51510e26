"""Faults planted into semantic label maps."""

import os

import numpy as np
import pytest
from PIL import Image
from shapes_patient import only, save_turned

from flatten_det.data.doctor import faults
from flatten_det.data.doctor.check import check_data, findings_of

NAME = "train/semantic/000002.png"
IMAGE = "train/images/000002.jpg"


def relabel(patient, change, names=NAME):
    """Write label maps anew; ``change`` gets and returns their arrays."""
    for path in patient.root.glob(names):
        Image.fromarray(change(np.array(Image.open(path)))).save(path)


def pixel(value, dtype=np.uint8):
    def change(labels):
        labels = labels.astype(dtype)
        labels[0, :3] = value
        return labels

    return change


def test_unknown_label(patient):
    relabel(patient, pixel(7))
    finding = only(patient.findings("semantic"), faults.UNKNOWN_LABEL)
    said = "label map 000002 holds unknown labels: 7 (3 pixels); known are 0 to 6, 255"
    assert finding.message == said
    assert (finding.file, finding.id) == (str(patient.path(NAME)), "7")


def test_ignored_label(patient):
    relabel(patient, pixel(255))
    assert patient.findings("semantic") == []
    only(patient.findings("semantic", ignore_index=254), faults.UNKNOWN_LABEL)


def test_reduce_zero_label(patient):
    """0 does not count then, and the labels 1 to n do."""

    def of_training(**changes):
        return [f for f in patient.findings("semantic", **changes) if f.data_set == "train"]

    relabel(patient, lambda labels: labels + 1, "*/semantic/*.png")
    assert {f.kind for f in of_training()} >= {faults.UNKNOWN_LABEL}
    assert of_training(reduce_zero_label=True) == []
    for index, value in ((2, 0), (3, 255), (4, 8)):
        relabel(patient, pixel(value), f"train/semantic/00000{index}.png")
    (finding,) = of_training(reduce_zero_label=True)
    assert "8 (3 pixels); known are 0 to 7, 255" in finding.message


def test_chosen_classes(patient):
    """MMSegmentation maps the labels of the others to 255."""
    cfg = patient.config("semantic")
    cfg.train_dataloader.dataset = dict(
        type="ShapesSegDataset",
        data_root=str(patient.root),
        metainfo=dict(classes=["ring", "star"]),
    )
    assert findings_of(check_data(cfg, 0)) == []
    relabel(patient, pixel(9))
    finding = only(findings_of(check_data(cfg, 0)), faults.UNKNOWN_LABEL)
    assert "9 (3 pixels); known are 0 to 6, 255" in finding.message


COLOURS = "holds no labels, but colours"


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (pixel(300, np.uint16), faults.LABEL_MAP_FORMAT, "holds labels up to 300"),
        (lambda labels: np.stack([labels] * 3, axis=-1), faults.LABEL_MAP_FORMAT, COLOURS),
        (lambda labels: labels[:60], faults.LABEL_MAP_SIZE, "000002 is 64x60, its image 64x64"),
    ],
)
def test_another_form(patient, change, kind, said):
    relabel(patient, change)
    assert said in only(patient.findings("semantic"), kind).message


def test_fractions_and_sixteen_bits(patient):
    labels = np.array(Image.open(patient.path(NAME)))
    Image.fromarray(labels.astype(np.uint16)).save(patient.path(NAME))
    assert patient.findings("semantic") == []
    Image.fromarray(labels.astype(np.float32)).save(patient.path(NAME), format="TIFF")
    only(patient.findings("semantic"), faults.LABEL_MAP_FORMAT)


def test_image_turned_by_exif(patient):
    """OpenCV turns the image for the training, Pillow leaves the label map as it is."""
    upright = Image.open(patient.path(IMAGE)).crop((0, 0, 64, 48))
    relabel(patient, lambda labels: labels[:48])
    save_turned(upright, patient.path(IMAGE), 6)
    finding = only(patient.findings("semantic"), faults.LABEL_MAP_SIZE)
    assert "is 64x48, its image 48x64 after EXIF turns it" in finding.message


@pytest.mark.parametrize(
    ("classes", "lost"), [(2, "thing"), (7, "circle, ring, triangle, square, star, ...")]
)
def test_foreground_that_is_the_ignored_label(patient, classes, lost):
    """Binary masks as painting programs write them."""

    def every_class(labels):
        return (np.arange(labels.size) % classes).reshape(labels.shape).astype(np.uint8)

    relabel(patient, lambda labels: np.uint8(255 * (labels > 0)), "train/semantic/*.png")
    relabel(patient, every_class, "val/semantic/*.png")
    cfg = patient.config("semantic")
    if classes == 2:
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.dataset.metainfo = dict(classes=("background", "thing"), palette=[[0] * 3] * 2)
    message = only(findings_of(check_data(cfg, 0)), faults.IGNORED_FOREGROUND).message
    said = "all label maps hold 0 and 255 only: 255 is the ignored label: your foreground is"
    assert said in message
    assert message.endswith(lost)


def test_class_that_no_map_shows(patient):
    without = np.uint8([0, 1, 2, 3, 0, 5, 6])
    relabel(patient, lambda labels: without[labels], "train/semantic/*.png")
    finding = only(patient.findings("semantic"), faults.UNUSED_CATEGORY)
    assert finding.message == "class 4 (square) is in no label map"


def test_files_without_a_partner(patient):
    patient.path(NAME).unlink()
    for found in (patient.findings("semantic"), patient.quick_findings("semantic")):
        assert only(found, faults.LABEL_MAP_MISSING).file == str(patient.path(IMAGE))
    patient.path(IMAGE).unlink()
    assert patient.findings("semantic") == []
    patient.path("train/images/000003.jpg").unlink()
    for found in (patient.findings("semantic"), patient.quick_findings("semantic")):
        finding = only(found, faults.LABEL_MAP_UNUSED)
        assert finding.file == str(patient.path("train/semantic/000003.png"))


def test_broken_image(patient):
    os.truncate(patient.path(IMAGE), 300)
    assert only(patient.findings("semantic"), faults.IMAGE_UNREADABLE).file.endswith(IMAGE)


def test_no_image_of_the_suffix(patient):
    found = patient.quick_findings("semantic", img_suffix=".jpeg")
    assert found[0].kind == faults.NO_IMAGES
    assert {f.kind for f in found[1:]} == {faults.LABEL_MAP_UNUSED}


class TestListOfImages:
    """``ann_file``: a text file with a name per line."""

    def listed(self, patient, *lines):
        return self.read(patient, ("\n".join(lines) + "\n").encode())

    def read(self, patient, content):
        patient.path("list.txt").write_bytes(content)
        return patient.quick_findings("semantic", ann_file="list.txt")

    def test_healthy(self, patient):
        """What the list leaves out is meant to be left out."""
        assert self.listed(patient, "000001", "000002") == []
        assert self.read(patient, b"000001\r\n000002\r\n") == []

    def test_faults(self, patient):
        found = self.listed(patient, "000001", "../000002", "000001", "000077")
        assert [(f.kind, f.id) for f in found] == [
            (faults.FILE_NAME_LEAVES, 2),
            (faults.DUPLICATE_FILE_NAME, 3),
            (faults.LABEL_MAP_MISSING, None),
        ]
        (finding,) = self.listed(patient, "000001", "sub\\000002")
        assert finding.kind == faults.FILE_NAME_BACKSLASHES
        assert "line 2 (sub\\000002)" in finding.message

    @pytest.mark.parametrize("blank", ["", "  ", "\r"])
    def test_blank_line(self, patient, blank):
        (finding,) = self.listed(patient, "000001", "000002", blank)
        said = "line 3 is blank, which stands for an image without a name: remove it"
        assert finding.message == said

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
    def test_other_encodings(self, patient, encoding):
        found = self.read(patient, "000001\r\n".encode(encoding))
        assert "byte order mark" in only(found, faults.ANNOTATION_FILE).message

    def test_no_file(self, patient):
        found = patient.findings("semantic", ann_file="list.txt")
        assert only(found, faults.ANNOTATION_FILE).message.endswith("list.txt not found")
        os.mkfifo(patient.path("list.txt"))
        found = patient.quick_findings("semantic", ann_file="list.txt")
        said = "list.txt is a named pipe, not a file"
        assert only(found, faults.ANNOTATION_FILE).message.endswith(said)

    def test_image_that_is_not_there(self, patient):
        patient.path("train/semantic/000077.png").write_bytes(patient.path(NAME).read_bytes())
        patient.path("list.txt").write_text("000077\n")
        found = [f for f in patient.findings("semantic", ann_file="list.txt") if f.id is None]
        only(found, faults.IMAGE_MISSING)
