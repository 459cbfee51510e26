"""Labels of large images from a segmentor, without the logits of all classes at full size.

MMSegmentation resizes a head's logits to the size of the input, then to that of the image, and only then
chooses a class for each pixel: for 150 classes at 8192 x 4096 that is 20 GB for each of several copies.
Here the same is done a band of rows at a time.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.models.decode_heads import Mask2FormerHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import BaseSegmentor, EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from .bands import BandedMap, Cropped, Flipped, Resized, Stored

# Bytes of logits at full size, for the images of a batch, above which labels are computed in bands.
LOGITS_LIMIT = 1 << 30
# Numbers in a band: 64 MB in float32. The bands it depends on, and temporaries, take two to three times that.
BAND_VALUES = 1 << 24


def predict_in_bands_when_large(model: nn.Module, limit: int = LOGITS_LIMIT) -> None:
    """Let a segmentor's ``predict`` compute large images in bands of rows.

    The labels are those of mmseg's own way, but for ties between classes within rounding. They are int16
    (mmseg: int64), and ``seg_logits`` are not kept. Left to mmseg are small images, ``mode="slide"``, and
    models whose prediction is not the common one: with ``BaseDecodeHead.predict`` (Semantic FPN, UPerNet,
    SegFormer, ...) or mmseg's Mask2Former.

    Args:
        model: any model; nothing happens to those to which this does not apply.
        limit: bytes of logits at full size, for the images of a batch, up to which images are small.
    """
    if _predicts_as_usual(model):
        model.predict = functools.partial(_predict, model, model.predict, limit)


class PredictLargeImagesInBands(Hook):
    """:func:`predict_in_bands_when_large` for the model that a runner tests."""

    def before_test(self, runner: Runner) -> None:
        """Prepare the model; one under test-time augmentation needs its logits, and is left alone."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        predict_in_bands_when_large(model)


def label_map(scores: BandedMap, threshold: float | None = None) -> Tensor:
    """Choose a class for each pixel, a band at a time.

    Args:
        scores: of the classes; or a single map of logits, which ``threshold`` tells apart.
        threshold: the sigmoid of a single map above which the label is 1, else 0.

    Returns:
        int16, which holds any ignored label that a metric compares it with; (1, H, W).
    """
    labels = None
    for rows, band in scores.bands(BAND_VALUES):
        if labels is None:
            labels = band.new_empty((1, scores.height, scores.width), dtype=torch.int16)
        labels[0, rows] = (
            band.max(0).indices if scores.channels > 1 else band[0].sigmoid() > threshold
        )
    return labels


def _predicts_as_usual(model: nn.Module) -> bool:
    if not isinstance(model, EncoderDecoder):
        return False
    kind, head = type(model), type(model.decode_head)
    return (
        model.test_cfg.get("mode", "whole") == "whole"
        and kind.encode_decode is EncoderDecoder.encode_decode
        and kind.postprocess_result is BaseSegmentor.postprocess_result
        and (
            head.predict is Mask2FormerHead.predict
            or (
                head.predict is BaseDecodeHead.predict
                and head.predict_by_feat is BaseDecodeHead.predict_by_feat
            )
        )
    )


def _predict(
    model: EncoderDecoder,
    predict: Callable[..., list[SegDataSample]],
    limit: int,
    inputs: Tensor,
    data_samples: list[SegDataSample] | None = None,
) -> list[SegDataSample]:
    """``EncoderDecoder.predict``; ``predict`` is the model's own."""
    if data_samples is None:
        return predict(inputs, data_samples)
    metas = [sample.metainfo for sample in data_samples]
    pixels = max(
        inputs[0, 0].numel(), *(meta["ori_shape"][0] * meta["ori_shape"][1] for meta in metas)
    )
    if pixels * model.out_channels * inputs.element_size() * len(metas) <= limit:
        return predict(inputs, data_samples)
    threshold = getattr(model.decode_head, "threshold", None)
    scores = _scores(model, inputs, metas)
    for sample, meta in zip(data_samples, metas, strict=True):
        at_input_size = scores.pop(0)
        labels = label_map(_at_image_size(at_input_size, meta, model.align_corners), threshold)
        sample.set_data({"pred_sem_seg": PixelData(data=labels)})
    return data_samples


def _scores(model: EncoderDecoder, inputs: Tensor, metas: Sequence[dict]) -> list[BandedMap]:
    """What ``encode_decode`` returns, at the size of the input, for each image."""
    head = model.decode_head
    features = model.extract_feat(inputs)
    size = metas[0]["pad_shape" if "pad_shape" in metas[0] else "img_shape"][:2]
    if type(head).predict is Mask2FormerHead.predict:
        samples = [SegDataSample(metainfo=meta) for meta in metas]
        class_logits, mask_logits = (outputs[-1] for outputs in head(features, samples))
        class_scores = class_logits.softmax(-1)[..., :-1]
        return [
            MaskVotes(Resized(Stored(masks), *size, align_corners=False), classes)
            for masks, classes in zip(mask_logits, class_scores, strict=True)
        ]
    logits = head(features)
    return [Resized(Stored(each), *size, head.align_corners) for each in logits]


class MaskVotes(BandedMap):
    """Class scores of pixels: the sum of the masks on them, each times its class probabilities.

    Args:
        masks: logits of Q masks.
        class_scores: ``(Q, classes)``.
    """

    def __init__(self, masks: BandedMap, class_scores: Tensor) -> None:
        super().__init__(class_scores.shape[1], masks.height, masks.width)
        self._masks = masks
        self._class_scores = class_scores

    def rows(self, top: int, bottom: int) -> Tensor:
        masks = self._masks.rows(top, bottom).sigmoid()
        return torch.einsum("qc,qhw->chw", self._class_scores, masks)


def _at_image_size(scores: BandedMap, meta: dict, align_corners: bool) -> BandedMap:
    """What ``postprocess_result`` does: take the padding off, undo a flip, resize to the image."""
    padding = meta.get("img_padding_size", meta.get("padding_size", (0, 0, 0, 0)))
    scores = Cropped(scores, *padding)
    if meta.get("flip"):
        scores = Flipped(scores, meta["flip_direction"])
    height, width = meta["ori_shape"][:2]
    if (scores.height, scores.width) == (height, width):
        return scores
    return Resized(scores, height, width, align_corners)
