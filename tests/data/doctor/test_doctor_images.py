"""Opening what strangers call images."""

import os

import cv2
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image, features
from shapes_patient import save_turned

from flatten_det.data.doctor import faults
from flatten_det.data.doctor.data_sets import INSTANCES, ConfiguredDataSet
from flatten_det.data.doctor.images import IMAGES, ImageFault, opened, opened_picture
from flatten_det.files.images import seen_size

DATA_SET = ConfiguredDataSet("train", "CocoDataset", INSTANCES)


def fault(path) -> ImageFault:
    with pytest.raises(ImageFault) as caught:
        opened_picture(str(path), DATA_SET)
    return caught.value


@pytest.mark.parametrize("suffix", ["bmp", "jpg", "jp2", "png", "ppm", "tif", "webp"])
def test_what_opencv_reads(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.new("RGB", (20, 10), (200, 0, 0)).save(path)
    assert opened_picture(str(path), DATA_SET).size == (20, 10)


def test_what_opencv_does_not_read(tmp_path, monkeypatch):
    """GIF, in older versions; and what is no image."""
    path = tmp_path / "image.gif"
    path.write_bytes(b"no image")
    assert str(fault(path)) == "cannot be decoded: its content is no image"
    Image.new("RGB", (20, 10)).save(path)
    monkeypatch.setattr(cv2, "haveImageReader", lambda path: False)
    assert str(fault(path)) == "is a GIF, which OpenCV does not read"


@pytest.mark.parametrize("name", ["folder", "pipe", "no/such/file.jpg", "x" * 5000])
def test_no_file(tmp_path, name):
    """A pipe is not waited for."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert fault(tmp_path / name).kind == faults.IMAGE_MISSING


def test_limit_of_pixels_is_pillows(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    Image.new("1", (300, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)  # A warning, which is none here.
    assert opened(str(path), IMAGES).size == (300, 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert fault(path).kind == faults.IMAGE_TOO_LARGE


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(9))
def test_all_size_an_image_as_the_loader_does(tmp_path, kind, orientation):
    """Formats differ: OpenCV turns no AVIF, and Pillow gives the size of a TIFF when it is turned."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    path = str(tmp_path / "image.jpg")
    save_turned(Image.new("RGB", (20, 10)), path, orientation, kind)
    height, width = LoadImageFromFile()({"img_path": path})["img_shape"]
    assert opened_picture(path, DATA_SET).size == (width, height)
    assert seen_size(path) == (width, height)
    if kind != "AVIF":
        assert (width, height) == ((10, 20) if orientation > 4 else (20, 10))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (dict(color_type="color_ignore_orientation"), (20, 10)),
        (dict(color_type="unchanged"), (20, 10)),
        (dict(color_type="unchanged", imdecode_backend="pillow"), (20, 10)),
        (dict(color_type="grayscale", imdecode_backend="pillow"), (10, 20)),
    ],
)
def test_the_loader_of_the_data_set_decides(patient, options, size):
    path = patient.path("train/images/000003.jpg")
    save_turned(Image.new("RGB", (20, 10)), path, 6)
    load = dict(type="LoadImageFromFile", **options)
    assert LoadImageFromFile(**options)({"img_path": str(path)})["img_shape"] == size[::-1]
    with patient.annotations() as content:
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 3]
        content["images"][3] |= dict(width=size[0], height=size[1])
    assert patient.findings("instances", pipeline=[load]) == []
    with patient.annotations() as content:
        content["images"][3] |= dict(width=size[1], height=size[0])
    assert [f.kind for f in patient.findings("instances", pipeline=[load])] == [faults.IMAGE_SIZE]
