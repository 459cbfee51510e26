"""Faults planted into semantic label maps."""

import os

import numpy as np
import pytest
from PIL import Image

from flatten_det.data.doctor import faults as kinds
from flatten_det.data.doctor.check import check_data
from flatten_det.data.doctor.report import findings_of

NAME = "train/semantic/000002.png"
IMAGE = "train/images/000002.jpg"


def one(findings, kind):
    assert [finding.kind.name for finding in findings] == [kind.name]
    assert findings[0].data_set == "train"
    return findings[0]


def relabel(patient, change, name=NAME):
    """Write a label map anew; ``change`` gets and returns its array."""
    with patient.image(name) as image:
        image["it"] = Image.fromarray(change(np.array(image["it"])))


def pixel(value, dtype=np.uint8):
    def change(labels):
        labels = labels.astype(dtype)
        labels[0, :3] = value
        return labels

    return change


def test_nothing_is_wrong_with_the_healthy(patient):
    assert patient.findings("semantic") == []
    assert patient.quick_findings("semantic") == []


def test_unknown_label(patient):
    relabel(patient, pixel(7))
    finding = one(patient.findings("semantic"), kinds.UNKNOWN_LABEL)
    assert finding.message == (
        "label map 000002 holds unknown labels: 7 (3 pixels); known are 0 to 6, 255"
    )
    assert (finding.file, finding.id) == (str(patient.path(NAME)), "7")


def test_ignored_label(patient):
    relabel(patient, pixel(255))
    assert patient.findings("semantic") == []
    one(patient.findings("semantic", ignore_index=254), kinds.UNKNOWN_LABEL)


def test_reduce_zero_label(patient):
    """0 does not count then, and the labels 1 to n do."""
    for path in patient.root.glob("*/semantic/*.png"):
        relabel(patient, lambda labels: labels + 1, path.relative_to(patient.root).as_posix())
    assert {f.kind for f in patient.findings("semantic")} >= {kinds.UNKNOWN_LABEL}
    reduced = [
        f for f in patient.findings("semantic", reduce_zero_label=True) if f.data_set == "train"
    ]
    assert reduced == []
    relabel(patient, pixel(0))
    relabel(patient, pixel(255), "train/semantic/000003.png")
    relabel(patient, pixel(8), "train/semantic/000004.png")
    (finding,) = (
        f for f in patient.findings("semantic", reduce_zero_label=True) if f.data_set == "train"
    )
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
    finding = one(findings_of(check_data(cfg, 0)), kinds.UNKNOWN_LABEL)
    assert "9 (3 pixels); known are 0 to 6, 255" in finding.message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (pixel(300, np.uint16), "holds labels up to 300"),
        (lambda labels: np.stack([labels] * 3, axis=-1), "holds no labels, but colours"),
    ],
)
def test_another_form(patient, change, said):
    relabel(patient, change)
    assert said in one(patient.findings("semantic"), kinds.LABEL_MAP_FORMAT).message


def test_fractions(patient):
    labels = np.array(Image.open(patient.path(NAME)), np.float32)
    Image.fromarray(labels).save(patient.path(NAME), format="TIFF")
    one(patient.findings("semantic"), kinds.LABEL_MAP_FORMAT)


def test_sixteen_bits_with_small_labels_are_read_as_they_are(patient):
    relabel(patient, lambda labels: labels.astype(np.uint16))
    assert patient.findings("semantic") == []


def test_other_size(patient):
    relabel(patient, lambda labels: labels[:60])
    finding = one(patient.findings("semantic"), kinds.LABEL_MAP_SIZE)
    assert finding.message == "label map 000002 is 64x60, its image 64x64"


def test_image_turned_by_exif(patient):
    """OpenCV turns the image for the training, Pillow leaves the label map as it is."""
    upright = Image.open(patient.path(IMAGE)).crop((0, 0, 64, 48))
    relabel(patient, lambda labels: labels[:48])
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(patient.path(IMAGE), exif=exif)
    finding = one(patient.findings("semantic"), kinds.LABEL_MAP_SIZE)
    assert "is 64x48, its image 48x64 after EXIF turns it" in finding.message


@pytest.mark.parametrize("orientation", [2, 8])
def test_label_map_that_asks_to_be_turned(patient, orientation):
    """A training does not obey, other readers do."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(patient.path(NAME)).save(patient.path(NAME), exif=exif)
    finding = one(patient.findings("semantic"), kinds.LABEL_MAP_FORMAT)
    assert "asks to be turned (EXIF orientation)" in finding.message


@pytest.mark.parametrize("classes", [2, 7])
def test_foreground_that_is_the_ignored_label(patient, classes):
    """Binary masks as painting programs write them."""
    for path in patient.root.glob("train/semantic/*.png"):
        name = path.relative_to(patient.root).as_posix()
        relabel(patient, lambda labels: np.where(labels > 0, 255, 0).astype(np.uint8), name)
    for path in patient.root.glob("val/semantic/*.png"):
        name = path.relative_to(patient.root).as_posix()
        relabel(
            patient,
            lambda labels: (
                (np.arange(labels.size) % classes).reshape(labels.shape).astype(np.uint8)
            ),
            name,
        )
    cfg = patient.config("semantic")
    if classes == 2:
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.dataset.metainfo = dict(classes=("background", "thing"), palette=[[0] * 3] * 2)
    finding = one(findings_of(check_data(cfg, 0)), kinds.IGNORED_FOREGROUND)
    assert (
        "all label maps hold 0 and 255 only: 255 is the ignored label: your foreground is"
        in finding.message
    )
    assert finding.message.endswith(
        "thing" if classes == 2 else "circle, ring, triangle, square, star, ..."
    )


def test_class_that_no_map_shows(patient):
    for path in patient.root.glob("train/semantic/*.png"):
        name = path.relative_to(patient.root).as_posix()
        relabel(patient, lambda labels: np.where(labels == 4, 0, labels).astype(np.uint8), name)
    finding = one(patient.findings("semantic"), kinds.UNUSED_CATEGORY)
    assert finding.message == "class 4 (square) is in no label map"


def test_files_without_a_partner(patient):
    patient.path(NAME).unlink()
    for found in (patient.findings("semantic"), patient.quick_findings("semantic")):
        finding = one(found, kinds.LABEL_MAP_MISSING)
        assert finding.file == str(patient.path(IMAGE))
    patient.path(IMAGE).unlink()
    assert patient.findings("semantic") == []
    patient.path("train/images/000003.jpg").unlink()
    for found in (patient.findings("semantic"), patient.quick_findings("semantic")):
        finding = one(found, kinds.LABEL_MAP_UNUSED)
        assert finding.file == str(patient.path("train/semantic/000003.png"))


def test_broken_files(patient):
    patient.path(IMAGE).write_bytes(patient.path(IMAGE).read_bytes()[:300])
    assert one(patient.findings("semantic"), kinds.IMAGE_UNREADABLE).file.endswith(IMAGE)
    patient.path(IMAGE).write_bytes(patient.path("train/images/000003.jpg").read_bytes())
    patient.path(NAME).write_bytes(patient.path(NAME).read_bytes()[:100])
    assert one(patient.findings("semantic"), kinds.LABEL_MAP_UNREADABLE).file.endswith(NAME)


def test_decompression_bomb(patient, monkeypatch):
    with patient.image(NAME) as image:
        image["it"] = image["it"].resize((640, 640))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    one(patient.findings("semantic"), kinds.LABEL_MAP_TOO_LARGE)


def test_missing_folder(patient):
    folder = patient.path("train/semantic")
    folder.rename(patient.path("train/elsewhere"))
    for found in (patient.findings("semantic"), patient.quick_findings("semantic")):
        assert one(found, kinds.FOLDER_MISSING).file == str(folder)


def test_no_image_of_the_suffix(patient):
    found = patient.quick_findings("semantic", img_suffix=".jpeg")
    assert found[0].kind == kinds.NO_IMAGES
    assert {f.kind for f in found[1:]} == {kinds.LABEL_MAP_UNUSED}


class TestListOfImages:
    """``ann_file``: a text file with a name per line."""

    def listed(self, patient, *lines):
        patient.path("list.txt").write_text("\n".join(lines) + "\n")
        return patient.quick_findings("semantic", ann_file="list.txt")

    def test_healthy(self, patient):
        """What the list leaves out is meant to be left out."""
        assert self.listed(patient, "000001", "000002") == []

    def test_faults(self, patient):
        found = self.listed(patient, "000001", "../000002", "000001", "000077")
        assert [(f.kind, f.id) for f in found] == [
            (kinds.FILE_NAME_LEAVES, 2),
            (kinds.DUPLICATE_FILE_NAME, 3),
            (kinds.LABEL_MAP_MISSING, None),
        ]

    @pytest.mark.parametrize("blank", ["", "  ", "\r"])
    def test_blank_line(self, patient, blank):
        (finding,) = self.listed(patient, "000001", "000002", blank)
        assert (
            finding.message
            == "line 3 is blank, which stands for an image without a name: remove it"
        )

    def test_names_of_windows(self, patient):
        (finding,) = self.listed(patient, "000001", "sub\\000002")
        assert finding.kind == kinds.FILE_NAME_BACKSLASHES
        assert "line 2 (sub\\000002)" in finding.message

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
    def test_other_encodings(self, patient, encoding):
        patient.path("list.txt").write_bytes("000001\r\n".encode(encoding))
        finding = one(
            patient.quick_findings("semantic", ann_file="list.txt"), kinds.ANNOTATION_FILE
        )
        assert "byte order mark" in finding.message

    def test_line_ends_of_windows(self, patient):
        patient.path("list.txt").write_bytes(b"000001\r\n000002\r\n")
        assert patient.quick_findings("semantic", ann_file="list.txt") == []

    def test_pipe(self, patient):
        os.mkfifo(patient.path("list.txt"))
        found = patient.quick_findings("semantic", ann_file="list.txt")
        assert one(found, kinds.ANNOTATION_FILE).message.endswith(
            "list.txt is a named pipe, not a file"
        )

    def test_missing(self, patient):
        found = patient.findings("semantic", ann_file="list.txt")
        assert one(found, kinds.ANNOTATION_FILE).message.endswith("list.txt not found")

    def test_image_that_is_not_there(self, patient):
        patient.path("train/semantic/000077.png").write_bytes(patient.path(NAME).read_bytes())
        patient.path("list.txt").write_text("000077\n")
        found = [f for f in patient.findings("semantic", ann_file="list.txt") if f.id is None]
        one(found, kinds.IMAGE_MISSING)


def test_workers_find_the_same(patient):
    relabel(patient, pixel(9))
    patient.path("train/images/000005.jpg").write_bytes(b"no image")
    alone = patient.findings("semantic", workers=0)
    assert len(alone) == 2
    assert patient.findings("semantic", workers=2) == alone
