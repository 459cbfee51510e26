"""ONNX Runtime with an exported model gives what torch and the frameworks do, and needs none of them."""

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import cv2
import mmcv
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from exported_models import exported, nano_segmentor
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from PIL import Image

from flatten_det.errors import UserError
from flatten_det.export.exporters import with_metadata
from flatten_det.export.graphs import of_segmentor
from flatten_det.onnx_runner import (
    SEGMENTATION,
    OnnxRunner,
    _resized_rows,
    paste,
    read_pixels,
    resize,
    size_by_rule,
)
from flatten_det.results.rle import decode

ROOT = Path(__file__).parents[1]
ORIENTATION = 0x0112
NAMES = ["a", "b", "c", "d", "e"]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Blobs, which resizing changes less than single pixels."""
    source = np.random.default_rng(seed)
    small = source.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("size", [(37, 53), (128, 128), (200, 411), (9, 500)])
def test_resize_is_opencvs(size):
    pixels = noise(128, 171)
    wanted = mmcv.imresize(pixels, size[::-1])
    difference = np.abs(resize(pixels, size).astype(int) - wanted)
    assert difference.max() <= 1
    assert difference.mean() < 0.01


@pytest.mark.parametrize("keep_ratio", [True, False])
@pytest.mark.parametrize("size", [(480, 640), (333, 1999), (1080, 50)])
@pytest.mark.parametrize("scale", [(1333, 800), (512, 2048), (128, 128), 0.4])
def test_sizes_by_the_rule(size, scale, keep_ratio):
    rule = {"scale_factor" if scale == 0.4 else "scale": scale, "keep_ratio": keep_ratio}
    resized = mmcv.transforms.Resize(**rule)({"img": np.zeros((*size, 3), np.uint8)})
    assert size_by_rule(size, rule) == resized["img"].shape[:2]
    assert size_by_rule(size, None) == size


@pytest.mark.parametrize("align_corners", [False, True])
def test_logits_are_resized_as_by_torch(align_corners):
    logits = torch.randn(3, 16, 21)
    wanted, sizes = logits[None], [(64, 84), (50, 171)]
    for size in sizes:
        wanted = F.interpolate(wanted, size, mode="bilinear", align_corners=align_corners)
    for top, bottom in ((0, 50), (13, 14), (37, 50)):
        found = _resized_rows(logits.numpy(), sizes, top, bottom, align_corners)
        np.testing.assert_allclose(found, wanted[0, :, top:bottom], atol=2e-4)


@pytest.mark.parametrize(
    "box",
    [
        (10.3, 20.6, 40.1, 33),
        (-5, -7.5, 20, 12),
        (60, 30, 99.5, 47.7),
        (0, 0, 80, 48),
        (3, 3, 4.2, 5),
    ],
)
def test_masks_are_pasted_as_by_mmdet(box):
    mask = torch.rand(28, 28, generator=torch.Generator().manual_seed(0))
    values, rows_and_columns = _do_paste_mask(
        mask[None, None], torch.tensor([box]).float(), 48, 80, skip_empty=True
    )
    wanted = np.zeros((48, 80), bool)
    wanted[rows_and_columns] = values[0].numpy() >= 0.5
    near = np.zeros((48, 80), bool)
    near[rows_and_columns] = np.abs(values[0].numpy() - 0.5) < 1e-4
    found = paste(mask.numpy(), np.array(box, np.float32), (48, 80), 0.5)
    assert ((found == wanted) | near).all()
    assert found.any()


def test_boxes_without_a_side_or_beside_the_image():
    mask = np.ones((28, 28), np.float32)
    for box in ((5, 5, 5, 9), (200, 10, 210, 20), (5, 5, 5, 5)):
        assert paste(mask, np.array(box, np.float32), (48, 80), 0.5).sum() <= 9 * 3


def segmentor_file(
    folder: Path, output: str = "logits", **metadata
) -> tuple[Path, torch.nn.Module]:
    """A segmentor's file, as the command writes it, and its model."""
    model = nano_segmentor("FPNHead")
    content = onnx.load_model_from_string(exported(of_segmentor(model, output)))
    own = dict(task=SEGMENTATION, names=NAMES, palette=None, align_corners=False, threshold=None)
    own |= dict(resize={"scale": [96, 96], "keep_ratio": True}) | metadata
    path = folder / f"{output}.onnx"
    path.write_bytes(with_metadata(content, own))
    return path, model


def predicted_labels(model, path: Path) -> np.ndarray:
    """What MMSegmentation's test pipeline and model make of a file."""
    image = mmcv.imread(str(path))
    height, width = image.shape[:2]
    resized = mmcv.imrescale(image, (96, 96))
    inputs = [torch.from_numpy(resized.transpose(2, 0, 1).copy())]
    data = model.data_preprocessor({"inputs": inputs})
    with torch.no_grad():
        logits = model.encode_decode(data["inputs"], [{"img_shape": resized.shape[:2]}])
    logits = F.interpolate(logits, (height, width), mode="bilinear")
    return logits[0].argmax(0).numpy()


def test_segmentation_is_that_of_the_framework(tmp_path):
    """Of files, one of which is to be turned, Pillow's images and arrays, in batches."""
    file, model = segmentor_file(tmp_path)
    upright, turned = tmp_path / "upright.png", tmp_path / "turned.jpg"
    Image.fromarray(noise(70, 120)).save(upright)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(noise(64, 100, 1)).save(turned, exif=exif, quality=95)
    runner = OnnxRunner(file)
    array = read_pixels(upright)
    found = runner([str(upright), array, Image.open(turned), turned], batch_size=2)
    assert [prediction.size for prediction in found] == [(70, 120)] * 2 + [(100, 64)] * 2
    assert [prediction.source for prediction in found] == [str(upright), "", "", str(turned)]
    for path, *own in ((upright, *found[:2]), (turned, *found[2:])):
        wanted = predicted_labels(model, path)
        assert len(np.unique(wanted)) > 1
        for prediction in own:
            assert prediction.label_map.dtype == np.uint8
            assert (prediction.label_map == wanted).mean() > 0.995
    assert runner(array)[0].draw(factor=1).size == (120, 70)
    assert found[0].names == tuple(NAMES)
    assert found[0].milliseconds > 0


def test_labels_inside_the_file(tmp_path):
    (file, _), (labels, _) = (segmentor_file(tmp_path, output) for output in ("logits", "labels"))
    pixels = noise(192, 192)
    own, other = (OnnxRunner(path)(pixels)[0].label_map for path in (file, labels))
    assert (own == other).mean() > 0.97  # Borders are as coarse as the network's input.


def test_bands_of_large_maps(tmp_path, monkeypatch):
    file, _ = segmentor_file(tmp_path)
    whole = OnnxRunner(file)(noise(70, 120))[0].label_map
    monkeypatch.setattr("flatten_det.onnx_runner._BAND_VALUES", 5 * 120 * 9)
    assert np.array_equal(OnnxRunner(file)(noise(70, 120))[0].label_map, whole)


def detector_file(path: Path) -> Path:
    """Returns one object and two rows of none for each image, whatever is in it."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18]>
        detector (uint8[n, 3, h, w] image) => (
            float[1, 3, 4] boxes, float[1, 3] scores, int64[1, 3] labels, float[1, 3, 4, 4] masks
        ) {{
            boxes = Constant <value = float[1, 3, 4] {{8, 16, 40, 32, 0, 0, 0, 0, 0, 0, 0, 0}}> ()
            scores = Constant <value = float[1, 3] {{0.9, 0, 0}}> ()
            labels = Constant <value = int64[1, 3] {{1, 0, 0}}> ()
            masks = Constant <value = float[1, 3, 4, 4] {{{", ".join("1" * 48)}}}> ()
        }}"""
    )
    metadata = dict(task="instance-segmentation", names=["a", "b"], palette=[[1, 2, 3], [4, 5, 6]])
    metadata |= dict(resize={"scale": [64, 64], "keep_ratio": False}, mask_threshold=0.5)
    path.write_bytes(with_metadata(model, metadata))
    return path


def test_detections_in_pixels_of_the_image(tmp_path):
    (found,) = OnnxRunner(detector_file(tmp_path / "detector.onnx"))(noise(32, 128))
    np.testing.assert_allclose(found.boxes, [[16, 8, 80, 16]])
    assert found.scores.tolist() == pytest.approx([0.9])
    assert found.labels.tolist() == [1]
    mask = decode(found.masks[0])
    assert mask.shape == (32, 128)
    # The corners are further from the middles of the mask's cells than its threshold allows.
    assert mask[9:15, 20:76].all()
    mask[8:16, 16:80] = False
    assert not mask.any()


def test_errors_are_one_line(tmp_path, monkeypatch):
    file, _ = segmentor_file(tmp_path)
    runner = OnnxRunner(file)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    nothing = tmp_path / "nothing.onnx"
    nothing.write_bytes(b"nothing")
    backbone, _ = segmentor_file(tmp_path, "resized", task="backbone")
    stranger, _ = segmentor_file(tmp_path, "labels", task=None)
    for wrong, message in (
        (lambda: runner(broken), "broken.jpg cannot be read"),
        (lambda: runner(tmp_path / "missing.jpg"), "missing.jpg cannot be read"),
        (lambda: runner(np.zeros((4, 4))), "is no image"),
        (lambda: runner(np.zeros((0, 4, 3), np.uint8)), "is no image"),
        (lambda: OnnxRunner(tmp_path / "missing.onnx"), "was not found"),
        (lambda: OnnxRunner(nothing), "cannot be run by onnxruntime"),
        (lambda: OnnxRunner(backbone), "holds a backbone"),
        (lambda: OnnxRunner(stranger), "holds no such model"),
    ):
        with pytest.raises(UserError, match=message) as error:
            wrong()
        assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'flatten-det\[onnx\]'"):
        OnnxRunner(file)


@pytest.mark.slow
def test_the_runner_needs_neither_torch_nor_the_frameworks(tmp_path):
    """In an environment of its own with what the manual names."""
    file, _ = segmentor_file(tmp_path)
    image = tmp_path / "image.png"
    Image.fromarray(noise(70, 120)).save(image)
    wanted = OnnxRunner(file)(image)[0].label_map
    venv.create(tmp_path / "env")
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    # Those of this environment, by links: nothing is fetched.
    own = Path(sysconfig.get_path("purelib"))
    for name in ("numpy", "numpy.libs", "PIL", "pillow.libs", "onnxruntime"):
        (site / name).symlink_to(own / name)
    for name in ("flatten_det", "flatten_det_finders.py"):
        (site / name).symlink_to(ROOT / name)
    code = (
        "import sys\n"
        "from flatten_det.onnx_runner import OnnxRunner\n"
        f"(found,) = OnnxRunner({str(file)!r})([{str(image)!r}])\n"
        "found.save('found.json'); found.save('found.jpg')\n"
        "print(sorted({'torch', 'mmengine', 'mmcv', 'cv2'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [tmp_path / "env" / "bin" / "python", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "[]\n"
    label_map = json.loads((tmp_path / "found.json").read_text())["label_map"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / label_map)), wanted)
    assert (tmp_path / "found.jpg").stat().st_size > 0
