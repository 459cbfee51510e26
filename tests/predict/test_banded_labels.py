"""Labels in bands of rows are those that mmseg gives, at a fraction of its memory."""

import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from flatten_det.lab.benchmark.memory import peak_in_fresh_process
from flatten_det.predict.segmentation import label_map, predict_in_bands_when_large, resized, stored

MIB = 1 << 20
MASK2FORMER = "configs/mask2former/flatten-swin-t_mask2former_8xb2-160k_ade20k-512x512.py"
NANO = "configs/quickstart/flatten-pvt-nano_semantic-fpn_shapes.py"


def build(config: str | dict, **options) -> nn.Module:
    """A segmentor with random weights, in evaluation mode."""
    init_default_scope("mmseg")
    cfg = Config.fromfile(config)
    cfg.merge_from_dict({"model.backbone.init_cfg": None, **options})
    torch.manual_seed(0)
    return MODELS.build(cfg.model).eval()


def sample(ori_shape: tuple[int, int], **more) -> SegDataSample:
    return SegDataSample(metainfo={"ori_shape": ori_shape, "img_shape": (97, 131), **more})


@torch.inference_mode()
def check_same_labels(model: nn.Module, inputs: Tensor, *ori_shapes: tuple, **more) -> list:
    """Those in bands are mmseg's, but where the two best classes are closer than rounding."""

    def predict() -> list:
        return model.predict(inputs, [sample(shape, **more) for shape in ori_shapes])

    whole = predict()
    predict_in_bands_when_large(model, limit=0)
    banded = predict()
    for one, other in zip(whole, banded, strict=True):
        labels = other.pred_sem_seg.data
        assert labels.dtype == torch.int16
        assert "seg_logits" not in other
        differ = one.pred_sem_seg.data != labels
        logits = one.seg_logits.data
        if len(logits) > 1:
            chosen = logits.gather(0, labels.long())
            assert (logits.amax(0) - chosen)[differ].numel() == differ.sum()
            assert ((logits.amax(0) - chosen[0]) < 1e-4).all()
        assert differ.float().mean() < 1e-3
        assert len(labels.unique()) > 1
    return banded


@pytest.fixture
def image():
    return torch.randn(2, 3, 97, 131, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("ori_shape", [(97, 131), (203, 301), (48, 65)])
def test_sizes(image, ori_shape, align_corners):
    model = build(NANO, **{"model.decode_head.align_corners": align_corners})
    check_same_labels(model, image, ori_shape, ori_shape)


@pytest.mark.parametrize("flip", [None, "horizontal", "vertical"])
def test_padding_and_flip(image, flip):
    """The input is padded at the right and the bottom, as by mmseg's preprocessor."""
    meta = dict(img_shape=(90, 120), pad_shape=(97, 131), img_padding_size=(0, 11, 0, 7))
    meta |= dict(flip=flip is not None, flip_direction=flip)
    check_same_labels(build(NANO), image, (90, 120), (200, 250), **meta)


def test_one_map_and_a_threshold(image):
    model = build(
        NANO,
        **{
            "model.decode_head.num_classes": 2,
            "model.decode_head.out_channels": 1,
            "model.decode_head.threshold": 0.45,
            "model.decode_head.loss_decode": {"use_sigmoid": True, "class_weight": None},
        },
    )
    banded = check_same_labels(model, image, (203, 301), (203, 301))
    assert set(banded[0].pred_sem_seg.data.unique().tolist()) == {0, 1}


def test_small_images_are_left_to_mmseg(image):
    model = build(NANO)
    predict_in_bands_when_large(model)
    with torch.inference_mode():
        (found,) = model.predict(image[:1], [sample((97, 131))])
    assert found.seg_logits.data.shape == (7, 97, 131)


def test_a_small_input_for_a_large_image(image):
    """Mmseg resizes the logits to the image."""
    model = build(NANO)
    predict_in_bands_when_large(model, limit=7 * 4 * 97 * 131)
    with torch.inference_mode():
        (small,) = model.predict(image[:1], [sample((97, 131))])
        (large,) = model.predict(image[:1], [sample((970, 1310))])
    assert "seg_logits" in small
    assert "seg_logits" not in large
    assert large.pred_sem_seg.data.shape == (1, 970, 1310)


def test_other_ways_to_predict_are_left_to_mmseg():
    window = {"mode": "slide", "crop_size": (64, 64), "stride": (32, 32)}
    slides = build(NANO, **{"model.test_cfg": window})
    for model in (slides, nn.Linear(1, 1)):
        predict_in_bands_when_large(model, limit=0)
        assert "predict" not in vars(model)


@torch.inference_mode()
def test_mask2former_in_windows(image):
    """Each window is predicted as an image of its size; where they overlap, scores are averaged."""
    model = build(MASK2FORMER)
    model.test_cfg.update(mode="slide", crop_size=(64, 96), stride=(33, 35))
    padded = [sample((97, 131), pad_shape=(97, 131)) for _ in range(2)]
    found = model(image, padded, mode="predict")
    scores, counts = torch.zeros(2, 150, 97, 131), torch.zeros(97, 131)
    for top in (0, 33):
        for left in (0, 35):
            window = (..., slice(top, top + 64), slice(left, left + 96))
            features = model.extract_feat(image[window])
            scores[window] += model.decode_head.predict(
                features, [dict(img_shape=(64, 96))] * 2, None
            )
            counts[window] += 1
    for one, expected in zip(found, scores / counts, strict=True):
        torch.testing.assert_close(one.seg_logits.data, expected)


def test_mask2former(image):
    """Its class scores are not linear in what is resized."""
    model = build(MASK2FORMER)
    # At its random weights, all masks are alike and of one class.
    for layer in (model.decode_head.cls_embed, *model.decode_head.mask_embed[::2]):
        nn.init.normal_(layer.weight)
    check_same_labels(model, image, (203, 301), (203, 301))


LOGITS = (150, 256, 256)
SIZE = (1024, 1024)  # 600 MiB of logits


def at_once() -> Callable[[], Tensor]:
    """A call that does what mmseg does."""
    logits = torch.zeros(LOGITS)
    return lambda: F.interpolate(logits[None], SIZE, mode="bilinear")[0].argmax(0)


def in_bands() -> Callable[[], Tensor]:
    logits = torch.zeros(LOGITS)
    return lambda: label_map(resized(stored(logits), *SIZE, align_corners=False))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory():
    whole, banded = (peak_in_fresh_process(call, threads=1) for call in (at_once, in_bands))
    assert whole.failure is banded.failure is None
    assert whole.bytes > 600 * MIB
    assert banded.bytes < 250 * MIB
