"""The newest checkpoint of a run that can be resumed from, whatever happened to the others."""

import os
import sys
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.safe_loading import load_as_data
from ..checkpoints.trust import load_local
from .errors import UserError, explain

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


def newest_valid_checkpoint(work_dir: str | Path) -> str:
    """Find where an interrupted run can go on.

    Looks at all checkpoints in the work dir, and at those beside the one that ``last_checkpoint``
    names, and reads them whole: that one first, unless its run went on after it, then the others,
    newest first. Each one that is no good is named in a warning.

    Returns:
        A path; or what ``last_checkpoint`` says if that is a URL, which is not looked at.

    Raises:
        NoCheckpointError: There is no checkpoint.
        UserError: There is none that is valid.
    """
    work_dir = Path(work_dir)
    recorded = _recorded(work_dir)
    if "://" in recorded:
        return recorded
    folders, name = {work_dir}, Path(recorded).name
    # The record is an absolute path, which names the original's checkpoints in a copied work dir.
    if Path(recorded).parent.name and not (work_dir / name).exists():
        folders.add(Path(recorded).parent)
    paths = {path for folder in folders for path in folder.glob("*.pth") if path.is_file()}
    if not paths:
        raise NoCheckpointError(
            f"no checkpoint to resume in work dir {work_dir}: give the interrupted run's "
            "--work-dir, or leave out --resume to start anew"
        )
    reasons = []
    ages = {path: _Age.of(path) for path in paths}
    order = sorted(paths, key=lambda path: (ages[path].written, ages[path].iteration), reverse=True)
    for last in [path for path in order if path.name == name]:
        # Whatever the clock says, only what was surely written after the recorded one comes before it.
        later = [path for path in order if ages[path].is_surely_after(ages[last])]
        order = [*later, last, *(path for path in order if path not in (*later, last))]
    for path in order:
        reason = why_not_resumable(path)
        if reason is None:
            return str(path)
        reasons.append(reason)
        if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0:
            print(f"warning: skipped checkpoint {path}: {reason}", file=sys.stderr)
    raise UserError(
        f"none of the {len(reasons)} checkpoints in work dir {work_dir} can be resumed: leave out "
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
        checkpoint = load_local(str(path), map_location="cpu")
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
    if not all(_is_count(checkpoint["meta"].get(key)) for key in ("epoch", "iter")):
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


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


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

    @classmethod
    def of(cls, path: Path) -> "_Age":
        modified = path.stat().st_mtime
        try:
            meta = load_as_data(str(path), map_location="cpu", mmap=True)["meta"]
            written = meta.get("position", {}).get("written")
            if type(written) is not float:
                # mmengine's time, which is that of the place where it was written.
                written = time.mktime(time.strptime(meta["time"], "%Y%m%d_%H%M%S"))
            run = meta.get("experiment_name")
            return cls(written, int(meta["iter"]), run if type(run) is str else None, modified)
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
