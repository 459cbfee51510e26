"""What is exported: modules from images to feature maps, or to labels and logits, of a model's own parts."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.model import ImgDataPreprocessor
from mmengine.model.utils import revert_sync_batchnorm
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.utils import Upsample
from torch import Tensor, nn

from ..backbones.base import NORM_LAYERS, DenseBackbone
from ..errors import UserError
from .detectors import end_to_end

FULL, HALF = "fp32", "fp16"
# What segmentors return.
LOGITS, RESIZED, LABELS = "logits", "resized", "labels"
SUPPORTED = (
    "segmentors whose head predicts as mmseg's BaseDecodeHead does (Semantic FPN, UPerNet, "
    "SegFormer, ...)"
)


class Features(nn.Module):
    """A backbone: normalised images ``(B, 3, H, W)``, float32, to its feature maps, float32."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.strides = backbone, backbone.strides

    @property
    def output_names(self) -> list[str]:
        return [f"stride{stride}" for stride in self.strides]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outs = self.backbone(image.to(next(self.backbone.parameters()).dtype))
        return tuple(out.float() for out in outs)


class Normalised(nn.Module):
    """Images RGB ``(B, 3, H, W)``, uint8, as a model's preprocessor hands them on: float32."""

    def __init__(self, preprocessor: ImgDataPreprocessor) -> None:
        super().__init__()
        normalises = preprocessor._enable_normalize
        for name, value in (("mean", 0.0), ("std", 1.0)):
            own = getattr(preprocessor, name) if normalises else torch.full((3, 1, 1), value)
            self.register_buffer(name, own.clone(), persistent=False)
        # Files are loaded as BGR, which either conversion turns over.
        self.takes_rgb = preprocessor._channel_conversion

    def forward(self, image: Tensor) -> Tensor:
        image = image.float()
        if not self.takes_rgb:
            image = image.flip(1)
        return (image - self.mean) / self.std


class Segmentation(nn.Module):
    """A segmentor: images RGB ``(B, 3, H, W)``, uint8, to what is chosen by ``output``.

    - ``logits``: float32 ``(B, C, h, w)``, as the head returns them, a fourth of the image's size or so
    - ``resized``: the same at the image's size
    - ``labels``: int64 ``(B, H, W)``
    """

    def __init__(self, model: EncoderDecoder, output: str) -> None:
        super().__init__()
        self.normalised = Normalised(model.data_preprocessor)
        self.backbone = model.backbone
        self.neck = model.neck if model.with_neck else nn.Identity()
        self.head = model.decode_head
        self.output = output

    @property
    def output_names(self) -> list[str]:
        return [LABELS if self.output == LABELS else LOGITS]

    def forward(self, image: Tensor) -> Tensor:
        x = self.normalised(image).to(next(self.backbone.parameters()).dtype)
        maps = tuple(map(_with_size_to_ask, self.backbone(x)))
        logits = self.head(self.neck(maps)).float()
        if self.output == LOGITS:
            return logits
        size, align_corners = tuple(image.shape[2:]), self.head.align_corners
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
        if self.output == RESIZED:
            return logits
        if self.head.out_channels > 1:
            return logits.argmax(1)
        return (logits[:, 0].sigmoid() > self.head.threshold).long()


class Detection(nn.Module):
    """A detector: images RGB ``(B, 3, H, W)``, uint8, to what :func:`.detectors.end_to_end` returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.normalised = Normalised(model.data_preprocessor)
        self.detector = end_to_end(model)

    @property
    def output_names(self) -> list[str]:
        return self.detector.output_names

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.detector(self.normalised(image))


def of_backbone(model: nn.Module) -> Features:
    """The graph of a backbone, or of the backbone in a detector or segmentor.

    Raises:
        UserError: it is none of flatten_det.
    """
    backbone = getattr(model, "backbone", model)
    if not isinstance(backbone, DenseBackbone):
        raise UserError(
            f"a {type(backbone).__name__} cannot be exported alone: it is no backbone of flatten_det"
        )
    return Features(backbone.eval())


def of_segmentor(model: nn.Module, output: str) -> Segmentation:
    """The graph of a segmentor.

    Raises:
        UserError: it predicts in another way than the graph does; the message says what is supported.
    """
    _check_segmentor(model)
    return Segmentation(model, output).eval()


def of_detector(model: nn.Module) -> Detection:
    """The graph of a detector; a UserError names the part that predicts in another way."""
    return Detection(model).eval()


def _check_segmentor(model: nn.Module) -> None:
    head = getattr(model, "decode_head", None)
    part = type(model if head is None or isinstance(head, nn.ModuleList) else head)
    predicts_as_usual = (
        isinstance(model, EncoderDecoder)
        and type(model).encode_decode is EncoderDecoder.encode_decode
        and isinstance(head, BaseDecodeHead)
        and part.predict is BaseDecodeHead.predict
        and part.predict_by_feat is BaseDecodeHead.predict_by_feat
    )
    if not predicts_as_usual:
        raise UserError(
            f"a {part.__name__} cannot be exported yet: supported are {SUPPORTED}; --backbone exports the "
            "backbone of any model"
        )
    if model.test_cfg.get("mode", "whole") != "whole":
        raise UserError(
            "the config predicts in sliding windows, and an exported model takes the whole image: add "
            "--cfg-options model.test_cfg.mode=whole"
        )
    if getattr(model.data_preprocessor, "test_cfg", None):
        raise UserError(
            "data_preprocessor.test_cfg pads images for the test, which exported segmentors do not: add "
            "--cfg-options model.data_preprocessor.test_cfg=None"
        )


class _MeanOverParts(nn.Module):
    """``nn.AdaptiveAvgPool2d`` for a graph, in which the image's size is a symbol: two matrix products."""

    def __init__(self, output_size: int | Sequence[int]) -> None:
        super().__init__()
        self.counts = (output_size,) * 2 if isinstance(output_size, int) else tuple(output_size)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = map(_shares, self.counts, x.shape[2:], (x, x))
        return rows @ x @ columns.transpose(0, 1)


def _shares(count: int, size: int, like: Tensor) -> Tensor:
    """The share of each of ``size`` places in each of ``count`` parts of an axis: ``(count, size)``."""
    parts = torch.arange(count, device=like.device).unsqueeze(1)
    first, end = parts * size // count, ((parts + 1) * size + count - 1) // count
    ticks = torch.arange(size, device=like.device)
    return ((ticks >= first) & (ticks < end)).to(like.dtype) / (end - first).to(like.dtype)


class _Enlarged(nn.Module):
    """mmseg's ``Upsample`` by a whole number for a graph: its rounding makes a number of the size."""

    def __init__(self, own: Upsample) -> None:
        super().__init__()
        self.factor = int(own.scale_factor)
        self.settings = dict(mode=own.mode, align_corners=own.align_corners)

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(side * self.factor for side in x.shape[2:])
        return F.interpolate(x, size, **self.settings)


class _NormInFullPrecision(nn.Module):
    """A normalisation whose sums and weights are float32 in a network of half precision."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.float()).to(x.dtype)


def _with_size_to_ask(x: Tensor) -> Tensor:
    """``x``, whose size ONNX's older exporter does not take for that of the example: it was padded."""
    return F.pad(x, (0, 0, 0, 0)) if torch.jit.is_tracing() else x


class _PaddedFirst(nn.Module):
    """A convolution for ONNX's older exporter, see :func:`_with_size_to_ask`; runtimes undo it."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        (height, width), conv.padding = conv.padding, (0, 0)
        self.conv, self.pads = conv, (width, width, height, height)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pads))


def prepared(graph: nn.Module, precision: str = FULL, legacy: bool = False) -> nn.Module:
    """A copy of a graph that exporters take for images of any size: same results, but for rounding.

    Args:
        precision: ``fp16`` for weights and products in half precision; norms and attention stay in float32.
        legacy: for ONNX's older exporter.
    """
    graph = revert_sync_batchnorm(deepcopy(graph)).eval().requires_grad_(False)
    graph = fuse_conv_bn(graph)
    _replace(graph, _is_pool, lambda pool: _MeanOverParts(pool.output_size))
    _replace(graph, _enlarges, _Enlarged)
    if legacy:
        for name, part in graph.named_children():
            if name != "backbone":
                _replace(part, _pads_zeros, _PaddedFirst)
    if precision == HALF and isinstance(graph, Detection):  # Pixels of boxes need more.
        _to_half(graph.detector.backbone)
        graph.detector.backbone = Features(graph.detector.backbone)
    elif precision == HALF:
        _to_half(graph)
    return graph


def _pads_zeros(module: nn.Module) -> bool:
    is_numbers = type(module) is nn.Conv2d and not isinstance(module.padding, str)
    return is_numbers and module.padding_mode == "zeros"


def _is_pool(module: nn.Module) -> bool:
    return type(module) is nn.AdaptiveAvgPool2d


def _enlarges(module: nn.Module) -> bool:
    factor = getattr(module, "scale_factor", None)
    is_whole = isinstance(factor, float) and factor.is_integer()
    return type(module) is Upsample and not module.size and is_whole


def _to_half(graph: nn.Module) -> None:
    _replace(graph, lambda module: isinstance(module, NORM_LAYERS), _NormInFullPrecision)
    kept: set[int] = set()
    for module in graph.modules():
        if isinstance(module, _NormInFullPrecision | Normalised):
            kept |= {id(tensor) for tensor in _tensors(module)}
    for tensor in _tensors(graph):
        if id(tensor) not in kept and tensor.is_floating_point():
            tensor.data = tensor.data.half()


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _replace(
    module: nn.Module, is_meant: Callable[[nn.Module], bool], make: Callable[[Any], nn.Module]
) -> None:
    for name, child in list(module.named_children()):
        if is_meant(child):
            setattr(module, name, make(child))
        else:
            _replace(child, is_meant, make)
