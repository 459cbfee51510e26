"""What to tell when the machine runs out of memory or disk in the middle of a training."""

import contextlib
import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import NO_ROOM, UserError, explain, is_out_of_memory
from ..files.atomic import UnwritableError
from .checkpoints import NoCheckpointError, newest_valid_checkpoint
from .finite_guard import NonFiniteError
from .stop import REPEAT_WITH_RESUME

_WORKER_DIED = re.compile(r"DataLoader worker \(pid.*?\) (?:is )?(killed by signal: \w+|exited)")


class TrainingStopped(UserError):
    """The training cannot go on. The message says why, and from which checkpoint it could."""


@contextlib.contextmanager
def told_with_last_checkpoint(
    work_dir: str | Path, to_continue: str = REPEAT_WITH_RESUME
) -> Iterator[None]:
    """Explain what stops a training without fault of data or config, and name its checkpoint.

    Args:
        work_dir: of the training.
        to_continue: what the user is told to do to go on from that checkpoint.

    Raises:
        TrainingStopped: For a full disk or memory, a data worker that died, or losses that are not
            finite.
    """
    try:
        yield
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise TrainingStopped(f"{reason}. {_last_checkpoint(work_dir, to_continue)}") from error


def _reason(error: Exception) -> str | None:
    if isinstance(error, UnwritableError | NonFiniteError):
        return str(error)
    if is_out_of_memory(error):
        return explain(error)
    if isinstance(error, OSError) and error.errno in (*NO_ROOM, errno.EROFS):
        return explain(error)
    # PyTorch raises it wherever the training is at that moment, which may make another error of it.
    cause: BaseException | None = error
    seen = set()  # An error may be its own cause.
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, RuntimeError) and (died := _WORKER_DIED.search(str(cause))):
            return _worker_death(died[1])
        cause = cause.__cause__ or cause.__context__
    return None


def _worker_death(how: str) -> str:
    return (
        f"a data worker died ({how}), most likely as memory ran out ({_free_memory()}): use fewer "
        "workers (--cfg-options train_dataloader.num_workers=1 val_dataloader.num_workers=1) or "
        "smaller batches, or give a container more shared memory (docker run --shm-size)"
    )


def _free_memory() -> str:
    """Of the whole machine; a container's or job's own limit may be lower."""
    free = []
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        free.append(f"{int(kilobytes) / 1e6:.1f} GB of RAM")
    with contextlib.suppress(OSError):
        free.append(f"{shutil.disk_usage('/dev/shm').free / 1e9:.1f} GB of /dev/shm")
    return f"free now: {' and '.join(free) or 'unknown'}"


def _last_checkpoint(work_dir: str | Path, to_continue: str) -> str:
    """What resuming would go on from, which may be newer than what ``last_checkpoint`` names."""
    try:
        path = newest_valid_checkpoint(work_dir)
    except NoCheckpointError:
        return "No checkpoint was saved yet"
    except UserError as error:
        message = str(error)
        return message[0].upper() + message[1:]
    return f"The last checkpoint is {path}: to go on from there, {to_continue}"
