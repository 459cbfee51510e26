"""Reading checkpoints as data where mmengine, MMDetection and MMSegmentation read them."""

import io
import os
import pickle
from functools import wraps
from pathlib import Path
from typing import Any

import mmengine.runner.checkpoint as mmengine_checkpoint
import mmengine.utils.dl_utils as dl_utils
import torch
from mmengine.infer.infer import BaseInferencer
from mmengine.runner import CheckpointLoader

from .download import download, forget
from .errors import CheckpointError
from .instructions import without_instructions
from .safe_loading import load_as_data, refusal, refused_part
from .trust import is_trusting, load_local

# Errors that name the file, or are none of the file's.
_AS_THEY_ARE = (CheckpointError, FileNotFoundError, PermissionError, MemoryError)


def read_mmengine_checkpoints_as_data() -> None:
    """Let all loaders of mmengine refuse files that hold code.

    Left to themselves,

    - the maintained distribution reads a local file that fails to load as data once more without any
      restriction, after a mere warning;
    - both distributions unpickle what they download, and unpack it among the other downloads;
    - both execute texts in checkpoints: see :mod:`.instructions`, and inferencers that get no config.

    Each of these happens in one function, through which ``load_from``, resuming, ``init_cfg``,
    ``init_detector`` and all others go.
    """
    if hasattr(mmengine_checkpoint, "_safe_torch_load"):
        mmengine_checkpoint._safe_torch_load = _load_file
    else:
        CheckpointLoader.register_scheme(prefixes="", loader=load_from_local, force=True)
    for module in (mmengine_checkpoint, dl_utils, dl_utils.hub):
        module.load_url = _load_url
    BaseInferencer._init_model = _with_config_given(BaseInferencer._init_model)


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """What mmengine calls for a path: see :func:`~flatten_det.checkpoints.trust.load_local`.

    Raises:
        CheckpointError: The file cannot be read as data.
        FileNotFoundError: There is none.
    """
    filename = os.path.expanduser(filename)
    if not os.path.isfile(filename):
        raise FileNotFoundError(f"{filename} can not be found.")
    return _load_file(filename, map_location)


def _load_file(
    file: str | io.BytesIO, map_location: Any = None, weights_only: bool | None = None
) -> Any:
    """mmengine's signature; ``weights_only`` is not looked at."""
    is_local = isinstance(file, str | Path)
    try:
        checkpoint = (
            load_local(file, map_location) if is_local else load_as_data(file, map_location)
        )
    except _AS_THEY_ARE:
        raise
    except Exception as error:
        raise _explained(error, file) from error
    return without_instructions(checkpoint, os.path.dirname(file) if is_local else None)


def _load_url(
    url: str,
    model_dir: str | None = None,
    map_location: Any = None,
    progress: bool = True,
    check_hash: bool = False,
    file_name: str | None = None,
) -> Any:
    """In place of PyTorch's own, which unpacks zip files into its cache.

    Of the arguments of :func:`torch.hub.load_state_dict_from_url`, URL and device matter: each URL has its
    own place in the cache.
    """
    try:
        path = download(url)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {url} cannot be read ({error})") from error
    try:
        checkpoint = load_as_data(path, map_location)
    except MemoryError:
        raise
    except Exception as error:
        forget(url)
        explained = error if isinstance(error, CheckpointError) else _explained(error, url)
        raise CheckpointError(str(explained).replace(str(path), url)) from error
    return without_instructions(checkpoint, None)


def _explained(error: Exception, source: Any) -> CheckpointError:
    """An error that names the file."""
    if isinstance(error, pickle.UnpicklingError):
        return refusal(source, refused_part(error))
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0] if lines else 'no detail'}"
    if isinstance(error, OSError):
        return CheckpointError(f"checkpoint {source} cannot be read ({reason}): try again")
    return refusal(source, reason)


def _with_config_given(init_model: Any) -> Any:
    @wraps(init_model)
    def checked(self, cfg: Any, weights: str | None, device: str = "cpu") -> torch.nn.Module:
        if not cfg and not is_trusting():
            raise CheckpointError(
                f"checkpoint {weights} comes without a config: give the config file, too; the one in the "
                "checkpoint is not used, because configs are code (for a checkpoint of your own: within "
                "flatten_det.checkpoints.trusted_checkpoints())"
            )
        return init_model(self, cfg, weights, device)

    return checked
