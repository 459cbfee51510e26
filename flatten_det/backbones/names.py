"""Short names of the backbones, for tools, tables and file names."""

from typing import Any

from mmengine.registry import MODELS
from torch import nn

_PVT = {"t": "tiny", "s": "small", "m": "medium", "l": "large"}
_SWIN = _DEIT = {"t": "tiny", "s": "small", "b": "base"}
# CSwin's own depths, where the linear models have others.
_CSWIN_DEPTHS = {"t": (1, 2, 21, 1), "b": (2, 4, 32, 2)}


def _all_names() -> dict[str, dict[str, Any]]:
    linear = {f"pvt-{s}": dict(type="FLattenPVT", arch=arch) for s, arch in _PVT.items()}
    linear |= {f"pvtv2-b{i}": dict(type="FLattenPVTv2", arch=f"b{i}") for i in range(6)}
    linear |= {f"swin-{s}": dict(type="FLattenSwin", arch=arch) for s, arch in _SWIN.items()}
    linear |= {f"cswin-{s}": dict(type="FLattenCSwin", arch=arch) for s, arch in _SWIN.items()}
    names = {f"flatten-{name}": config for name, config in linear.items()}
    names["flatten-swin-b-384"] = linear["swin-b"] | dict(pretrain_img_size=384, window_size=12)
    names["flatten-cswin-b-384"] = linear["cswin-b"] | dict(
        pretrain_img_size=384, split_size=(1, 2, 12, 12)
    )
    for name, config in linear.items():
        names[name] = config | dict(attn_types="SSSS")
    for size, depths in _CSWIN_DEPTHS.items():
        names[f"cswin-{size}"]["arch"] = dict(base=_SWIN[size], depths=depths)
    for size, arch in _DEIT.items():
        deit = dict(type="FLattenDeiT", arch=arch)
        # In this order: DeiT's own files fit both, and are DeiT's.
        names |= {f"deit-{size}": deit | dict(attn_types="S"), f"flatten-deit-{size}": deit}
    return names


BACKBONES = _all_names()


def backbone_config(name: str, **changes: Any) -> dict[str, Any]:
    """The config of a backbone by its short name.

    Args:
        name: ``flatten-pvt-t``, ``flatten-swin-b-384``, …, or ``pvt-t``, ``cswin-s``, … for the softmax
            baselines; :data:`BACKBONES` has all of them.
        changes: arguments that replace or extend those of the name.

    Raises:
        ValueError: if there is no such name.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name] | changes


def build_backbone(name: str, **changes: Any) -> nn.Module:
    """The backbone of a short name, with random weights; arguments as for :func:`backbone_config`."""
    return MODELS.build(backbone_config(name, **changes))
