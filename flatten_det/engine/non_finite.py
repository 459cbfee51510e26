"""Keep a loss or gradient that is not finite from spoiling the weights, and stop if it stays."""

import functools
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from .errors import UserError
from .non_finite_report import report_non_finite

DEFAULT_LIMIT = 10


class NonFiniteError(UserError):
    """The loss or its gradients were not finite in too many updates in a row."""


class NonFiniteGuardHook(Hook):
    """Skips updates whose loss or gradients are not finite; stops after ``limit`` in a row.

    A skipped update leaves weights, optimizer and the running statistics of norms as they were.
    What fp16's loss scale is for, gradients that overflow at a finite loss, is left to it and not
    counted, as long as it can go down.

    The check is one norm over all gradients and one synchronization per update, where mmengine's
    log, which reads every loss, is about to wait for the device anyway.

    Args:
        limit: Skipped updates in a row after which the training stops, with a report on where
            the first bad value comes from.
    """

    # Before the hooks that use the batch.
    priority = "HIGH"

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self.limit = limit
        self.skipped = 0
        self.skipped_in_a_row = 0
        self._batches: list[Any] = []
        self._losses: list[torch.Tensor] = []

    def before_train(self, runner: Runner) -> None:
        """Come between the losses and the optimizer."""
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, OptimWrapper) or isinstance(wrapper, OptimWrapperDict):
            return  # Several optimizers take turns in ways that only their model knows.
        self._runner = runner
        self._statistics = _NormStatistics(runner.model)
        self._backward, self._step = wrapper.backward, wrapper.step
        # On the object, so that every kind of wrapper is served, those of other packages too.
        wrapper.backward = self._guarded_backward
        # With the mark that schedulers of mmengine leave on the method.
        wrapper.step = functools.wraps(self._step)(lambda **kwargs: self._guarded_step(**kwargs))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Remember what an update is made from, which may be several batches."""
        if not self._batches:
            self._statistics.save()
        self._batches.append(data_batch)

    def _guarded_backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        self._losses.append(loss.detach().sum())
        self._backward(loss, **kwargs)

    def _guarded_step(self, **kwargs: Any) -> None:
        loss_is_finite, gradients_are_finite = self._look()
        if loss_is_finite and (gradients_are_finite or self._loss_scale_will_do()):
            if gradients_are_finite:
                self.skipped_in_a_row = 0
            self._step(**kwargs)
        else:
            self._skip("gradients" if loss_is_finite else "loss")
        self._batches.clear()
        self._losses.clear()

    def _look(self) -> tuple[bool, bool]:
        """Whether losses and gradients are finite, the same on all ranks."""
        groups = self._runner.optim_wrapper.optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        loss = torch.stack(self._losses).sum()
        finite = torch.isfinite(torch.stack([loss.to(norm), norm])).float()
        if get_world_size() > 1:
            all_reduce(finite, op="min")
        loss_is_finite, gradients_are_finite = finite.tolist()
        return bool(loss_is_finite), bool(gradients_are_finite)

    def _loss_scale_will_do(self) -> bool:
        wrapper = self._runner.optim_wrapper
        scaler = getattr(wrapper, "loss_scaler", None)
        fixed = getattr(wrapper, "_scale_update_param", None) is not None
        # At 1 there is no scale left to blame.
        return scaler is not None and scaler.is_enabled() and not fixed and scaler.get_scale() > 1

    def _skip(self, what: str) -> None:
        runner = self._runner
        self._statistics.restore()
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


def _other_precision(wrapper: OptimWrapper) -> str:
    scaler = getattr(wrapper, "loss_scaler", None)
    if scaler is None or not scaler.is_enabled():
        return "without --amp"
    return f"with --amp bf16 instead of fp16, whose loss scale is {scaler.get_scale():g} now"


class _NormStatistics:
    """The running statistics of a model's norms, which a forward pass alone changes."""

    def __init__(self, model: nn.Module) -> None:
        norms = [module for module in model.modules() if isinstance(module, _NormBase)]
        self._buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self._saved = [torch.empty_like(buffer) for buffer in self._buffers]

    @torch.no_grad()
    def save(self) -> None:
        """Copy them, in one kernel per type of number."""
        if self._buffers:
            torch._foreach_copy_(self._saved, self._buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the copies back."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._saved)


def non_finite_guard(cfg: Config) -> NonFiniteGuardHook | None:
    """The guard that a config asks for by ``max_non_finite_updates``; 0 is none.

    Raises:
        UserError: The field is no number.
    """
    limit = cfg.get("max_non_finite_updates", DEFAULT_LIMIT)
    if not isinstance(limit, int) or limit < 0:
        raise UserError(
            f"max_non_finite_updates={limit!r}: give the number of updates in a row after which "
            "to stop, or 0 to let them pass"
        )
    return NonFiniteGuardHook(limit) if limit else None
