"""The public predictor: images of every form, what is left out, and what an error says."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from colour_finder import HEIGHT, WIDTH, config, paint
from malicious_files import served
from PIL import Image
from pycocotools import mask as coco_mask

from flatten_det import Predictor
from flatten_det.data.tiling import Tiling
from flatten_det.errors import UserError
from flatten_det.files import downloads
from flatten_det.predict.predictor import PredictionWarning

OBJECTS = [(0, (30, 20, 90, 70)), (1, (300, 120, 340, 390))]
pytestmark = pytest.mark.filterwarnings("ignore:no weights given")
SEGMENTOR = "flatten-pvt-nano_semantic-fpn_shapes"


def without_classes():
    cfg = config()
    cfg.test_dataloader.dataset.type = "BaseDetDataset"
    cfg.test_dataloader.dataset.metainfo = {}
    return cfg


def make(**options) -> Predictor:
    return Predictor(config(), full_size=True, device="cpu", **options)


@pytest.fixture
def folder(tmp_path):
    """Two images; the second one is turned by its metadata alone."""
    path = paint(tmp_path / "a.png", OBJECTS)
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned by 90 degrees, clockwise.
    image = Image.open(path).rotate(90, expand=True)
    image.save(tmp_path / "b.jpg", exif=exif, quality=100, subsampling=0)
    return tmp_path


@pytest.fixture
def server(folder):
    with served(folder) as address:
        yield address


def check(prediction, objects=OBJECTS):
    found = zip(
        prediction.labels.tolist(), map(tuple, prediction.boxes.astype(int).tolist()), strict=True
    )
    assert sorted(found) == sorted(objects)
    assert prediction.size == (HEIGHT, WIDTH)
    assert prediction.names == ("blue", "green")
    assert prediction.scores.tolist() == sorted(prediction.scores, reverse=True)
    assert prediction.milliseconds > 0
    bitmaps = prediction.bitmaps()
    assert bitmaps.sum((1, 2)).tolist() == [
        (right - left) * (bottom - top)
        for left, top, right, bottom in prediction.boxes.astype(int).tolist()
    ]
    np.testing.assert_array_equal(
        bitmaps, [coco_mask.decode(mask).astype(bool) for mask in prediction.masks]
    )


def test_every_form_of_an_image(folder, server):
    rgb = np.asarray(Image.open(folder / "a.png"))
    chw = torch.from_numpy(rgb.transpose(2, 0, 1).copy())
    alpha = np.dstack([rgb, np.zeros(rgb.shape[:2], np.uint8)])
    forms = [
        str(folder / "a.png"),
        folder / "a.png",
        str(folder / "*.png"),
        f"{server}/a.png",
        Image.open(folder / "a.png"),
        Image.fromarray(alpha),
        Image.fromarray(rgb).quantize(8),
        rgb,
        alpha,
        rgb[::-1][::-1],
        chw,
        chw.float() / 255,
        chw.half() / 255,
        (chw.double() / 255).requires_grad_(),
    ]
    predictor = make(batch_size=4)
    predictions = predictor(iter(forms))
    assert len(predictions) == len(forms)
    assert predictor.broken == []
    for prediction in predictions:
        check(prediction)
        np.testing.assert_array_equal(prediction.image(), rgb)
    sources = [str(folder / "a.png")] * 3 + [f"{server}/a.png"] + [""] * 10
    assert [each.source for each in predictions] == sources
    for form in forms:  # Alone, too; not only in a list.
        check(predictor(form)[0])


def test_bgr_is_of_arrays_alone(folder):
    bgr = cv2.imread(str(folder / "a.png"))
    predictor = make(bgr=True)
    alpha = cv2.cvtColor(bgr, cv2.COLOR_BGR2BGRA)
    for prediction in predictor([bgr, alpha, Image.open(folder / "a.png"), folder / "a.png"]):
        check(prediction)
        np.testing.assert_array_equal(prediction.image(), bgr[..., ::-1])


@pytest.mark.parametrize("form", ["file", "folder", "PIL"])
def test_metadata_turn_all_forms(folder, form):
    image = folder / "b.jpg"
    given = {"file": image, "folder": folder, "PIL": Image.open(image)}[form]
    prediction = make()(given)[-1]
    assert prediction.size == (HEIGHT, WIDTH)
    turned = cv2.imread(str(image))[..., ::-1]
    assert np.abs(prediction.image().astype(int) - turned).max() <= 2


def test_grey_and_16_bits(tmp_path):
    """They reach the model as OpenCV reads them from a file."""
    grey = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
    deep = grey.astype(np.uint16) * 257
    for name, pixels in (("grey", grey), ("deep", deep)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
        read = cv2.imread(str(tmp_path / f"{name}.png"))[..., ::-1]
        forms = [Image.open(tmp_path / f"{name}.png"), *([grey] if name == "grey" else [])]
        for prediction in make()(forms):
            np.testing.assert_array_equal(prediction.image(), read)


def test_the_owner_of_an_array_may_write_the_next_image_there():
    buffer = np.empty((HEIGHT, WIDTH, 3), np.uint8)

    def frames():
        for red in (10, 20, 30):
            buffer[:] = red
            yield buffer

    for bgr in (False, True):
        predictions = make(batch_size=3, bgr=bgr)(frames())
        assert [each.image().max() for each in predictions] == [10, 20, 30]


def test_a_stream_reads_as_it_goes():
    taken = []

    def frames():
        for number in range(5):
            taken.append(number)
            yield np.zeros((20, 20, 3), np.uint8)

    stream = make().stream(frames())
    next(stream)
    assert len(taken) == 1
    assert sum(1 for _ in stream) == 4


def test_what_is_broken_is_named_and_the_rest_is_done(folder, server, tmp_path):
    (tmp_path / "empty").mkdir()
    (folder / "broken.jpg").write_bytes(b"nothing")
    content = io.BytesIO()
    Image.open(folder / "a.png").save(content, "png")
    truncated = Image.open(io.BytesIO(content.getvalue()[: len(content.getvalue()) // 2]))
    rgb = np.asarray(Image.open(folder / "a.png"))
    chw = torch.from_numpy(rgb.transpose(2, 0, 1).copy())
    faulty = [
        (folder / "broken.jpg", "broken.jpg cannot be decoded"),
        (tmp_path / "missing.jpg", "missing.jpg: no image found"),
        (tmp_path / "empty", "empty: no image found"),
        (tmp_path / "clip.mp4", "clip.mp4 is a video: give its frames"),
        (f"{server}/missing.jpg", "/missing.jpg: the server answers 404"),
        (f"{server}/broken.jpg", "/broken.jpg cannot be decoded"),
        ("http://127.0.0.1:9/a.jpg", "cannot be downloaded"),
        (truncated, r"\(PngImageFile\): it cannot be decoded"),
        (rgb.astype(float), "of float64 is none"),
        (rgb.transpose(2, 0, 1), r"shape \(3, 500, 700\)"),
        (rgb[None], r"shape \(1, 500, 700, 3\)"),
        (rgb[:0], r"shape \(0, 700, 3\)"),
        (chw[None], r"shape \(1, 3, 500, 700\)"),
        (chw.permute(1, 2, 0), r"shape \(500, 700, 3\)"),
        (chw.float(), "values are 0 to 255"),
        (chw.float() * torch.nan, "values are nan"),
        (chw.long(), "tensor of torch.int64"),
        (None, r"\(NoneType\): it is none"),
        ([rgb], r"\(list\): it is none"),
    ]
    predictor = make(batch_size=2)
    for bad, reason in faulty:
        with pytest.warns(PredictionWarning, match=reason):
            predictions = predictor([rgb, folder / "a.png", bad, chw])
        assert len(predictions) == 3
        (line,) = predictor.broken
        assert "\n" not in line
        assert isinstance(bad, str | Path) or line.startswith("image 2 (")
        for prediction in predictions:
            check(prediction)
        with pytest.warns(PredictionWarning), pytest.raises(UserError, match=reason):
            predictor([bad])


def test_too_large_images_are_not_decoded(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # To be restored.
    images = [folder / "a.png", Image.open(folder / "a.png")]
    cfg = config()
    cfg.max_image_pixels = 10_000
    predictor = Predictor(cfg, device="cpu")
    for image in images:
        with (
            pytest.warns(PredictionWarning),
            pytest.raises(UserError, match=r"10000 (pixels|are)"),
        ):
            predictor(image)


def test_addresses_are_bounded(folder, server, monkeypatch):
    monkeypatch.setattr("flatten_det.predict.engine.MAX_BYTES", 100)
    with pytest.warns(PredictionWarning), pytest.raises(UserError, match="larger than 100 bytes"):
        make()(f"{server}/a.png")
    monkeypatch.setattr(downloads, "LONGEST_SECONDS", 0)
    monkeypatch.setattr("flatten_det.predict.engine.MAX_BYTES", 1 << 20)
    with pytest.warns(PredictionWarning), pytest.raises(UserError, match="longer than 0 s"):
        make()(f"{server}/a.png")


def test_no_images():
    for images in ([], (), iter([])):
        with pytest.raises(UserError, match="there are no images"):
            make()(images)
    with pytest.raises(UserError, match="int is no image: give a path"):
        make()(3)


def test_errors_of_a_generator_are_its_own():
    def frames():
        raise ZeroDivisionError
        yield

    with pytest.raises(ZeroDivisionError):
        make()(frames())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"model": "flatten-pvt-nano_semantic-fpn_shape"},
            "did you mean flatten-pvt-nano_semantic",
        ),
        ({"model": SEGMENTOR, "weights": "missing.pth"}, "missing.pth not found"),
        ({"model": SEGMENTOR, "device": "cuda:99"}, "device cuda:99 cannot be used"),
        ({"model": SEGMENTOR, "device": "gpu"}, "device gpu cannot be used: .*such as cpu"),
        ({"model": without_classes()}, "names no classes: add metainfo"),
        ({"model": SEGMENTOR, "precision": "fp61"}, "did you mean fp16"),
        ({"model": SEGMENTOR, "batch_size": 0}, "batch_size is 0"),
        ({"model": SEGMENTOR, "tiling": Tiling(64)}, "--tile is for detectors"),
        ({"model": SEGMENTOR, "tiling": 0}, "a side of at least 1 pixel"),
    ],
)
def test_one_line_says_what_is_wrong(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        Predictor(**{"device": "cpu"} | arguments)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("default:no weights given")
def test_random_weights_come_with_a_warning():
    with pytest.warns(PredictionWarning, match="no weights given: they, and so predictions, are"):
        make()


def test_tiles_give_what_the_whole_gives(folder):
    (whole,) = make()(folder / "a.png")
    rgb = np.asarray(Image.open(folder / "a.png"))
    forms = [folder / "a.png", rgb, Image.fromarray(rgb)]
    tilings = (Tiling(300, 0.4), 300)
    for prediction in [each for tiling in tilings for each in make(tiling=tiling)(forms)]:
        check(prediction)
        assert {each["counts"] for each in prediction.masks} == {
            each["counts"] for each in whole.masks
        }


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_precisions(precision):
    torch.manual_seed(0)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name in ("mask-rcnn_flatten-pvt-nano_fpn_shapes", SEGMENTOR):
        predictor = Predictor(name, device="cpu", precision=precision)
        kinds = set()
        for module in predictor.model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(lambda *args, kinds=kinds: kinds.add(args[2].dtype))
        (prediction,) = predictor(image)
        wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        assert wanted in kinds
        if prediction.boxes is None:
            assert prediction.label_map.dtype == np.uint8
        else:
            assert prediction.boxes.dtype == prediction.scores.dtype == np.float32
