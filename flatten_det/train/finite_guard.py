"""Keep a loss or gradient that is not finite from spoiling the weights, and say where it comes from."""

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.distributed.tensor import DTensor

from ..errors import UserError
from ..files.atomic import write_atomically
from ..files.checkpoints import unwrapped
from .resume import seed_iteration

DEFAULT_LIMIT = 10


class NonFiniteError(UserError):
    """The loss or its gradients were not finite in too many updates in a row."""


class NonFiniteGuardHook(Hook):
    """Skips updates whose loss or gradients are not finite; stops after ``limit`` in a row.

    A skipped update leaves weights, optimizer and the running statistics of norms as they were.
    What fp16's loss scale is for, gradients that overflow at a finite loss, is left to it and not
    counted, as long as it can go down. At the limit, the training stops with a report on where the first
    bad value comes from.

    The check is one norm over all gradients and one synchronization per update, where mmengine's
    log, which reads every loss, is about to wait for the device anyway.
    """

    # Before the hooks that use the batch.
    priority = "HIGH"

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self.limit = limit
        self.skipped = 0
        self.skipped_in_a_row = 0
        self._runner: Runner | None = None  # None: updates are not guarded
        self._batches: list[Any] = []
        self._losses: list[torch.Tensor] = []

    def before_train(self, runner: Runner) -> None:
        """Come between the losses and the optimizer."""
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, OptimWrapper) or isinstance(wrapper, OptimWrapperDict):
            return  # Several optimizers take turns in ways that only their model knows.
        self._runner = runner
        # The running statistics of norms, which a forward pass alone changes.
        # mmcv's SyncBN is none of torch's.
        norms = [module for module in runner.model.modules() if hasattr(module, "running_mean")]
        self._statistics = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self._saved = [torch.empty_like(buffer) for buffer in self._statistics]
        self._backward, self._step = wrapper.backward, wrapper.step
        # On the object, so that every kind of wrapper is served, those of other packages too.
        wrapper.backward = self._guarded_backward
        # With the mark that schedulers of mmengine leave on the method.
        wrapper.step = functools.wraps(self._step)(lambda **kwargs: self._guarded_step(**kwargs))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Remember what an update is made from, which may be several batches."""
        if self._runner is None:
            return
        if not self._batches:
            _copy_all(self._saved, self._statistics)
        self._batches.append(data_batch)

    def _guarded_backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        self._losses.append(loss.detach().sum())
        self._backward(loss, **kwargs)

    def _guarded_step(self, **kwargs: Any) -> None:
        loss_is_finite, gradients_are_finite = self._are_finite()
        if loss_is_finite and (gradients_are_finite or self._loss_scale_can_go_down()):
            if gradients_are_finite:
                self.skipped_in_a_row = 0
            self._step(**kwargs)
        else:
            self._skip("gradients" if loss_is_finite else "loss")
        self._batches.clear()
        self._losses.clear()

    def _are_finite(self) -> tuple[bool, bool]:
        """Whether losses and gradients are finite, the same on all ranks."""
        groups = self._runner.optim_wrapper.optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if isinstance(norm, DTensor):  # Of gradients that are shared out to the ranks.
            norm = norm.full_tensor()
        loss = torch.stack(self._losses).sum()
        finite = torch.isfinite(torch.stack([loss.to(norm), norm])).float()
        if get_world_size() > 1:
            all_reduce(finite, op="min")
        loss_is_finite, gradients_are_finite = finite.tolist()
        return bool(loss_is_finite), bool(gradients_are_finite)

    def _loss_scale_can_go_down(self) -> bool:
        wrapper = self._runner.optim_wrapper
        scaler = getattr(wrapper, "loss_scaler", None)
        fixed = getattr(wrapper, "_scale_update_param", None) is not None
        # At 1 there is no scale left to blame.
        return scaler is not None and scaler.is_enabled() and not fixed and scaler.get_scale() > 1

    def _skip(self, what: str) -> None:
        runner = self._runner
        _copy_all(self._statistics, self._saved)
        self.skipped += 1
        self.skipped_in_a_row += 1
        runner.logger.warning(
            f"iteration {runner.iter + 1}: the {what} is not finite: no update "
            f"({self.skipped_in_a_row} in a row, {self.skipped} in all)"
        )
        if self.skipped_in_a_row < self.limit:
            return
        origin, path = report_non_finite(runner, self._batches)
        rates = sorted({rate for rates in runner.optim_wrapper.get_lr().values() for rate in rates})
        raise NonFiniteError(
            f"stopped at iteration {runner.iter + 1}: {self.skipped_in_a_row} updates in a row had "
            f"a loss or gradients that are not finite: {origin}; images and details are in {path}. "
            f"Check these images' annotations; else lower the learning rate (now {rates[-1]:g}), "
            "clip gradients (optim_wrapper.clip_grad.max_norm=1), or train "
            f"{_other_precision(runner.optim_wrapper)}"
        )


def non_finite_guard(cfg: Config) -> NonFiniteGuardHook | None:
    """The guard that a config asks for by ``max_non_finite_updates``; 0 is none, no number a UserError."""
    limit = cfg.get("max_non_finite_updates", DEFAULT_LIMIT)
    if not isinstance(limit, int) or limit < 0:
        raise UserError(
            f"max_non_finite_updates={limit!r}: give the number of updates in a row after which "
            "to stop, or 0 to let them pass"
        )
    return NonFiniteGuardHook(limit) if limit else None


def _other_precision(wrapper: OptimWrapper) -> str:
    scaler = getattr(wrapper, "loss_scaler", None)
    if scaler is None or not scaler.is_enabled():
        return "without --amp"
    return f"with --amp bf16 instead of fp16, whose loss scale is {scaler.get_scale():g} now"


@torch.no_grad()
def _copy_all(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """Copy in one kernel per type of number."""
    if targets:
        torch._foreach_copy_(targets, sources)


def report_non_finite(runner: Runner, batches: Sequence[Any]) -> tuple[str, Path]:
    """Find the origin of a non-finite loss or gradient, and write down what is known.

    Runs ``batches``, what the loader gave since the last update, once more, in training mode and with
    the same random numbers. Must be called while the gradients are still there, by all ranks.

    Returns:
        One sentence about the origin, and the JSON file with image files, losses and the rest.
    """
    model = unwrapped(runner.model)
    gradients = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not _is_finite(parameter.grad)
    ]
    for number, batch in enumerate(batches):
        iteration = runner.iter - len(batches) + 1 + number
        seed_iteration(runner.seed, iteration)
        losses, origin = _run_watched(model, batch, runner.optim_wrapper)
        is_bad = origin is not None or not all(map(_is_finite, losses.values()))
        # Where they share the weights, all ranks run as many batches.
        found = torch.tensor(float(is_bad))
        all_reduce(found, op="max")
        if found:
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
    return _describe(report), path


def _describe(report: dict[str, Any]) -> str:
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


@torch.no_grad()
def _run_watched(
    model: nn.Module, batch: Any, wrapper: Any
) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """The losses of a batch, without an update, and the first module whose output is not finite."""
    origins: list[dict[str, Any]] = []
    # Not the model as a whole: its output are the losses, which are reported by name.
    names = {module: name for name, module in model.named_modules() if name}

    def look(module: nn.Module, inputs: tuple, outputs: Any) -> None:
        # Inner modules end before those around them.
        if not origins and not _is_finite(outputs):
            origin = {"module": names[module], "type": type(module).__name__}
            bad = [n for n, p in module.named_parameters(recurse=False) if not _is_finite(p)]
            origins.append(origin | {"input_is_finite": _is_finite(inputs), "parameters": bad})

    # What a train_step needs of an optimizer wrapper, without backward and update.
    no_update = SimpleNamespace(
        optim_context=wrapper.optim_context, update_params=lambda loss, **kwargs: None
    )
    handles = [module.register_forward_hook(look) for module in names]
    try:
        losses = model.train_step(batch, optim_wrapper=no_update)
    finally:
        for handle in handles:
            handle.remove()
    return losses, origins[0] if origins else None


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
