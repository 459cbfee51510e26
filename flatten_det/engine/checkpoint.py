"""Checkpoint files: read as data only, and held against the model they are meant for."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from .errors import UserError


def _history_buffer_method(owner: type, name: str) -> Any:
    """Stands for ``getattr``, by which a pickled HistoryBuffer names its own statistics."""
    if owner is not HistoryBuffer or name.startswith("_"):
        raise pickle.UnpicklingError(f"attribute {name} of {owner} is not data")
    return getattr(owner, name)


# What an mmengine checkpoint holds besides tensors: the message hub's logs and their numbers.
_np_core = np._core if hasattr(np, "_core") else np.core
SAFE_GLOBALS = [
    HistoryBuffer,
    (_history_buffer_method, "builtins.getattr"),
    np.ndarray,
    np.dtype,
    _np_core.multiarray._reconstruct,
    _np_core.multiarray.scalar,
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "uint32", "bool")),
]


def check_checkpoint(path: str) -> None:
    """Make sure that a local checkpoint exists and that reading it runs no code from it.

    mmengine would retry an unsafe file with the unrestricted unpickler; after this check there
    is nothing to retry. URLs are left to mmengine.

    Raises:
        UserError: The file is missing, broken, or holds something other than data.
    """
    if "://" in str(path):
        return
    if not Path(path).is_file():
        raise UserError(f"checkpoint {path} not found: check the path (here: {Path.cwd()})")
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).rsplit("WeightsUnpickler error: ", 1)[-1].strip()
        reason = reason.split("\n")[0].split(" was not an allowed")[0]
        raise UserError(
            f"checkpoint {path} cannot be read: {type(error).__name__}: {reason}: "
            "check that it is a complete PyTorch checkpoint from a source you trust"
        ) from error


def check_fit(model: nn.Module, weights: Mapping[str, torch.Tensor], path: str) -> None:
    """Make sure that every weight of the model came from the checkpoint.

    mmengine only warns about the ones that did not, and goes on with random ones.

    Raises:
        UserError: Weights are missing or have another shape.
    """
    weights = {name.removeprefix("module."): weight for name, weight in weights.items()}
    own = {
        name: weight
        for name, weight in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    bad = [
        name for name, weight in own.items()
        if name not in weights or weights[name].shape != weight.shape
    ]  # fmt: skip
    if bad:
        names = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
        raise UserError(
            f"checkpoint {path} does not fit the config: {len(bad)} of {len(own)} weights are "
            f"missing or of another shape ({names}): use the config it was trained with"
        )


class CheckFitHook(Hook):
    """Applies :func:`check_fit` to the checkpoint that a Runner tests."""

    def __init__(self, path: str) -> None:
        self._path = path

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compare before mmengine loads what fits."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if isinstance(model, BaseTTAModel):
            model = model.module
        check_fit(model, checkpoint.get("state_dict", checkpoint), self._path)
