"""Backbones to analyse by their names: those of the zoo, and the ablation of the paper on DeiT-T."""

from difflib import get_close_matches
from typing import Any

from torch import nn

from ...backbones import BACKBONES, build_backbone
from ...errors import UserError
from ..complexity.target import Target

# Table 4 and Figures 3 and 5: attention exchanged in the same network. Name -> its backbone, and changes.
DEIT_ABLATION: dict[str, tuple[str, dict[str, Any]]] = {
    "deit-t-softmax": ("deit-t", {}),
    "deit-t-linear": ("flatten-deit-t", dict(focusing_factor=1, kernel_size=0)),
    "deit-t-focused": ("flatten-deit-t", dict(kernel_size=0)),
    "deit-t-focused-dwc": ("flatten-deit-t", {}),
}
NAMES = (*BACKBONES, *DEIT_ABLATION)


def named_target(name: str) -> Target:
    """The target of a backbone's name.

    Raises:
        UserError: there is no such name.
    """
    if name not in NAMES:
        close = get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"no model has the name {name}: {hint}Names are {', '.join(NAMES)}")
    return Target(name, None)


def build_named(name: str) -> nn.Module:
    """The backbone of one of :data:`NAMES`, with random weights."""
    backbone, changes = DEIT_ABLATION.get(name, (name, {}))
    return build_backbone(backbone, **changes)
