"""Loading a state dict into a backbone: every key is explained, or it is an error."""

from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import resize_grid
from .errors import CheckpointError

if TYPE_CHECKING:
    from ..backbones.base import DenseBackbone


MAX_LISTED = 40


@dataclass
class LoadReport:
    """What became of a checkpoint's entries.

    Attributes:
        source: file or URL.
        loaded: parameters taken over, resized ones included.
        resized: parameter -> (shape in the file, shape in the model).
        dropped: entries that dense prediction has no use for (head, buffers, stages not built).
        kept: parameters of the model that the file need not have, left as initialised.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """A few lines for the log."""
        lines = [f"Loaded {len(self.loaded)} parameters from {self.source}."]
        if self.resized:
            moves = sorted({f"{old} -> {new}" for old, new in self.resized.values()})
            lines.append(f"  resized {len(self.resized)}: {'; '.join(moves)}")
        if self.dropped:
            lines.append(f"  dropped {len(self.dropped)}: {_listing(self.dropped)}")
        if self.kept:
            lines.append(f"  not in the file, left as initialised: {_listing(self.kept)}")
        return "\n".join(lines)


def load_backbone(
    model: "DenseBackbone", state: dict[str, Tensor], source: str | Path
) -> LoadReport:
    """Load official classification weights, or the class's own, into a dense backbone, in place.

    Learned grids and relative position tables of another pretraining size are resized.

    Args:
        model: the backbone.
        state: parameter name -> tensor, as :func:`read_checkpoint` returns it.
        source: named in messages.

    Raises:
        CheckpointError: if anything is missing, unexpected or of another shape; it lists the keys and
            leaves the model untouched.
    """
    weights, dropped = model.convert_official(state)
    own = model.state_dict()
    report = LoadReport(str(source), dropped=dropped, kept=sorted(set(own) - set(weights)))
    problems = [
        *(
            f"missing in the file: {name}"
            for name in report.kept
            if name not in model.optional_keys()
        ),
        *(f"unknown to the model: {name}" for name in sorted(set(weights) - set(own))),
    ]
    grids = model.grid_shapes()
    fitted = {}
    for name in set(own) & set(weights):
        old, new = weights[name], own[name]
        fitted[name] = _fit(name, old, new.shape, grids)
        if fitted[name].shape != new.shape:
            problems.append(
                f"wrong shape: {name} is {tuple(old.shape)} in the file, {tuple(new.shape)} in the model"
            )
        elif old.shape != new.shape:
            report.resized[name] = (tuple(old.shape), tuple(new.shape))
    if problems:
        raise CheckpointError(
            f"{source} does not fit {type(model).__name__}(arch={model.arch!r}): {len(problems)} keys "
            "differ. Check that arch, attn_types and the window sizes are those of the file.\n  "
            + _listing(problems, separator="\n  ")
        )
    model.load_state_dict(fitted, strict=False)
    report.loaded = sorted(fitted)
    return report


def _fit(name: str, value: Tensor, shape: torch.Size, grids: dict[str, tuple[int, int]]) -> Tensor:
    """Resize a learned grid or a relative position table to ``shape``; return other tensors as they are."""
    if value.shape == shape or value.dim() != len(shape):
        return value
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return value  # A single number may claim to be a table of any size.
    if name in grids and value.shape[2] == shape[2]:
        side = isqrt(value.shape[1])
        if side * side == value.shape[1]:
            return resize_grid(value, (side, side), grids[name])
    if name.endswith("relative_position_bias_table") and value.shape[1] == shape[1]:
        old, new = isqrt(value.shape[0]), isqrt(shape[0])
        if old * old == value.shape[0]:
            # Bicubic, as Swin's own detection code does.
            image = value.T.reshape(1, -1, old, old).float()
            image = F.interpolate(image, size=(new, new), mode="bicubic", align_corners=False)
            return image.reshape(-1, new * new).T.to(value.dtype)
    return value


def _listing(items: list[str], separator: str = ", ") -> str:
    shown = separator.join(items[:MAX_LISTED])
    more = len(items) - MAX_LISTED
    return f"{shown}{separator}... and {more} more" if more > 0 else shown
