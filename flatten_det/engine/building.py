"""What goes wrong between a config and the work that it is for: whose fault it is, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from ..backbones import use_cuda_graphs
from .errors import UserError, explain


class StageHook(Hook):
    """Knows how far a training or a test has come.

    Attributes:
        checkpoint_is_read: what follows, until it has begun, comes of the checkpoint's content.
        has_begun: everything is built and restored, and, after a checkpoint, one iteration was done:
            the optimizer and the schedulers take what they were given as it is until then. Of a test, one
            iteration was done.
    """

    priority = "HIGHEST"

    def __init__(self) -> None:
        self.checkpoint_is_read = False
        self.has_begun = False
        self._iterations = 0

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note that a checkpoint was read."""
        self.checkpoint_is_read = True

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Note that the first iteration begins, or, after a checkpoint, the second."""
        self.has_begun = self._iterations > 0 or not self.checkpoint_is_read
        self._iterations += 1

    def before_test(self, runner: Runner) -> None:
        """Note that the checkpoint fits: :class:`~.checkpoint.CheckFitHook` has looked at it."""
        self.checkpoint_is_read = False

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Note that an iteration was done."""
        self.has_begun = True


@contextmanager
def named_building_errors(cfg: Config) -> Iterator[StageHook]:
    """Name the config or the checkpoint whose values cannot be what they are.

    The parts of the frameworks fail on them in a hundred ways, deep down and without a file's name.

    Yields:
        A hook for the runner, if there is one; until its ``has_begun``, errors are taken for those of the
        config.

    Raises:
        UserError: Something raised an unexpected error before the work had begun to go well.
    """
    stage = StageHook()
    try:
        yield stage
    except Exception as error:
        if stage.has_begun or explain(error) is not None:
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if stage.checkpoint_is_read:
            raise UserError(
                f"checkpoint {cfg.load_from} does not fit config file {cfg.filename} or its data, or is "
                f"damaged: {reason}: use what it was written with, or another checkpoint (--debug "
                "shows where it fails)"
            ) from error
        raise UserError(
            f"config file {cfg.filename}: what it says cannot be built: {reason}: correct it, or what "
            "--cfg-options change (--debug shows where it fails)"
        ) from error


def replay_cuda_graphs(model: nn.Module) -> None:
    """:func:`~flatten_det.backbones.use_cuda_graphs` for a model of a tool.

    Raises:
        UserError: if it has no backbone of this package.
    """
    try:
        use_cuda_graphs(model)
    except ValueError as error:
        raise UserError(f"--cuda-graphs: {error}: leave it out") from error
