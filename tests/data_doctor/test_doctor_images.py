"""Opening what strangers call images."""

import os

import cv2
import pytest
from PIL import Image

from flatten_det.data_doctor import kinds
from flatten_det.data_doctor.images import IMAGES, ImageFault, opened, opened_picture, seen_size


def fault(path) -> ImageFault:
    with pytest.raises(ImageFault) as caught:
        opened_picture(str(path))
    return caught.value


@pytest.mark.parametrize("suffix", ["bmp", "jpg", "jp2", "png", "ppm", "tif", "webp"])
def test_what_opencv_reads(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.new("RGB", (20, 10), (200, 0, 0)).save(path)
    assert opened_picture(str(path)).size == (20, 10)


def test_what_opencv_does_not_read(tmp_path, monkeypatch):
    """GIF, in older versions."""
    path = tmp_path / "image.gif"
    Image.new("RGB", (20, 10)).save(path)
    monkeypatch.setattr(cv2, "haveImageReader", lambda path: False)
    assert str(fault(path)) == "is a GIF, which OpenCV does not read"


def test_programs_in_images_are_not_run(tmp_path, monkeypatch):
    """Pillow hands EPS, whatever its name, to ghostscript."""
    path = tmp_path / "image.jpg"
    Image.new("RGB", (20, 10)).save(path, "EPS")
    monkeypatch.setattr("subprocess.check_call", lambda *args, **kwargs: pytest.fail("ran"))
    assert fault(path).kind == kinds.IMAGE_UNREADABLE


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "image.jpg")
    assert fault(tmp_path / "image.jpg").kind == kinds.IMAGE_MISSING


@pytest.mark.parametrize("name", ["folder", "no/such/file.jpg", "x" * 5000])
def test_no_file(tmp_path, name):
    (tmp_path / "folder").mkdir()
    assert fault(tmp_path / name).kind == kinds.IMAGE_MISSING


def test_limit_of_pixels_is_pillows(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    Image.new("1", (300, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)  # A warning, which is none here.
    assert opened(str(path), IMAGES).size == (300, 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert fault(path).kind == kinds.IMAGE_TOO_LARGE


@pytest.mark.parametrize(("orientation", "size"), [(1, (20, 10)), (3, (20, 10)), (6, (10, 20))])
def test_exif_turns_as_opencv_does(tmp_path, orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = str(tmp_path / "image.jpg")
    Image.new("RGB", (20, 10)).save(path, exif=exif)
    assert seen_size(opened_picture(path)) == size
    height, width = cv2.imread(path).shape[:2]
    assert (width, height) == size


def test_what_is_said_of_other_content(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(b"no image")
    assert str(fault(path)) == "cannot be decoded: its content is no image"
