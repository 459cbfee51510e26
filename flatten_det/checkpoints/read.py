"""Reading checkpoint files as data: tensors only, nothing is executed."""

from pathlib import Path

from mmengine.runner import CheckpointLoader
from torch import Tensor

from .download import forget
from .errors import CheckpointError
from .trust import load_local

# Where the known training codes put the weights: mmengine, the official release (EMA weights are not
# what its tables report), CSwin's release, which has nothing else.
WEIGHT_KEYS = ("state_dict", "model", "state_dict_ema")
# Wrappers of a backbone inside a larger model: DistributedDataParallel, detectors and segmentors.
PREFIXES = ("module.", "backbone.")


def read_checkpoint(source: str | Path, prefix: str | None = None) -> dict[str, Tensor]:
    """Read a backbone's state dict.

    Args:
        source: path of a ``.pth``/``.pt`` or ``.safetensors`` file, an http(s) URL, which is downloaded
            once into torch's hub folder, or what else mmengine loads: ``torchvision://``, ``open-mmlab://``,
            ``mmcls://`` and the like. The weights may lie at the top level or under ``state_dict`` or
            ``model``; of a whole detector or segmentor the backbone is taken.
        prefix: take the part of this name, such as ``'student.backbone.'``, instead.

    Returns:
        Parameter name -> tensor, on the CPU.

    Raises:
        CheckpointError: if the file is missing, damaged, not a checkpoint, or holds anything but data.
    """
    if "://" not in str(source):
        return _weights(_read(Path(source).expanduser()), source, prefix)
    try:
        content = CheckpointLoader.load_checkpoint(str(source), "cpu", logger="silent")
        return _weights(content, source, prefix)
    except (CheckpointError, FileNotFoundError, ImportError, KeyError) as error:
        forget(str(source))
        reason = f"there is no model {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{source}: {reason}") from error


def _weights(state: object, source: str | Path, prefix: str | None) -> dict[str, Tensor]:
    for key in WEIGHT_KEYS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    state = state if isinstance(state, dict) else {}
    state = {n: v for n, v in state.items() if isinstance(v, Tensor) and isinstance(n, str)}
    if not state:
        raise CheckpointError(f"{source}: no weights in it (no tensors, 'state_dict' or 'model')")
    if prefix is not None:
        state = _below(f"{prefix.removesuffix('.')}.", _below("module.", state) or state)
        if not state:
            raise CheckpointError(f"{source}: no weights in it whose names begin with {prefix!r}")
    for wrapper in PREFIXES:
        state = _below(wrapper, state) or state
    return state


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


def _read(path: Path) -> object:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        return load_local(path, map_location="cpu")
    except CheckpointError:
        raise
    except Exception as error:
        # A cut or foreign file fails in many ways (zip, EOF, key, header errors), all with the same cure.
        reason = (
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no detail'}"
        )
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint; is it truncated? Download it again. ({reason})"
        ) from error
