"""Periodic checkpoints of which the last two are always there."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import BaseStorageBackend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .atomic_files import remove_partial_files, write_atomically


class _PostponedRemovals:
    """A file backend that removes files of one folder, and only when their successor is written.

    A checkpoint names the best one so far, which may be that of another run, in its folder.
    """

    def __init__(self, backend: BaseStorageBackend, folder: str) -> None:
        self._backend = backend
        self._folder = os.path.realpath(folder)
        self._removals: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        """Take note of a file, or of a folder as DeepSpeed writes it."""
        if os.path.dirname(os.path.realpath(path)) == self._folder:
            self._removals.append(path)

    rmtree = remove

    def carry_out(self) -> None:
        """Remove what was noted, where it exists."""
        for path in self._removals:
            if self._backend.isfile(path):
                self._backend.remove(path)
            elif self._backend.isdir(path):
                self._backend.rmtree(path)
        self._removals.clear()


class DurableCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, which removes no checkpoint before the next one is written.

    Keeps two at least: ``max_keep_ckpts=1`` counts as 2, as the last one may turn out unreadable.
    ``last_checkpoint`` names a checkpoint only after that has reached the disk. Other arguments
    are those of :class:`mmengine.hooks.CheckpointHook`.
    """

    def __init__(self, *args, max_keep_ckpts: int = -1, **kwargs) -> None:
        if max_keep_ckpts > 0:
            max_keep_ckpts = max(2, max_keep_ckpts)
        super().__init__(*args, max_keep_ckpts=max_keep_ckpts, **kwargs)

    def before_train(self, runner: Runner) -> None:
        """Find out where checkpoints go, and tidy up after a run that was killed there."""
        super().before_train(runner)
        self.file_backend = _PostponedRemovals(self.file_backend, str(self.out_dir))
        if is_main_process():
            for folder in {str(self.out_dir), runner.work_dir}:
                if "://" not in folder:
                    remove_partial_files(folder)

    def after_train_epoch(self, runner: Runner) -> None:
        """Save, and only then remove what is too old."""
        super().after_train_epoch(runner)
        self.file_backend.carry_out()

    def after_train_iter(self, runner: Runner, batch_idx: int, **kwargs) -> None:
        """Save, and only then remove what is too old."""
        super().after_train_iter(runner, batch_idx, **kwargs)
        self.file_backend.carry_out()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Save the best checkpoint, and only then remove the one that was the best."""
        super().after_val_epoch(runner, metrics)
        self.file_backend.carry_out()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            # With the one to be removed: should the run be killed before that, its successor does.
            written = [*self.keep_ckpt_ids, step]
            runner.message_hub.update_info("keep_ckpt_ids", written)
            if len(written) > self.max_keep_ckpts and is_main_process():
                oldest = self.filename_tmpl.format(written[0])
                self.file_backend.remove(self.file_backend.join_path(self.out_dir, oldest))
            self.keep_ckpt_ids.append(step)  # Of limited length: drops the oldest.

        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            pointer = Path(runner.work_dir, "last_checkpoint")
            write_atomically(pointer, str(self.last_ckpt).encode())


@contextlib.contextmanager
def durable_checkpoints() -> Iterator[None]:
    """Let configs that ask for a CheckpointHook have a :class:`DurableCheckpointHook`.

    Not by a changed config, as that is stored beside the results, for tools without flatten_det.
    """
    HOOKS.register_module(name="CheckpointHook", module=DurableCheckpointHook, force=True)
    try:
        yield
    finally:
        HOOKS.register_module(name="CheckpointHook", module=CheckpointHook, force=True)
