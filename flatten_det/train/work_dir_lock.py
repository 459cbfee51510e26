"""One training at a time in a work dir."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

from mmengine.dist import broadcast_object_list, is_main_process

from ..errors import UserError
from ..files.atomic import lock

LOCK_NAME = ".flatten_det.lock"
_MAX_NOTE = 200  # characters

# Of this process, by work dir; None where another rank has the lock, or nobody can.
_held: dict[Path, IO | None] = {}


def _forget_in_child() -> None:
    """Data workers, which outlive a killed training for seconds, do not hold its lock."""
    for file in filter(None, _held.values()):
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


@contextlib.contextmanager
def locked_work_dir(work_dir: str | Path) -> Iterator[None]:
    """Keep other trainings out of a folder; of several ranks, the first one does so for all.

    Within another one for the same folder it changes nothing. The lock is the system's, of an open
    file: it ends with the process, whatever becomes of the file. Where there are no locks, a warning
    says so.

    Raises:
        UserError: Another process trains there; it says which one, on all ranks.
    """
    folder = Path(os.path.realpath(work_dir))
    if folder in _held:
        yield
        return
    refusals = [_lock(folder, work_dir) if is_main_process() else None]
    broadcast_object_list(refusals)
    if refusals[0] is not None:
        raise UserError(refusals[0])
    _held.setdefault(folder)
    try:
        yield
    finally:
        if (file := _held.pop(folder, None)) is not None:
            # Windows removes no open file.
            with contextlib.suppress(OSError):
                os.unlink(folder / LOCK_NAME)
            file.close()


def _lock(folder: Path, shown: str | Path) -> str | None:
    """Why not, if another process has the lock."""
    path = folder / LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115
            if not lock(file):
                file.seek(0)
                holder = file.readline(_MAX_NOTE).strip() or "which does not say who it is"
                file.close()
                return (
                    f"work dir {shown} is in use by another training ({holder}): wait for its end, or "
                    "give another folder"
                )
            if path.exists() and os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                break
            file.close()  # Its holder removed it meanwhile.
    except OSError as error:
        print(
            f"warning: work dir {shown} cannot be locked ({error.strerror}): make sure that no other "
            "training uses it",
            file=sys.stderr,
        )
        return None
    _held[folder] = file
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    with contextlib.suppress(OSError):  # On a full disk.
        file.truncate(0)
        holder = f"process {os.getpid()} on {socket.gethostname()} since {now}\n"
        os.write(file.fileno(), holder.encode())
    return None
