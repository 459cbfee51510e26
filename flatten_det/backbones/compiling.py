"""``torch.compile`` for the blocks of a backbone."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .block import TransformerBlock

# A stage's blocks share their code: four stages with two kinds of blocks, in training and evaluation, with
# and without gradients. Torch's own limit of 8 would leave the rest uncompiled.
_VARIANTS = 64


def compile_blocks(backbone: nn.Module, options: bool | Mapping[str, Any]) -> None:
    """Run every block through ``torch.compile``.

    The blocks, not the whole: they are all but a few percent of the time, equal blocks compile once, and
    sizes that vary stay simple expressions, while those of a whole pyramid (padded, halved, padded, ...)
    keep the compiler busy for minutes. State dict, copies and pickles are those of the plain module.

    Args:
        backbone: with :class:`~.block.TransformerBlock` in it.
        options: False: nothing; True: ``dynamic=True``; or the options of ``torch.compile``.
    """
    if options is False:
        return
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _VARIANTS)
    for module in backbone.modules():
        if isinstance(module, TransformerBlock):
            module.compile(**({"dynamic": True} if options is True else options))
