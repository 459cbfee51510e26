"""How models with a backbone of this package are called: told of padding, and without batch mates."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mmengine.model import BaseModel
from torch import Tensor, nn

from ..backbones.base import DenseBackbone, of_equal_size, sizes_within, valid_regions


def call(model: BaseModel, *args: Any, **kwargs: Any) -> Any:
    """``BaseModel.__call__`` of a model that has a backbone of this package; others are called as ever.

    Backbones of this package are told which part of each image is no padding, heads of a segmentor how
    large a sliding window is, and predictions for images of several sizes are made apart, where a backbone
    masks padding.
    """
    if not any(isinstance(module, DenseBackbone) for module in model.modules()):
        return nn.Module.__call__(model, *args, **kwargs)
    given = dict(zip(("inputs", "data_samples", "mode"), args, strict=False)) | kwargs
    images, data_samples = given.get("inputs"), given.get("data_samples")
    if given.get("mode") == "predict":
        _tell_sizes_of_windows(model)
    if given.get("mode") == "predict" and isinstance(images, Tensor) and images.dim() == 4:
        # Each image's own share of the padding, up to the divisor; MMDetection's preprocessor says it.
        sizes = sizes_within(images, data_samples, "pad_shape")
        if sizes is not None and len(set(sizes)) > 1 and _masks_padding(model):
            return _predict_by_size(model, images, data_samples, sizes)
    with valid_regions(images, data_samples):
        return nn.Module.__call__(model, *args, **kwargs)


def _tell_sizes_of_windows(model: BaseModel) -> None:
    """Let the heads of a segmentor know how large a sliding window is.

    MMSegmentation tells the first image's ``img_shape`` only; Mask2Former goes by ``pad_shape``, which
    stays that of the whole image.
    """
    slides = getattr(getattr(model, "test_cfg", None), "mode", None) == "slide"
    if slides and "encode_decode" not in vars(model) and hasattr(model, "encode_decode"):
        model.encode_decode = partial(_encode_decode_window, model)


def _encode_decode_window(
    model: BaseModel, inputs: Tensor, batch_img_metas: Sequence[Mapping[str, Any]]
) -> Tensor:
    size = inputs.shape[2:]
    shapes = dict.fromkeys(("img_shape", "pad_shape", "batch_input_shape"), size)
    return type(model).encode_decode(model, inputs, [meta | shapes for meta in batch_img_metas])


def _masks_padding(model: nn.Module) -> bool:
    return any(isinstance(m, DenseBackbone) and m.mask_padding for m in model.modules())


def _predict_by_size(
    model: BaseModel, images: Tensor, data_samples: Sequence, sizes: Sequence[tuple[int, int]]
) -> list:
    """Predictions for images of one size together, in the order of the batch.

    Necks and heads mix the padding into an image as well: group norms take their statistics from the whole
    map, attention looks at all of it, a convolution's bias fills what was zero.
    """
    predictions: list = [None] * len(images)
    for (height, width), members in of_equal_size(sizes).items():
        own = [data_samples[index] for index in members]
        for sample in own:
            sample.set_metainfo({"batch_input_shape": (height, width)})
        found = call(model, images[:, :, :height, :width][members], own, mode="predict")
        for index, prediction in zip(members, found, strict=True):
            predictions[index] = prediction
    return predictions
