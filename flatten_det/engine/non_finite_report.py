"""Where in a model the first value that is not finite comes from, and in which images."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from .atomic_files import write_atomically
from .seeding import seed_iteration


def report_non_finite(runner: Runner, batches: Sequence[Any]) -> tuple[str, Path]:
    """Find the origin of a non-finite loss or gradient, and write down what is known.

    Runs the batches once more, in training mode and with the same random numbers. Must be called
    while the gradients are still there, by all ranks.

    Args:
        runner: A runner in the middle of a training step.
        batches: What the loader gave since the last update, the current batch last.

    Returns:
        One sentence about the origin, and the JSON file with image files, losses and the rest.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    gradients = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not _is_finite(parameter.grad)
    ]
    for number, batch in enumerate(batches):
        iteration = runner.iter - len(batches) + 1 + number
        seed_iteration(runner.seed, iteration)
        losses, origin = _run_watched(model, batch, runner.optim_wrapper)
        if origin is not None or not all(map(_is_finite, losses.values())):
            break
    rank = get_rank()
    path = Path(runner.work_dir, f"non_finite_rank{rank}.json" if rank else "non_finite.json")
    report = {
        "iteration": iteration + 1,
        "epoch": runner.epoch + 1,
        "origin": origin,
        # JSON has no numbers that are not finite: these are text.
        "losses": {
            name: float(loss) if _is_finite(loss) else str(float(loss))
            for name, loss in losses.items()
        },
        "parameters_with_non_finite_gradient": gradients,
        "learning_rates": runner.optim_wrapper.get_lr(),
        "seed": runner.seed,
        "images": sorted(set(_image_files(batch))),
    }
    write_atomically(path, json.dumps(report, indent=2, allow_nan=False).encode())
    return _sentence(report), path


def _sentence(report: dict[str, Any]) -> str:
    if (origin := report["origin"]) is not None:
        where = f"{origin['module']} ({origin['type']})"
        if origin["parameters"]:
            return f"the parameter {origin['parameters'][0]} of {where} is not finite"
        given = "is" if origin["input_is_finite"] else "is not either: see the operations before it"
        return f"the first output that is not finite is that of {where}; its input {given}"
    if bad := [name for name, loss in report["losses"].items() if isinstance(loss, str)]:
        return f"all modules' outputs are finite, but {' and '.join(bad)} is not"
    if names := report["parameters_with_non_finite_gradient"]:
        # Gradients flow from the last modules to the first.
        return (
            f"outputs and losses are finite, but the gradients of {len(names)} parameters are "
            f"not; the nearest to the loss is {names[-1]}"
        )
    return "outputs, losses and gradients of this rank are finite: see the other ranks' reports"


class _NoUpdate:
    """What a model's ``train_step`` needs of an optimizer wrapper, without backward and update."""

    def __init__(self, wrapper: Any) -> None:
        self.optim_context = wrapper.optim_context

    def update_params(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Leave all as it is."""


@torch.no_grad()
def _run_watched(
    model: nn.Module, batch: Any, wrapper: Any
) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """The losses of a batch, and the first module whose output is not finite."""
    with _first_non_finite_output(model) as origins:
        losses = model.train_step(batch, optim_wrapper=_NoUpdate(wrapper))
    return losses, origins[0] if origins else None


@contextlib.contextmanager
def _first_non_finite_output(model: nn.Module) -> Iterator[list[dict[str, Any]]]:
    origins: list[dict[str, Any]] = []
    # Not the model as a whole: its output are the losses, which are reported by name.
    names = {module: name for name, module in model.named_modules() if name}

    def look(module: nn.Module, inputs: tuple, outputs: Any) -> None:
        # Inner modules end before those around them.
        if not origins and not _is_finite(outputs):
            bad = [n for n, p in module.named_parameters(recurse=False) if not _is_finite(p)]
            origins.append(
                {
                    "module": names[module],
                    "type": type(module).__name__,
                    "input_is_finite": _is_finite(inputs),
                    "parameters": bad,
                }
            )

    handles = [module.register_forward_hook(look) for module in names]
    try:
        yield origins
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(value: Any) -> bool:
    """Whether all floating-point numbers in nested tensors are finite."""
    if isinstance(value, dict):
        value = value.values()
    elif isinstance(value, float):
        value = torch.tensor(value)
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, Sequence | type({}.values())) and not isinstance(value, str | bytes):
        return all(map(_is_finite, value))
    return True


def _image_files(batch: Any) -> Iterator[str]:
    """Every ``img_path`` in a batch, whether in data samples or in dicts."""
    if isinstance(batch, BaseDataElement):
        batch = {"img_path": batch.metainfo.get("img_path")}
    if isinstance(batch, dict):
        paths = batch.get("img_path") or ()
        yield from map(str, [paths] if isinstance(paths, str | Path) else paths)
        batch = [value for key, value in batch.items() if key != "img_path"]
    if isinstance(batch, list | tuple):
        for value in batch:
            yield from _image_files(value)
