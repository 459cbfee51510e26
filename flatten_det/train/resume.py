"""Continue a training at the very batch where a checkpoint was saved."""

import bisect
import time
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch import nn
from torch.utils.data import DataLoader

from ..errors import UserError
from ..files.model_checkpoint import check_checkpoint
from .checkpoints import newest_valid_checkpoint, why_not_resumable
from .optimizer import fit_saved_optimizer
from .precision import loss_scale
from .sample_order import PositionedBatches, with_positions


class ResumePositionHook(Hook):
    """Does what mmengine's resume leaves out, so that a resumed run equals an uninterrupted one.

    Every checkpoint gets a ``meta['position']`` with

    - ``epoch_batches_done``: batches of the current epoch that were trained on;
    - ``epoch_batches``: batches per epoch, as the position means nothing for another number;
    - ``validation_due``: whether a validation was to come, or had begun;
    - ``sampler_seed``: what the order of the data follows;
    - ``written``: the time in seconds, which is the same everywhere, unlike mmengine's;

    and, in the middle of an accumulation, the ``gradients`` so far (of a run without other ranks) with
    their ``loss_scale``. The precision may be another one after it.
    A resumed epoch goes on with the batches that are left; a validation that was due takes place.
    Augmentations depend on seed, rank and position alone, see
    :mod:`~flatten_det.train.sample_order`; the model's random numbers on seed and iteration, see
    :mod:`~flatten_det.train.sample_order`.
    """

    # When the training begins, the other hooks must be ready for the validation.
    priority = "LOWEST"

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}
        self._validating = False
        # Of the epoch that is under way: its number, and the iteration that it began with.
        self._epoch, self._epoch_begin = -1, 0
        # Batches of the epoch to begin that a resumed run has done.
        self._done_before = 0

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember where the loaded run was, and have its optimizer fit this one's."""
        self._loaded = {
            "position": checkpoint.get("meta", {}).get("position", {}),
            "gradients": checkpoint.get("gradients", {}),
        }
        optimizer = checkpoint.get("optimizer", {})
        if optimizer.get("loss_scaler") == {}:
            # Of bf16, which has no scale; one of fp16 would not take it.
            del optimizer["loss_scaler"]
        if runner._resume and optimizer and isinstance(runner.optim_wrapper, OptimWrapper):
            parameters = [parameter for _, parameter in _parameters(runner.model)]
            fit_saved_optimizer(checkpoint, runner.optim_wrapper, parameters)

    def before_train(self, runner: Runner) -> None:
        """Restore order, position and gradients, and make up for the validation.

        Raises:
            UserError: The run stopped within an epoch that is of another length now.
        """
        loop = runner.train_loop
        # A new training, perhaps from the weights of another one, takes no position from it.
        loaded = self._loaded if runner.iter else {}
        position = loaded.get("position", {})
        if isinstance(loop, EpochBasedTrainLoop | IterBasedTrainLoop):
            if runner.iter:
                _restore_order(runner, loop.dataloader, position)
            loop.dataloader = with_positions(loop.dataloader, (runner.seed, get_rank()))
            if isinstance(loop, IterBasedTrainLoop):
                loop.dataloader_iterator = _PositionedIterator(loop.dataloader)
            elif done := position.get("epoch_batches_done"):
                _skip_batches(loop, done, position["epoch_batches"])
                self._done_before = done
        rescale = loss_scale(runner.optim_wrapper) / position.get("loss_scale", 1.0)
        for name, parameter in _parameters(runner.model):
            if name in loaded.get("gradients", {}):
                parameter.grad = loaded["gradients"][name].to(parameter) * rescale
        self._loaded = {}
        if position.get("validation_due") and runner.val_loop is not None:
            runner.val_loop.run()

    def before_train_epoch(self, runner: Runner) -> None:
        """Note where the epoch begins, or began."""
        self._epoch = runner.epoch
        self._epoch_begin = runner.iter - self._done_before
        self._done_before = 0

    def before_val(self, runner: Runner) -> None:
        """Note that checkpoints belong to a validation from here on, such as the best one."""
        self._validating = True

    def after_val(self, runner: Runner) -> None:
        """Note that they no longer do."""
        self._validating = False

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the position."""
        meta, loop = checkpoint["meta"], runner.train_loop
        position = meta.setdefault("position", {})
        position["written"] = time.time()
        sampler_seed = getattr(_sampler(runner.train_dataloader), "seed", None)
        if sampler_seed is not None:
            position["sampler_seed"] = sampler_seed
        if isinstance(loop, EpochBasedTrainLoop):
            within = meta["epoch"] == self._epoch and not self._validating
            done = meta["iter"] - self._epoch_begin if within else 0
            position.update(epoch_batches=_epoch_batches(runner), epoch_batches_done=done)
            stage = 0 if done else meta["epoch"]
            last = runner.max_epochs
        else:
            stage, last = meta["iter"], runner.max_iters
        due = not self._validating and runner.val_loop is not None and _validates(loop, stage, last)
        position.setdefault("validation_due", due)  # An interruption knows it better.
        if not is_complete(runner) and get_world_size() == 1:
            position["loss_scale"] = loss_scale(runner.optim_wrapper)
            checkpoint["gradients"] = {
                name: parameter.grad.cpu()
                for name, parameter in _parameters(runner.model)
                if parameter.grad is not None
            }


class _PositionedIterator(_InfiniteDataloaderIterator):
    """What an iteration-based loop takes its batches from."""

    def skip_iter(self, num_iters: int) -> None:
        """Begin after the batches of earlier iterations, without reading them."""
        batches = self._dataloader.batch_sampler
        if isinstance(batches, PositionedBatches):
            self._epoch = batches.fast_forward(num_iters)
        else:
            super().skip_iter(num_iters)


def is_complete(runner: Runner) -> bool:
    """Whether no gradients are accumulated for a later update."""
    wrapper = runner.optim_wrapper
    return not isinstance(wrapper, OptimWrapper) or wrapper.should_update()


def _epoch_batches(runner: Runner) -> int:
    return runner.max_iters // runner.max_epochs


def _sampler(loader: DataLoader) -> Any:
    """What decides about the order, also where a batch sampler of the config's stands before it."""
    sampler = getattr(loader.batch_sampler, "sampler", None)
    return loader.sampler if sampler is None else sampler


def _restore_order(runner: Runner, loader: DataLoader, position: dict[str, Any]) -> None:
    """mmengine seeds the sampler before it reads the checkpoint."""
    seed = position.get("sampler_seed")
    if seed is None and not runner.cfg.get("randomness", {}).get("diff_rank_seed"):
        seed = runner.seed
    if seed is not None and hasattr(_sampler(loader), "seed"):
        _sampler(loader).seed = seed


def _skip_batches(loop: EpochBasedTrainLoop, done: int, expected: int) -> None:
    if expected != len(loop.dataloader):
        raise UserError(
            f"the run to resume stopped after {done} of {expected} batches of an epoch, "
            f"which now has {len(loop.dataloader)}: use the same data, batch size and "
            "number of GPUs, or resume from an earlier checkpoint with --resume PATH"
        )
    if isinstance(loop.dataloader.batch_sampler, PositionedBatches):
        loop.dataloader.batch_sampler.skip(done, loop.epoch)


def _validates(loop: Any, stage: int, last: int) -> bool:
    """Whether mmengine's loops validate after ``stage`` of ``last`` epochs or iterations."""
    if not stage:
        return False
    chosen = bisect.bisect(loop.dynamic_milestones, stage + 1) - 1
    interval = loop.dynamic_intervals[chosen]
    return stage >= loop.val_begin and (stage % interval == 0 or stage == last)


def _parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list((model.module if is_model_wrapper(model) else model).named_parameters())


def resume_from(cfg: Config, checkpoint: str) -> None:
    """Continue a run: from ``checkpoint``, or for ``"auto"`` from the newest valid one of the work dir.

    Raises:
        UserError: There is no such checkpoint, or it cannot be read.
    """
    if checkpoint == "auto":
        checkpoint = newest_valid_checkpoint(cfg.work_dir)
    else:
        check_checkpoint(checkpoint)
        reason = None if "://" in checkpoint else why_not_resumable(checkpoint)
        if reason is not None:
            raise UserError(
                f"checkpoint {checkpoint} cannot be resumed: {reason}: give another one, or start from "
                "its weights alone with --cfg-options load_from=... instead of --resume"
            )
    cfg.resume = True
    cfg.load_from = checkpoint
