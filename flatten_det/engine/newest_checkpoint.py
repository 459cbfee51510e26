"""The newest checkpoint of a run that can be resumed from, whatever happened to the others."""

import os
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.safe_loading import load_as_data
from ..checkpoints.trust import load_local
from .errors import UserError, explain

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
    names, newest first, and reads them whole. Each one that is no good is named in a warning.

    Returns:
        A path; or what ``last_checkpoint`` says if that is a URL, which is not looked at.

    Raises:
        NoCheckpointError: There is no checkpoint.
        UserError: There is none that is valid.
    """
    work_dir = Path(work_dir)
    pointer = work_dir / "last_checkpoint"
    recorded = pointer.read_text().strip() if pointer.is_file() else ""
    if "://" in recorded:
        return recorded
    folders = {work_dir}
    # The record is an absolute path, which names the original's checkpoints in a copied work dir.
    if recorded and not (work_dir / Path(recorded).name).exists():
        folders.add(Path(recorded).parent)
    paths = {path for folder in folders for path in folder.glob("*.pth") if path.is_file()}
    if not paths:
        raise NoCheckpointError(
            f"no checkpoint to resume in work dir {work_dir}: give the interrupted run's "
            "--work-dir, or leave out --resume to start anew"
        )
    reasons = []
    # Times are in seconds: of two checkpoints of one moment, the record knows the later one.
    ages = {path: (*_time_and_iteration(path), path.name == Path(recorded).name) for path in paths}
    for path in sorted(paths, key=ages.get, reverse=True):
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


def _time_and_iteration(path: Path) -> tuple[str, int]:
    """What sorts checkpoints by the time of their writing, which a copy's own time is not.

    A higher iteration may be older: that of an earlier training in the same folder.
    """
    try:
        meta = _read_meta(path)
        return str(meta["time"]), int(meta["iter"])
    except Exception:
        # It will be found out why it cannot be read when its turn comes.
        return time.strftime("%Y%m%d_%H%M%S", time.localtime(path.stat().st_mtime)), 0


def _read_meta(path: Path) -> dict[str, Any]:
    return load_as_data(str(path), map_location="cpu", mmap=True)["meta"]
