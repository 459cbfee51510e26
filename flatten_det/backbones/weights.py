"""Checkpoints of the backbones: loading, ``init_cfg``, the official files and their conversion.

Every key of a file is explained in a :class:`LoadReport`, or it is an error.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from inspect import isclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import MMLogger
from mmengine.model import BaseModule, PretrainedInit, initialize, update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..attention import resize_grid
from ..errors import CheckpointError, listed
from ..files.atomic import write_atomically
from ..files.checkpoints import load_as_data, read_checkpoint
from .options import BACKBONES, build_backbone


@dataclass
class LoadReport:
    """What became of the entries of a file or URL.

    Attributes:
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


def load_backbone(model: nn.Module, state: dict[str, Tensor], source: str | Path) -> LoadReport:
    """Load official classification weights, or the class's own, into a dense backbone, in place.

    Learned grids and relative position tables of another pretraining size are resized. Modules that are no
    :class:`.base.DenseBackbone` take the entries as they are. ``source`` is named in messages.

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


def _listing(keys: list[str], separator: str = ", ") -> str:
    return listed([key[:300] for key in keys], 40, separator)


class ExplainedInit(PretrainedInit):
    """mmengine's ``Pretrained``, which leaves out what does not fit, with a look at every key.

    Args:
        checkpoint: as for :func:`read_checkpoint`.
        prefix: of the weights that are meant; None: all, of a detector or segmentor the backbone's.
        map_location: not looked at, as weights are copied to where the module's are.
    """

    def __call__(self, module: nn.Module) -> None:
        """Load a module, or a part of one; CheckpointError if the file cannot be read or does not fit."""
        state = read_checkpoint(self.checkpoint, self.prefix)
        report = load_backbone(module, state, self.checkpoint)
        MMLogger.get_current_instance().info(report.summary())
        if hasattr(module, "_params_init_info"):
            update_init_info(module, init_info=self._get_init_info())


class ExplainedModule(BaseModule):
    """A module whose ``init_cfg`` is one of mmengine's, or a list of them, with :class:`ExplainedInit`."""

    def init_weights(self) -> None:
        """Do what ``init_cfg`` says, checkpoints last; the constructor has initialised the rest."""
        given = self.init_cfg
        cfgs = [_explained(cfg) for cfg in ([given] if isinstance(given, Mapping) else given or ())]
        files = [cfg for cfg in cfgs if cfg["type"] is ExplainedInit]
        others = [cfg for cfg in cfgs if cfg["type"] is not ExplainedInit]
        if others or not files:
            self.init_cfg = others
            try:
                super().init_weights()
            finally:
                self.init_cfg = given
        initialize(self, files)
        self._is_init = True


def _explained(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The same with :class:`ExplainedInit` in place of mmengine's, in parts that override it too."""
    cfg = dict(cfg)
    kind = cfg.get("type")
    kind = kind if isclass(kind) else WEIGHT_INITIALIZERS.get(kind) if kind else None
    if isclass(kind) and issubclass(kind, PretrainedInit):
        cfg["type"] = ExplainedInit
    override = cfg.get("override")
    if isinstance(override, Mapping):
        cfg["override"] = _explained(override)
    elif isinstance(override, Sequence):
        cfg["override"] = [_explained(part) for part in override]
    return cfg


RELEASE_PAGE = "https://github.com/LeapLabTHU/FLatten-Transformer"


@dataclass(frozen=True)
class OfficialCheckpoint:
    """One file of the release, by its backbone's short name.

    Attributes:
        resolution: pretraining size in pixels.
        top1: ImageNet-1K top-1 accuracy in percent, as reported (paper, Fig. 6; B0: release page).
        page: where the release links it.
    """

    backbone: str
    resolution: int
    top1: float
    page: str = RELEASE_PAGE

    @property
    def name(self) -> str:
        """Of the file that our configs look for in ``checkpoints/``, without its suffix."""
        return self.backbone.replace("-", "_")


OFFICIAL_CHECKPOINTS = {
    checkpoint.name: checkpoint
    for checkpoint in (
        OfficialCheckpoint("flatten-pvt-t", 224, 77.8),
        OfficialCheckpoint("flatten-pvt-s", 224, 81.7),
        OfficialCheckpoint("flatten-pvtv2-b0", 224, 71.1),
        OfficialCheckpoint("flatten-pvtv2-b1", 224, 79.5),
        OfficialCheckpoint("flatten-pvtv2-b2", 224, 82.5),
        OfficialCheckpoint("flatten-swin-t", 224, 82.1),
        OfficialCheckpoint("flatten-swin-s", 224, 83.5),
        OfficialCheckpoint("flatten-swin-b", 224, 83.8),
        OfficialCheckpoint("flatten-swin-b-384", 384, 85.0),
        OfficialCheckpoint("flatten-cswin-t", 224, 83.1),
        OfficialCheckpoint("flatten-cswin-s", 224, 83.8),
        OfficialCheckpoint("flatten-cswin-b", 224, 84.5),
        OfficialCheckpoint("flatten-cswin-b-384", 384, 85.5),
    )
}


SUFFIXES = (".pth", ".safetensors")
# Of the files that we wrote, and nobody else: part of their format, whatever this module is called.
_MARK = {"format": "pt", "written_by": "flatten_det.checkpoints.convert"}


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    backbone: str | None = None,
    img_size: int | tuple[int, int] | None = None,
) -> tuple[str, LoadReport]:
    """Write the backbone's part of a checkpoint, in this package's names, for ``init_cfg``.

    Args:
        source: file or URL, as for :func:`read_checkpoint`.
        destination: ``.pth`` or ``.safetensors``; written whole or not at all. What is there already is
            replaced only if it was written by this function, and is not the source.
        backbone: short name; None: the one whose parameters the file has.
        img_size: move the learned grids to the maps of this image size in pixels (int or ``(H, W)``);
            then ``pretrain_img_size`` of the config must be the same. None: as in the file.

    Returns:
        The backbone's short name, and what became of each entry.

    Raises:
        CheckpointError: if the file cannot be read, or belongs to no or to another backbone, or there is
            another file at the destination.
        ValueError: for an unknown backbone or suffix.
    """
    destination = Path(destination)
    if destination.suffix not in SUFFIXES:
        raise ValueError(f"{destination}: the file must end in {' or '.join(SUFFIXES)}")
    destination = destination.resolve()  # The file that a link names, rather than the link.
    if destination.exists():
        _check_may_be_replaced(destination, Path(source).expanduser())
    state = read_checkpoint(source)
    backbone = backbone or identify_backbone(state, source)
    changes = {} if img_size is None else {"pretrain_img_size": img_size}
    model = build_backbone(backbone, **changes)
    report = load_backbone(model, state, source)
    # Output norms that the file does not have stay at identity; leaving them out keeps that visible.
    values = model.state_dict()
    weights = {name: values[name].contiguous() for name in report.loaded}
    if destination.suffix == ".safetensors":
        content = save(weights, _MARK)
    else:
        buffer = io.BytesIO()
        torch.save({"meta": _MARK, "state_dict": weights}, buffer)
        content = buffer.getvalue()
    write_atomically(destination, content)
    return backbone, report


def identify_backbone(state: dict[str, Tensor], source: str | Path) -> str:
    """The short name of the backbone whose parameters these are; CheckpointError if there is none."""
    for name in BACKBONES:
        model = _without_values(name)
        own = {n: p.shape for n, p in model.state_dict().items()}
        found = {n: v.shape for n, v in model.convert_official(state)[0].items()}
        is_complete = own.keys() - model.optional_keys() <= found.keys()
        if is_complete and found.items() <= own.items():
            return name
    raise CheckpointError(
        f"{source}: these are not the parameters of any backbone at its own pretraining size; name the "
        "backbone to see what differs"
    )


@cache
def _without_values(name: str) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(name)


def _check_may_be_replaced(destination: Path, source: Path) -> None:
    if source.exists() and source.samefile(destination):
        raise CheckpointError(
            f"{destination}: this is the checkpoint itself, of which the backbone alone would be left: "
            "choose another name for the result"
        )
    if not _is_ours(destination):
        raise CheckpointError(
            f"{destination}: there is a file already, which is not a converted one: choose another name, or "
            "remove it"
        )


def _is_ours(path: Path) -> bool:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return file.metadata() == _MARK
        content = load_as_data(path, map_location="cpu", mmap=True)
        return content.keys() == {"meta", "state_dict"} and content["meta"] == _MARK
    except Exception:
        return False  # Whatever it is.
