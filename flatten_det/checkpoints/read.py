"""Reading checkpoint files as data: tensors only, nothing is executed."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from .errors import CheckpointError

# Where the known training codes put the weights: mmengine, the official release (EMA weights are not
# what its tables report), plain state dicts.
WEIGHT_KEYS = ("state_dict", "model")
# Wrappers of a backbone inside a larger model: DistributedDataParallel, detectors and segmentors.
PREFIXES = ("module.", "backbone.")


def read_checkpoint(source: str | Path) -> dict[str, Tensor]:
    """Read a backbone's state dict.

    Args:
        source: path of a ``.pth``/``.pt`` or ``.safetensors`` file, or an http(s) URL, which is
            downloaded once into torch's hub cache. The weights may lie at the top level or under
            ``state_dict`` or ``model``; of a whole detector or segmentor the backbone is taken.

    Returns:
        Parameter name -> tensor, on the CPU.

    Raises:
        CheckpointError: if the file is missing, damaged, not a checkpoint, or holds anything but data.
    """
    state = _read(source)
    for key in WEIGHT_KEYS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not any(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{source}: no weights in it (no tensors, 'state_dict' or 'model')")
    state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        inner = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        state = inner or state
    return state


def _read(source: str | Path) -> object:
    if str(source).startswith(("http://", "https://")):
        return torch.hub.load_state_dict_from_url(
            str(source), map_location="cpu", weights_only=True
        )
    path = Path(source).expanduser()
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: not loaded, since it is damaged or holds Python objects besides weights, which "
            f"could run code ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:
        # A cut or foreign file fails in many ways (zip, EOF, key, header errors), all with the same cure.
        reason = (
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no detail'}"
        )
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint; is it truncated? Download it again. ({reason})"
        ) from error
