"""Reading checkpoint files as data: tensors only, nothing is executed."""

from pathlib import Path

from torch import Tensor

from .download import download, forget
from .errors import CheckpointError
from .trust import load_local, trusted_checkpoints

# Where the known training codes put the weights: mmengine, the official release (EMA weights are not
# what its tables report), CSwin's release, which has nothing else.
WEIGHT_KEYS = ("state_dict", "model", "state_dict_ema")
# Wrappers of a backbone inside a larger model: DistributedDataParallel, detectors and segmentors.
PREFIXES = ("module.", "backbone.")


def read_checkpoint(source: str | Path) -> dict[str, Tensor]:
    """Read a backbone's state dict.

    Args:
        source: path of a ``.pth``/``.pt`` or ``.safetensors`` file, or an http(s) URL, which is
            downloaded once into torch's hub folder. The weights may lie at the top level or under
            ``state_dict`` or ``model``; of a whole detector or segmentor the backbone is taken.

    Returns:
        Parameter name -> tensor, on the CPU.

    Raises:
        CheckpointError: if the file is missing, damaged, not a checkpoint, or holds anything but data.
    """
    if not str(source).startswith(("http://", "https://")):
        return _weights(Path(source).expanduser())
    try:
        with trusted_checkpoints(False):
            return _weights(download(str(source)))
    except CheckpointError as error:
        forget(str(source))
        raise CheckpointError(f"{source}: {error}") from error


def _weights(path: Path) -> dict[str, Tensor]:
    state = _read(path)
    for key in WEIGHT_KEYS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not any(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: no weights in it (no tensors, 'state_dict' or 'model')")
    state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        inner = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        state = inner or state
    return state


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
