"""Official classification checkpoints: where they are, and their conversion for a dense backbone."""

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files.atomic import write_atomically
from ..files.checkpoints import load_as_data, read_checkpoint
from . import BACKBONES, build_backbone
from .weights import LoadReport, load_backbone

RELEASE_PAGE = "https://github.com/LeapLabTHU/FLatten-Transformer"


@dataclass(frozen=True)
class OfficialCheckpoint:
    """One file of the release.

    Attributes:
        name: the file that our configs look for in ``checkpoints/``, without its suffix.
        backbone: short name of the backbone it belongs to.
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
_MARK = {
    "format": "pt",
    "written_by": "flatten_det.backbones.convert",
}  # and not by anybody else.


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
    _check_is_free(destination, source)
    state = read_checkpoint(source)
    backbone = backbone or identify_backbone(state, source)
    changes = {} if img_size is None else {"pretrain_img_size": img_size}
    model = build_backbone(backbone, **changes)
    report = load_backbone(model, state, source)
    # Output norms that the file does not have stay at identity; leaving them out keeps that visible.
    values = model.state_dict()
    weights = {name: values[name].contiguous() for name in report.loaded}
    _write(weights, destination)
    return backbone, report


def identify_backbone(state: dict[str, Tensor], source: str | Path) -> str:
    """The short name of the backbone whose parameters these are.

    Raises:
        CheckpointError: if there is none.
    """
    for name in BACKBONES:
        model = _without_values(name)
        own = {n: p.shape for n, p in model.state_dict().items()}
        found = {n: v.shape for n, v in model.convert_official(state)[0].items()}
        if own.keys() - model.optional_keys() <= found.keys() <= own.keys() and all(
            own[n] == shape for n, shape in found.items()
        ):
            return name
    raise CheckpointError(
        f"{source}: these are not the parameters of any backbone at its own pretraining size; name the "
        "backbone to see what differs"
    )


@cache
def _without_values(name: str) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(name)


def _check_is_free(destination: Path, source: str | Path) -> None:
    if not destination.exists():
        return
    name = Path(source).expanduser()
    if name.exists() and name.samefile(destination):
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


def _write(weights: dict[str, Tensor], destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.suffix == ".safetensors":
        content = save(weights, _MARK)
    else:
        buffer = io.BytesIO()
        torch.save({"meta": _MARK, "state_dict": weights}, buffer)
        content = buffer.getvalue()
    write_atomically(destination, content)
