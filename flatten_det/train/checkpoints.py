"""Checkpoints of a training: the last two are always there, and the newest valid one is found again."""

import os
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import BaseStorageBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ..errors import UserError, explain, warn_once
from ..files.atomic import remove_partial_files, write_atomically
from ..files.checkpoints import load_as_data, load_to_check


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
        self.file_backend.carry_out()


_LONGEST_PATH = 4096
# What a training cannot go on without.
_NEEDED = {
    "state_dict": "weights",
    "optimizer": "optimizer state, as checkpoints for inference",
    "message_hub": "logs",
    "meta": "meta data",
}


class NoCheckpointError(UserError):
    """A work dir has no checkpoint at all."""


def newest_valid_checkpoint(work_dir: str | Path, launch: str | None = None) -> str:
    """The path where an interrupted run can go on.

    Looks at all checkpoints in the work dir, and at those beside the one that ``last_checkpoint``
    names, and reads them whole: that one first, unless its run went on after it, then the others,
    newest first. Each one that is no good is named in a warning. If ``last_checkpoint`` says a URL, it is
    that, without a look at it.

    Args:
        work_dir: of the run.
        launch: look only at local ones that were written by this launch, see
            :func:`~flatten_det.distributed.launch_id`.

    Raises:
        NoCheckpointError: There is no checkpoint.
        UserError: There is none that is valid.
    """
    work_dir = Path(work_dir)
    recorded = _recorded(work_dir)
    if "://" in recorded and launch is None:
        return recorded
    folders, name = {work_dir}, Path(recorded).name
    # The record is an absolute path, which names the original's checkpoints in a copied work dir.
    if Path(recorded).parent.name and not (work_dir / name).exists():
        folders.add(Path(recorded).parent)
    paths = {path for folder in folders for path in folder.glob("*.pth") if path.is_file()}
    ages = {path: _Age.of(path) for path in paths}
    if launch is not None:
        paths = {path for path in paths if ages[path].launch == launch}
    if not paths:
        raise NoCheckpointError(
            f"no checkpoint to resume in work dir {work_dir}: give the interrupted run's "
            "--work-dir, or leave out --resume to start anew"
        )
    order = sorted(paths, key=lambda path: (ages[path].written, ages[path].iteration), reverse=True)
    for last in [path for path in order if path.name == name]:
        # Whatever the clock says, only what was surely written after the recorded one comes before it.
        later = [path for path in order if ages[path].is_surely_after(ages[last])]
        order = [*later, last, *(path for path in order if path not in (*later, last))]
    for path in order:
        reason = why_not_resumable(path)
        if reason is None:
            return str(path)
        warn_once(f"skipped checkpoint {path}: {reason}")
    raise UserError(
        f"none of the {len(order)} checkpoints in work dir {work_dir} can be resumed: leave out "
        "--resume to start anew, or give a copy of one of them with --resume PATH"
    )


def why_not_resumable(path: str | Path) -> str | None:
    """Say why a training cannot go on from a local checkpoint; None if it can.

    Reads all of it: the checksums of its parts, and its content, as data unless it is trusted.
    """
    whole = False
    try:
        whole = zipfile.is_zipfile(path)  # Which raises errors of its own for some headers.
        if whole:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                return f"it is damaged: the checksum of {damaged} is wrong"
        # Else written before PyTorch 1.6, perhaps.
        checkpoint = load_to_check(str(path))
    except Exception as error:
        if not whole:
            return f"it is incomplete, or no checkpoint at all ({Path(path).stat().st_size} bytes)"
        reason = explain(error) or f"{type(error).__name__}: {error}"
        return reason.strip().split("\n")[0].removeprefix(f"checkpoint {path} ")
    if not isinstance(checkpoint, dict):
        return f"it holds a {type(checkpoint).__name__} instead of weights by name"
    for key, content in _NEEDED.items():
        if not isinstance(checkpoint.get(key), Mapping):
            return f"it holds no {content}"
    counts = [checkpoint["meta"].get(key) for key in ("epoch", "iter")]
    if not all(type(count) is int and count >= 0 for count in counts):
        return "it does not say after which iteration it was saved"
    if not _are_logs(checkpoint["message_hub"]):
        return "its logs are damaged"
    return None


def _are_logs(hub: Mapping[str, Any]) -> bool:
    """Whether mmengine's message hub can go on from this."""
    kept = hub.get("resumed_keys", {})
    parts = (hub.get("log_scalars", {}), hub.get("runtime_info", {}), kept)
    return all(isinstance(part, Mapping) for part in parts) and all(
        isinstance(is_kept, bool) for is_kept in kept.values()
    )


def _recorded(work_dir: Path) -> str:
    """What ``last_checkpoint`` says; empty if that can be no path."""
    pointer = work_dir / "last_checkpoint"
    if not pointer.is_file():
        return ""
    with pointer.open("rb") as file:
        # A path need not be UTF-8; editors put marks before and after it, and a power cut leaves zeros.
        text = file.read(_LONGEST_PATH).decode("utf-8", "surrogateescape").strip("\ufeff\0 \t\r\n")
    try:
        (work_dir / Path(text).name).exists()
    except (OSError, ValueError):
        return ""
    return text


@dataclass(frozen=True)
class _Age:
    """When a checkpoint was written, of which a copy's own time says nothing.

    A higher iteration may be older: that of an earlier training in the same folder.
    """

    written: float
    iteration: int
    run: str | None
    modified: float
    launch: str | None = None

    @classmethod
    def of(cls, path: Path) -> "_Age":
        modified = path.stat().st_mtime
        try:
            meta = load_as_data(str(path), map_location="cpu", mmap=True)["meta"]
            position = meta.get("position", {})
            written = position.get("written")
            if type(written) is not float:
                # mmengine's time, which is that of the place where it was written.
                written = time.mktime(time.strptime(meta["time"], "%Y%m%d_%H%M%S"))
            run = meta.get("experiment_name")
            run = run if type(run) is str else None
            return cls(written, int(meta["iter"]), run, modified, position.get("launch"))
        except Exception:
            # It will be found out why it cannot be read when its turn comes.
            return cls(modified, 0, None, modified)

    def is_surely_after(self, recorded: "_Age") -> bool:
        """Whether the recorded one is not the last of its training, as a kill has come before the record."""
        if self.iteration <= recorded.iteration:
            return False
        # Iterations only grow within a run. Of different ones, all clocks must say so.
        is_same_run = self.run is not None and self.run == recorded.run
        is_newer = self.written > recorded.written and self.modified >= recorded.modified
        return is_same_run or is_newer
