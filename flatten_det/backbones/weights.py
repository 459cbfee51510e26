"""Loading a state dict into a backbone: every key is explained, or it is an error."""

from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import resize_grid
from ..errors import CheckpointError

if TYPE_CHECKING:
    from .base import DenseBackbone


MAX_LISTED, MAX_LENGTH = 40, 300


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
    model: "DenseBackbone | nn.Module", state: dict[str, Tensor], source: str | Path
) -> LoadReport:
    """Load official classification weights, or the class's own, into a dense backbone, in place.

    Learned grids and relative position tables of another pretraining size are resized.

    Args:
        model: the backbone, or any module, which takes the entries as they are.
        state: parameter name -> tensor, as :func:`read_checkpoint` returns it.
        source: named in messages.

    Raises:
        CheckpointError: if anything is missing, unexpected or of another shape; it lists the keys and
            leaves the model untouched.
    """
    is_backbone = hasattr(model, "convert_official")
    weights, dropped = model.convert_official(state) if is_backbone else (state, [])
    optional = model.optional_keys() if is_backbone else set()
    own = model.state_dict()
    report = LoadReport(str(source), dropped=dropped, kept=sorted(set(own) - set(weights)))
    problems = [
        *(f"missing in the file: {name}" for name in report.kept if name not in optional),
        *(f"unknown to the model: {name}" for name in sorted(set(weights) - set(own))),
    ]
    grids = model.grid_shapes() if is_backbone else {}
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
        name, cure = type(model).__name__, "Check that it is the right file, and the prefix."
        if is_backbone:
            name += f"(arch={model.arch!r})"
            cure = "Check that arch, attn_types and the window sizes are those of the file."
        raise CheckpointError(
            f"{source} does not fit {name}: {len(problems)} keys differ. {cure}\n  "
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
    shown = separator.join(item[:MAX_LENGTH] for item in items[:MAX_LISTED])
    more = len(items) - MAX_LISTED
    return f"{shown}{separator}... and {more} more" if more > 0 else shown
