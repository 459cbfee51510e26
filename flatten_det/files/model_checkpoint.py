"""Checkpoint files: read as data only, and held against the model they are meant for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import CheckpointLoader, Runner
from torch import nn

from ..errors import CheckpointError, UserError, reason_of
from .checkpoints import keep_checked, load_to_check
from .user_files import why_not_read

_LONGEST_NAME = 1000  # of a class, which results repeat for each object.


def check_checkpoint(path: str) -> None:
    """Make sure that a checkpoint exists, and holds data only, unless it is a local one that is trusted.

    Raises:
        UserError: The file is missing, broken, or holds something other than data.
    """
    is_local = "://" not in str(path)
    if is_local and (reason := why_not_read(path)):
        reason = reason.removeprefix("was ")
        raise UserError(f"checkpoint {path} {reason}: check the path (here: {Path.cwd()})")
    try:
        if is_local:
            content = load_to_check(path)
        else:
            content = CheckpointLoader.load_checkpoint(path, "cpu", logger="silent")
            keep_checked(path, content)
    except CheckpointError as error:
        raise UserError(str(error)) from error
    except Exception as error:
        raise UserError(
            f"checkpoint {path} cannot be read: {reason_of(error, '')}: "
            "check that it is a complete PyTorch checkpoint from a source you trust"
        ) from error
    _check_content(content, path)


def _check_content(content: Any, path: str) -> None:
    """Make sure that mmengine finds weights by name, and what it was trained on, if anything.

    Raises:
        UserError: It would not.
    """
    meta = content.get("meta") or {} if isinstance(content, Mapping) else {}
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    if not isinstance(weights, Mapping) or not any(
        isinstance(weight, torch.Tensor) for weight in weights.values()
    ):
        problem = "it holds no weights (no state_dict of tensors by name)"
    elif not all(isinstance(name, str) for name in weights):
        problem = "it has weights whose names are no text"
    elif not isinstance(meta, Mapping) or not _describes_data(meta.get("dataset_meta")):
        problem = "its meta data is damaged"
    else:
        return
    raise UserError(f"checkpoint {path} cannot be used: {problem}: check that it is the right file")


def _describes_data(meta: Any) -> bool:
    """Whether this is what a data set says about itself: ``classes``, ``palette`` and more."""
    if not meta:
        return True
    if not isinstance(meta, Mapping) or not all(isinstance(key, str) for key in meta):
        return False
    classes = {key.lower(): value for key, value in meta.items()}.get("classes", ())
    return isinstance(classes, list | tuple) and all(
        isinstance(name, str) and len(name) <= _LONGEST_NAME for name in classes
    )


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
        if getattr(weights.get(name), "shape", None) != weight.shape
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
