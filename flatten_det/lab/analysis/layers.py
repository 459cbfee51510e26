"""The attention layers of a model, by stage and block."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ...errors import UserError
from .projections import ATTENTION_KINDS


@dataclass(frozen=True)
class AttentionLayer:
    """An attention layer of a model.

    Attributes:
        name: ``STAGE.BLOCK``, both from 1.
        path: the module's name in the model.
        module: the layer.
        is_last: of its stage.
    """

    name: str
    path: str
    module: nn.Module
    is_last: bool = False


def attention_layers(model: nn.Module) -> list[AttentionLayer]:
    """All layers that can be analysed; those whose blocks are in one list are a stage.

    Raises:
        UserError: there is none.
    """
    stages: dict[str, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        if isinstance(module, ATTENTION_KINDS):
            blocks = path.rsplit(".", 2)[0]  # "block1" of "block1.0.attn"
            stages.setdefault(blocks, []).append((path, module))
    if not stages:
        known = ", ".join(kind.__name__ for kind in ATTENTION_KINDS)
        raise UserError(f"{type(model).__name__} has no attention to analyse: looked for {known}")
    return [
        AttentionLayer(f"{stage}.{block}", path, module, block == len(blocks))
        for stage, blocks in enumerate(stages.values(), 1)
        for block, (path, module) in enumerate(blocks, 1)
    ]


def choose_layers(
    layers: Sequence[AttentionLayer], wanted: Sequence[str] | None
) -> list[AttentionLayer]:
    """The layers asked for, in the order of the model.

    Args:
        layers: of the model.
        wanted: ``STAGE.BLOCK`` or ``STAGE`` for all its blocks, or ``all``; None: the last block of each
            stage.

    Raises:
        UserError: there is no such layer.
    """
    if wanted is None:
        return [layer for layer in layers if layer.is_last]
    for name in wanted:
        if not any(_is_meant(layer, name) for layer in layers):
            names = " ".join(layer.name for layer in layers)
            raise UserError(f"--layers {name}: no such stage or block; there are {names}")
    return [layer for layer in layers if any(_is_meant(layer, name) for name in wanted)]


def _is_meant(layer: AttentionLayer, name: str) -> bool:
    return name in ("all", layer.name, layer.name.split(".")[0])
