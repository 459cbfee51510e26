"""Continue an interrupted training at the very batch where it stopped."""

from collections.abc import Iterator
from itertools import islice

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from .errors import UserError


class ResumePositionHook(Hook):
    """Does what mmengine's resume leaves out.

    The order of the data follows the resumed seed (mmengine seeds the sampler before it reads
    the checkpoint). After an :class:`~flatten_det.engine.interrupt.InterruptHook` checkpoint, a
    validation that was due takes place, and the interrupted epoch goes on with the batches that
    are left, so that iterations, epochs and schedules are those of an uninterrupted run.
    """

    # When the training begins, the other hooks must be ready for the validation.
    priority = "LOWEST"

    def __init__(self) -> None:
        self._interrupted: dict = {}
        self._whole_epoch: DataLoader | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember where the loaded run was interrupted."""
        self._interrupted = checkpoint.get("meta", {}).get("interrupted", {})

    def before_train(self, runner: Runner) -> None:
        """Restore order and position, and make up for the validation.

        Raises:
            UserError: The run stopped within an epoch that is of another length now.
        """
        if runner.iter == 0:
            return  # A new training, perhaps from the weights of an interrupted one.
        loop = runner.train_loop
        self._restore_order(runner, loop.dataloader)
        done = self._interrupted.get("epoch_batches_done", 0)
        if done and isinstance(loop, EpochBasedTrainLoop):
            expected = self._interrupted["epoch_batches"]
            if expected != len(loop.dataloader):
                raise UserError(
                    f"the run to resume stopped after {done} of {expected} batches of an epoch, "
                    f"which now has {len(loop.dataloader)}: use the same data, batch size and "
                    "number of GPUs, or resume from an earlier checkpoint with --resume PATH"
                )
            self._whole_epoch = loop.dataloader
            loop.dataloader = _without_first_batches(loop.dataloader, done)
        if self._interrupted.get("validation_due") and runner.val_loop is not None:
            runner.val_loop.run()

    def after_train_epoch(self, runner: Runner) -> None:
        """Go back to whole epochs."""
        if self._whole_epoch is not None:
            runner.train_loop.dataloader = self._whole_epoch
            self._whole_epoch = None

    @staticmethod
    def _restore_order(runner: Runner, loader: DataLoader) -> None:
        # With diff_rank_seed the sampler has a seed of its own, which no checkpoint knows.
        if runner.cfg.get("randomness", {}).get("diff_rank_seed"):
            return
        for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
            if hasattr(sampler, "seed"):
                sampler.seed = runner.seed


class _RemainingBatches:
    """A batch sampler without its first batches; ``sampler`` is where mmengine sets the epoch."""

    def __init__(self, batch_sampler, skip: int) -> None:
        self.batch_sampler = batch_sampler
        self.sampler = batch_sampler.sampler
        self.skip = skip

    def __iter__(self) -> Iterator[list[int]]:
        return islice(iter(self.batch_sampler), self.skip, None)

    def __len__(self) -> int:
        return len(self.batch_sampler) - self.skip


def _without_first_batches(loader: DataLoader, skip: int) -> DataLoader:
    """The same loader on what is left of its epoch; the skipped samples are never read."""
    return DataLoader(
        loader.dataset,
        batch_sampler=_RemainingBatches(loader.batch_sampler, skip),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
    )
