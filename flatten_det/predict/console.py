"""What a person sees of a test: what is tested on what data, and its progress; the metrics come after it."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from mmdet.evaluation import DumpDetResults
from mmengine.dist import master_only
from mmengine.runner import Runner

from ..cli import as_shown
from ..train.console import (
    ConsoleHook,
    describe_data,
    describe_device,
    describe_model,
)
from ..train.run import log_file


class TestConsoleHook(ConsoleHook):
    """Prints a summary before a test, its progress in images, and the tables that the metrics log.

    For arguments see :class:`~flatten_det.train.console.ConsoleHook`.
    """

    shows_tables = True

    @master_only
    def before_test_epoch(self, runner: Runner) -> None:
        """Print what is tested on what."""
        self._images, self._begin = 0, time.perf_counter()
        self._total = len(runner.test_dataloader.dataset)
        self._introduce(runner, _describe_test(runner, self._config), "test", self._total)

    @master_only
    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence = ()
    ) -> None:
        """Show speed and remaining time, of all ranks together."""
        # The last batches of the ranks may repeat images.
        self._images = min(self._images + runner.world_size * len(outputs), self._total)
        rate = self._images / max(time.perf_counter() - self._begin, 1e-9)
        left = timedelta(seconds=round((self._total - self._images) / rate))
        is_last = batch_idx + 1 == len(runner.test_dataloader)
        numbers = [f"{rate:.3g} images/s", "computing metrics" if is_last else f"eta {left}"]
        self._show(batch_idx + 1, is_last, self._images, self._total, numbers)


def _describe_test(runner: Runner, config: str) -> dict[str, str]:
    metrics = [m for m in runner.test_evaluator.metrics if not isinstance(m, DumpDetResults)]
    return {
        "config": config,
        "model": describe_model(runner),
        "weights": str(runner.cfg.load_from),
        "test": describe_data(runner.test_dataloader, runner.world_size),
        "metrics": ", ".join(type(metric).__name__ for metric in metrics),
        "device": describe_device(runner),
        "log": as_shown(log_file(runner)),
    }
