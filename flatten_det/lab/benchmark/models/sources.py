"""Where models come from: flatten_det's names, MMDetection, timm, torchvision, and config files."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial

import mmcv.cnn
import timm
import torchvision
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from ....backbones import BACKBONES, build_backbone
from ....config import load_config, parse_cfg_options
from ....errors import UserError
from .candidates import as_config
from .settings import Size
from .whole import build_whole

# MMDetection's own configs of these backbones: their arguments are read from there.
MMDET = {
    "pvt-t": "pvt/retinanet_pvt-t_fpn_1x_coco.py",
    "pvt-s": "pvt/retinanet_pvt-s_fpn_1x_coco.py",
    "pvt-m": "pvt/retinanet_pvt-m_fpn_1x_coco.py",
    "pvt-l": "pvt/retinanet_pvt-l_fpn_1x_coco.py",
    **{f"pvtv2-b{i}": f"pvt/retinanet_pvtv2-b{i}_fpn_1x_coco.py" for i in range(6)},
    "swin-t": "swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py",
    "swin-s": "swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py",
    "resnet-50": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "resnet-101": "mask_rcnn/mask-rcnn_r101_fpn_1x_coco.py",
}


@dataclass(frozen=True)
class Source:
    """A model that can be built.

    Attributes:
        build: makes it for images of a size, with random weights, on torch's default device.
        whole: a detector or segmentor rather than a backbone.
    """

    build: Callable[[Size], nn.Module]
    whole: bool = False


def find_source(name: str) -> Source:
    """The model of a name; nothing is built yet.

    Drop path is off everywhere: else training would differ by luck and by configuration.

    Args:
        name: ``flatten-pvt-t`` and all other :data:`~flatten_det.backbones.BACKBONES`; ``mmdet:swin-t``
            and all of :data:`MMDET`; ``timm:NAME`` of a model with features; ``torchvision:NAME`` of a
            classification model, whose head is left out; the path of a config file (``.py``), and after it,
            separated by spaces, fields to override as ``KEY=VALUE``.

    Raises:
        UserError: if there is no such model.
    """
    config = as_config(name)
    if config is not None:
        path, options = config
        cfg = load_config(path, parse_cfg_options(options))
        return Source(lambda size: _without_drop_path(build_whole(cfg)), whole=True)
    library, separator, model = name.partition(":")
    if not separator:
        _require(name, name, BACKBONES, "give one of flatten_det's, LIBRARY:NAME, or a config file")
        return Source(lambda size: build_backbone(name))
    makers = {"mmdet": _find_mmdet, "timm": _find_timm, "torchvision": _find_torchvision}
    if library not in makers:
        raise UserError(f"--models {name}: models come from {', '.join(makers)}, not {library}")
    return Source(makers[library](name, model))


def _find_mmdet(name: str, model: str) -> Callable[[Size], nn.Module]:
    _require(name, model, MMDET, f"of mmdet there are {', '.join(MMDET)}")
    config = get_config(f"mmdet::{MMDET[model]}").model.backbone
    return lambda size: _build_mmdet(config)


def _build_mmdet(config: ConfigDict) -> nn.Module:
    config = ConfigDict(config, out_indices=(0, 1, 2, 3), init_cfg=None)
    if "frozen_stages" in config:
        config.frozen_stages = -1
    # Whatever was built before may have left another scope.
    with DefaultScope.overwrite_default_scope("mmdet"):
        return _without_drop_path(MODELS.build(config))


def _find_timm(name: str, model: str) -> Callable[[Size], nn.Module]:
    _require(name, model.partition(".")[0], timm.list_models(), "see timm.list_models()")
    return partial(_build_timm, model)


def _build_timm(model: str, size: Size) -> nn.Module:
    create = partial(timm.create_model, model, features_only=True)
    # Windows, grids of positions and checks of the input are made for a size, in models that have one.
    try:
        backbone = create(img_size=size.hw)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        backbone = create()
    return _without_drop_path(backbone)


def _find_torchvision(name: str, model: str) -> Callable[[Size], nn.Module]:
    known = torchvision.models.list_models(module=torchvision.models)
    _require(name, model, known, "see torchvision.models.list_models()")
    return lambda size: _build_torchvision(model)


def _build_torchvision(model: str) -> nn.Module:
    whole = _without_drop_path(torchvision.models.get_model(model, weights=None))
    if hasattr(whole, "features"):
        return whole.features
    stages = [f"layer{number}" for number in range(1, 5)]
    if all(hasattr(whole, stage) for stage in stages):
        return create_feature_extractor(whole, stages)
    raise ValueError(f"torchvision's {model} has no part that gives feature maps of any image size")


def _without_drop_path(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, torchvision.ops.StochasticDepth):
            module.p = 0.0
        elif isinstance(module, mmcv.cnn.bricks.DropPath | timm.layers.DropPath):
            module.drop_prob = 0.0
    return model


def _require(name: str, model: str, known: object, hint: str) -> None:
    if model in known:
        return
    close = get_close_matches(model, list(known), n=3, cutoff=0.5)
    meant = f"; did you mean {' or '.join(close)}?" if close else ""
    raise UserError(f"--models {name}: no such model; {hint}{meant}")
