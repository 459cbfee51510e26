"""What images say about themselves decides whether they are decoded."""

import os
import re
import socket
from pathlib import Path

import cv2
import numpy as np
import pytest
from bombs import huge_files, png_bomb
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from PIL import EpsImagePlugin, Image, features

from flatten_det.data.doctor.images import IMAGES, ImageFault, opened
from flatten_det.data.loading import CheckedPipeline, ImageError, image_error
from flatten_det.data.preparation.cityscapes import write_train_ids
from flatten_det.data.preparation.coco_file import CocoFile, completed
from flatten_det.errors import UserError
from flatten_det.files.images import pixel_limit, set_pixel_limit, why_not_decoded

TOO_LARGE = (
    r"was not decoded: Image size \(\d+ pixels\) exceeds limit of \d+ pixels: .*max_image_pixels"
)
load = LoadImageFromFile()


@pytest.fixture(autouse=True)
def limit_as_before(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@pytest.fixture
def postscript(tmp_path, monkeypatch):
    """A program in the place of an image; the file ``started`` says that it was run."""
    started = tmp_path / "started"
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: started.touch())
    path = tmp_path / "picture.jpg"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    )
    yield path
    assert not started.exists()


@pytest.mark.parametrize("key", ["img_path", "seg_map_path"])
@pytest.mark.parametrize("size", [(100_000, 100_000), (20_000, 20_000)])
def test_bombs_are_not_decoded(key, size, tmp_path):
    path = png_bomb(tmp_path / "bomb.png", *size)
    assert path.stat().st_size < 60_000
    loaded = []
    with pytest.raises(ImageError, match=rf"bomb\.png {TOO_LARGE}"):
        CheckedPipeline([loaded.append])({key: str(path)})
    assert not loaded


@pytest.fixture
def no_decoder(monkeypatch):
    for decoder in ("imdecode", "imread"):
        monkeypatch.setattr(cv2, decoder, lambda *args: pytest.fail("decoded"))


def check_refused(path: Path, said: str) -> None:
    """By what loads data, whatever it is for, by the doctor, and by what completes a COCO file."""
    named = rf"image {re.escape(str(path))} {said}"
    for key in ("img_path", "seg_map_path", "img_path2", "depth_map_path"):
        with pytest.raises(ImageError, match=named):
            CheckedPipeline([load])({key: str(path)})
    assert re.match(named, image_error(path))
    content = {"images": [{"id": 1, "file_name": path.name}], "annotations": [], "categories": []}
    with pytest.raises(UserError, match=named):
        completed(CocoFile(path.with_name("a.json"), content), path.parent)
    with pytest.raises(ImageFault, match=said):
        opened(str(path), IMAGES)


@pytest.mark.parametrize("kind", ["png", *huge_files(20_000, 20_000)])
def test_bombs_of_every_kind_in_every_reader(kind, tmp_path, no_decoder):
    """OpenCV goes by the content, whatever the name."""
    folder = tmp_path / "gtFine" / "train" / "aachen"
    folder.mkdir(parents=True)
    path = folder / "a_gtFine_labelIds.png"
    if kind == "png":
        png_bomb(path)
    else:
        path.write_bytes(huge_files(20_000, 20_000)[kind])
    refused = rf"({TOO_LARGE}|cannot be decoded .*cannot be told beforehand)"
    check_refused(path, refused)
    with pytest.raises(UserError, match=rf"labelIds\.png {refused}"):
        write_train_ids(tmp_path, "train")


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_avif_has_the_limit(tmp_path, no_decoder):
    path = tmp_path / "picture.jpg"
    Image.new("RGB", (30, 20)).save(path, "AVIF")
    with pytest.raises(ImageError, match=TOO_LARGE):
        CheckedPipeline([load], max_pixels=100)({"img_path": str(path)})
    with pytest.raises(ImageFault, match="was not decoded"):
        opened(str(path), IMAGES)


def test_small_images_of_other_kinds_are_decoded(tmp_path):
    """A TIFF with more channels than Pillow has modes for states its size all the same."""
    path = tmp_path / "bands.tif"
    cv2.imwrite(str(path), np.ones((20, 30, 3), np.float32))
    loaded = LoadImageFromFile(color_type="unchanged")
    assert CheckedPipeline([loaded])({"img_path": str(path)})["img_shape"] == (20, 30)
    for kind in ("tiff", "tiff of many channels", "big tiff", "sun", "ppm", "grey pfm"):
        path.write_bytes(huge_files(30, 20)[kind])
        assert why_not_decoded(path) is None


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "broken link"])
def test_what_is_no_file_is_not_opened(kind, tmp_path, monkeypatch):
    """A named pipe would wait for a writer for ever."""
    monkeypatch.chdir(tmp_path)  # The names of sockets are short.
    path = Path("picture.png")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind("picture.png")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere.png")
    kind = {"pipe": "named pipe", "broken link": "link to nothing"}.get(kind, kind)
    check_refused(path, f"is a {kind}")
    assert image_error(path).endswith(": it was not opened")


def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), np.zeros((3, 4), np.uint8))
    monkeypatch.setattr(os, "access", lambda *args: False)  # Root may read everything.
    with pytest.raises(ImageError, match=r"picture\.png cannot be read: permission denied"):
        CheckedPipeline([load])({"img_path": str(path)})


def test_large_images_are_decoded(tmp_path):
    path = str(tmp_path / "large.png")
    cv2.imwrite(path, np.zeros((4096, 8192), np.uint8))
    assert CheckedPipeline([load])({"img_path": path})["img_shape"] == (4096, 8192)


def test_the_limit_can_be_raised_and_lowered(tmp_path):
    path = str(tmp_path / "picture.png")
    cv2.imwrite(path, np.zeros((300, 400), np.uint8))
    loaded = CheckedPipeline([load], max_pixels=300 * 400)({"img_path": path})
    assert loaded["img_shape"] == (300, 400)
    with pytest.raises(ImageError, match=TOO_LARGE):
        CheckedPipeline([load], max_pixels=300 * 400 - 2)({"img_path": path})
    bomb = png_bomb(tmp_path / "bomb.png", 20_000, 20_000, kilobytes=1)
    # It was tried, and is cut.
    with pytest.raises(ImageError, match=r"bomb\.png cannot be decoded"):
        CheckedPipeline([load], max_pixels=20_000**2)({"img_path": str(bomb)})


def test_the_limit_is_a_field_of_the_config():
    assert pixel_limit(Config()) == 2 * Image.MAX_IMAGE_PIXELS
    assert pixel_limit(Config(dict(max_image_pixels=10**9))) == 10**9
    for wrong in (0, -1, 2.5, "many", True):
        with pytest.raises(UserError, match=r"max_image_pixels=.* positive whole number"):
            pixel_limit(Config(dict(max_image_pixels=wrong)))
    with pytest.raises(UserError, match="OPENCV_IO_MAX_IMAGE_PIXELS=9999999999 too"):
        pixel_limit(Config(dict(max_image_pixels=9_999_999_999)))


def test_the_limit_of_one_config_is_not_that_of_the_next(monkeypatch):
    default = pixel_limit(Config())
    for limit in (10_000, 20_000):
        set_pixel_limit(limit)
        assert pixel_limit(Config()) == default
    set_pixel_limit(default)
    assert pixel_limit(Config()) == default
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # As many programs do.
    assert pixel_limit(Config()) == default


def test_postscript_is_not_run(postscript):
    Image.open(postscript)  # It is one, for Pillow.
    check_refused(postscript, "was not decoded: it is PostScript, a program")


def test_what_pillow_does_not_know_is_left_to_the_decoder(tmp_path):
    path = tmp_path / "volume.nii"
    path.write_bytes(b"something of a scanner")
    assert why_not_decoded(path) is None
    assert why_not_decoded(tmp_path / "none.png") is None


def test_large_images_of_a_raised_limit_are_no_warning(tmp_path, recwarn):
    path = png_bomb(tmp_path / "large.png", 12_000, 10_000, kilobytes=1)
    set_pixel_limit(200_000_000)
    assert why_not_decoded(path) is None
    assert not [w for w in recwarn if issubclass(w.category, Image.DecompressionBombWarning)]


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "/etc/secret.png", "sub/../../secret.png", "http://inside/secret.png"],
)
def test_files_outside_of_the_data_are_not_opened(name, tmp_path):
    folder, loaded = tmp_path / "images", []
    path = str(folder / name) if "://" not in name else name
    pipeline = CheckedPipeline([loaded.append], folders=[str(folder), str(tmp_path / "labels")])
    for key in ("img_path", "seg_map_path"):
        with pytest.raises(ImageError, match=r"was not opened: it is outside of its data folder"):
            pipeline({key: path})
    assert not loaded


def test_names_that_no_file_has_are_not_found(tmp_path):
    with pytest.raises(ImageError, match="not found"):
        CheckedPipeline([load], folders=[str(tmp_path)])({"img_path": f"{tmp_path}/\0.png"})


def test_files_of_the_data_are_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline = CheckedPipeline(
        [lambda data: data], folders=["data/images", str(tmp_path / "labels")]
    )
    data = {"img_path": "data/images/a..b/c.png", "seg_map_path": f"{tmp_path}/labels/c.png"}
    assert pipeline(data) == data
    link = tmp_path / "data" / "images"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "elsewhere")  # Links are the user's own.
    assert pipeline(data) == data


def test_masks_that_claim_to_be_huge(tmp_path):
    path = str(tmp_path / "picture.png")
    cv2.imwrite(path, np.zeros((30, 40), np.uint8))
    pipeline = CheckedPipeline([lambda data: "loaded"])

    def run(size) -> str:
        instances = [{"mask": [[1, 2, 3]]}, {"bbox": []}, {"mask": {"size": size, "counts": "0"}}]
        return pipeline({"img_path": path, "instances": instances})

    for size in ([30, 40], None, [], "ab", [1.5, None]):
        assert run(size) == "loaded"
    with pytest.raises(ImageError, match=r"picture\.png: one of its masks claims 100000 x 100000"):
        run([100_000, 100_000])
