"""Labels of large images from a segmentor, band by band, without the logits of all classes at full size."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.models.decode_heads import Mask2FormerHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import BaseSegmentor, EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ..files.checkpoints import unwrapped

# Bytes of logits at full size, for the images of a batch, above which labels are computed in bands.
LOGITS_LIMIT = 1 << 30
# Numbers in a band: 64 MB in float32. The bands it depends on, and temporaries, take two to three times that.
BAND_VALUES = 1 << 24


class BandedMap(NamedTuple):
    """A map of shape ``(channels, height, width)`` whose rows are computed when they are asked for.

    ``rows(top, bottom)`` are the rows ``top`` to ``bottom - 1``: ``(channels, bottom - top, width)``.
    """

    channels: int
    height: int
    width: int
    rows: Callable[[int, int], Tensor]

    def bands(self, max_values: int) -> Iterator[tuple[slice, Tensor]]:
        """All rows in order, as bands of at most ``max_values`` numbers, or of one row."""
        count = max(max_values // (self.channels * self.width), 1)
        for top in range(0, self.height, count):
            bottom = min(top + count, self.height)
            yield slice(top, bottom), self.rows(top, bottom)


def stored(values: Tensor) -> BandedMap:
    """A map that is there: a tensor ``(C, H, W)``."""
    return BandedMap(*values.shape, lambda top, bottom: values[:, top:bottom])


def cropped(
    source: BandedMap, left: int = 0, right: int = 0, top: int = 0, bottom: int = 0
) -> BandedMap:
    """A map without its margins, in rows and pixels."""
    columns = slice(left, source.width - right)
    return BandedMap(
        source.channels,
        source.height - top - bottom,
        source.width - left - right,
        lambda first, end: source.rows(top + first, top + end)[..., columns],
    )


def flipped(source: BandedMap, direction: str) -> BandedMap:
    """A mirrored map; ``direction`` is ``"horizontal"`` (left and right swap) or ``"vertical"``."""
    is_vertical = {"horizontal": False, "vertical": True}[direction]

    def rows(top: int, bottom: int) -> Tensor:
        if is_vertical:
            return source.rows(source.height - bottom, source.height - top).flip(1)
        return source.rows(top, bottom).flip(2)

    return source._replace(rows=rows)


def resized(source: BandedMap, height: int, width: int, align_corners: bool) -> BandedMap:
    """What ``F.interpolate(source, (height, width), mode="bilinear")`` gives, up to rounding."""
    all_above, weights = _row_weights(height, source.height, align_corners)

    def rows(top: int, bottom: int) -> Tensor:
        above = all_above[top:bottom]
        below = (above + 1).clamp(max=source.height - 1)
        first = int(above[0])
        given = source.rows(first, int(below[-1]) + 1)
        if width != source.width:
            size = (given.shape[1], width)
            given = F.interpolate(given[None], size, mode="bilinear", align_corners=align_corners)[
                0
            ]
        if height == source.height:
            return given[:, : bottom - top]
        band = given.new_empty((source.channels, bottom - top, width))
        # Row by row: to gather the two neighbours of all rows first takes three times as long.
        neighbours = ((above - first).tolist(), (below - first).tolist())
        for row, (one, other, weight) in enumerate(
            zip(*neighbours, weights[top:bottom].tolist(), strict=True)
        ):
            band[:, row] = torch.lerp(given[:, one], given[:, other], weight)
        return band

    return BandedMap(source.channels, height, width, rows)


def _row_weights(height: int, source_height: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    """For each row of a resized map: the source row above it, and the weight of the one below that.

    In float32, as torch's kernels compute it: exact numbers would differ from theirs by 1e-4 of a row at a
    height of 4,096, which shows in the result.
    """
    rows = torch.arange(height, dtype=torch.float32)
    if align_corners:
        positions = rows * (torch.tensor(source_height - 1.0) / max(height - 1, 1))
    else:
        scale = torch.tensor(float(source_height)) / height
        positions = ((rows + 0.5) * scale - 0.5).clamp(min=0)
    above = positions.long().clamp(max=source_height - 1)
    return above, positions - above


def mask_votes(masks: BandedMap, class_scores: Tensor) -> BandedMap:
    """Scores of pixels: the sum of the Q masks on them, each times its class scores ``(Q, classes)``."""

    def rows(top: int, bottom: int) -> Tensor:
        return torch.einsum("qc,qhw->chw", class_scores, masks.rows(top, bottom).sigmoid())

    return masks._replace(channels=class_scores.shape[1], rows=rows)


def predict_in_bands_when_large(model: nn.Module, limit: int = LOGITS_LIMIT) -> None:
    """Let a segmentor's ``predict`` compute large images in bands of rows.

    The labels are those of mmseg's own way, but for ties between classes within rounding. They are int16
    (mmseg: int64), and ``seg_logits`` are not kept. Left to mmseg are small images, ``mode="slide"``, and
    models whose prediction is not the common one: with ``BaseDecodeHead.predict`` (Semantic FPN, UPerNet,
    SegFormer, ...) or mmseg's Mask2Former. Small is a batch of images with up to ``limit`` bytes of logits at
    full size.
    """
    if _predicts_as_usual(model):
        model.predict = functools.partial(_predict, model, model.predict, limit)


class PredictLargeImagesInBands(Hook):
    """:func:`predict_in_bands_when_large` for the model that a runner tests."""

    def before_test(self, runner: Runner) -> None:
        """Prepare the model; one under test-time augmentation needs its logits, and is left alone."""
        model = unwrapped(runner.model)
        predict_in_bands_when_large(model)


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
        at_image_size = _at_image_size(scores.pop(0), meta, model.align_corners)
        labels = label_map(at_image_size, threshold)
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
            mask_votes(resized(stored(masks), *size, align_corners=False), classes)
            for masks, classes in zip(mask_logits, class_scores, strict=True)
        ]
    logits = head(features)
    return [resized(stored(each), *size, head.align_corners) for each in logits]


def _at_image_size(scores: BandedMap, meta: dict, align_corners: bool) -> BandedMap:
    """What ``postprocess_result`` does: take the padding off, undo a flip, resize to the image."""
    padding = meta.get("img_padding_size", meta.get("padding_size", (0, 0, 0, 0)))
    scores = cropped(scores, *padding)
    if meta.get("flip"):
        scores = flipped(scores, meta["flip_direction"])
    height, width = meta["ori_shape"][:2]
    if (scores.height, scores.width) == (height, width):
        return scores
    return resized(scores, height, width, align_corners)


def label_map(scores: BandedMap, threshold: float | None = None) -> Tensor:
    """Choose a class for each pixel, a band at a time: (1, H, W), of a single map the label 0 or 1.

    In int16, which holds any ignored label that a metric compares it with. ``threshold``: the sigmoid of a
    single map above which the label is 1.
    """
    labels = None
    for rows, band in scores.bands(BAND_VALUES):
        if labels is None:
            labels = band.new_empty((1, scores.height, scores.width), dtype=torch.int16)
        labels[0, rows] = (
            band.max(0).indices if scores.channels > 1 else band[0].sigmoid() > threshold
        )
    return labels
