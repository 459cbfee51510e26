"""One-line messages for the mistakes a user can make, told apart from bugs of ours."""

import errno
import os
import re
import sys
from collections.abc import Iterable
from concurrent.futures.process import BrokenProcessPool
from difflib import get_close_matches


class CheckpointError(ValueError):
    """A checkpoint file that cannot be read or does not fit the model; the message says why."""


OUT_OF_MEMORY = "out of memory"


def describe_failure(error: BaseException) -> str:
    """One line: that memory ran out, or the class of the error and the first line of its message."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    if isinstance(error, BrokenProcessPool):
        return f"{OUT_OF_MEMORY}, it seems: the system killed the process"
    return reason_of(error, "no message")[:200]


def reason_of(error: BaseException, nothing: str = "no detail") -> str:
    """The class of an error and the first line of its message, or ``nothing`` if it has none."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip() if lines else nothing}"


def in_one_line(error: BaseException) -> str:
    """The class of an error and all of its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device."""
    # torch's by its name: what runs exported models does without torch.
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"}:
        return True
    # torch's allocator for the CPU has no exception of its own.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


# What the system says of a place that takes no more.
NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file exceeds the largest size allowed (see ulimit -f)",
}
# What gloo says when another process of a distributed run has ended; NCCL has classes of errors for it.
_PEER_IS_GONE = re.compile(
    r"Connection (closed by|reset by) peer|Broken pipe|gloo.*Timed out waiting"
)
PEER_LOST = "the connection to another process of this run was lost"
# What it says of paths.
_OF_PATHS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


class UserError(Exception):
    """Something the user can put right. The message is one line: what is wrong, and what to do."""

    def __str__(self) -> str:
        # A DataLoader worker sends its exceptions as text: the formatted traceback, whose last
        # line is "<class>: <our message>".
        message = super().__str__()
        if message.startswith("Caught "):
            message = message.rstrip().rsplit("\n", 1)[-1].split(": ", 1)[-1]
        return message


def explain(error: BaseException) -> str | None:
    """Say in one line what went wrong, if it is a mistake that the user can put right.

    None for an unexpected exception, whose traceback should be seen.
    """
    if isinstance(error, UserError | CheckpointError):
        return str(error)
    message = _explain_others(error)
    # Names from files and configs may have line ends of their own.
    return message and message.replace("\n", "\\n")


def _explain_others(error: BaseException) -> str | None:
    if isinstance(error, FileNotFoundError):
        what = str(error).rstrip(".") if error.filename is None else f"{error.filename} not found"
        return f"{what}: check the paths in the config and the command"
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        what = f"no room for {error.filename}" if error.filename else error.strerror
        return f"{NO_ROOM[error.errno]}: {what}: make room, or choose another folder"
    if isinstance(error, OSError) and error.errno in _OF_PATHS:
        return f"{error.filename}: {error.strerror}: check the path and its permissions"
    if isinstance(error, FileExistsError) and error.filename is None:
        return str(error)  # Shapes' own, which says what to do.
    if isinstance(error, KeyError) and " registry. Please check" in str(error):
        component = str(error.args[0]).split(". Please check")[0]
        return (
            f"the config asks for something unknown: {component}: check its spelling, and that "
            "custom_imports names the module that defines it"
        )
    # mmengine's, of a bare Exception, and of one that a data worker passes on.
    if "Cannot find valid image after" in str(error):
        return (
            "the pipeline of a data set filtered out one image after the other, up to its max_refetch: check "
            "what it filters by, such as the min_gt_bbox_wh of FilterAnnotations, and the objects' sizes"
        )
    if lost_a_peer(error):
        return f"{PEER_LOST}: see what that one says of its end ({in_one_line(error)[:200]})"
    if is_out_of_memory(error):
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return (
            f"memory ran out ({reason}): use smaller images or batches; a training takes less with --amp "
            "and --cfg-options model.backbone.with_cp=True"
        )
    return None


def lost_a_peer(error: BaseException) -> bool:
    """Whether a process of a distributed run failed because another one was gone."""
    # torch's by its name: what runs exported models does without torch.
    names = {kind.__name__ for kind in type(error).__mro__}
    return "DistError" in names or (
        "RuntimeError" in names and bool(_PEER_IS_GONE.search(str(error)))
    )


def is_first_process() -> bool:
    """Whether this is the first of several ranks, by what their launcher says, or one alone."""
    names = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
    return next((os.environ[name] for name in names if name in os.environ), "0") == "0"


def warn_once(message: str) -> None:
    """Print a warning; of several ranks, perhaps before they know of each other, the first one does."""
    if is_first_process():
        print(f"warning: {message}", file=sys.stderr)


def did_you_mean(name: str, known: Iterable[str], most: int = 1, cutoff: float = 0.6) -> str:
    """``"did you mean a or b? "`` of the known names most like this one; nothing if none is."""
    similar = get_close_matches(name, list(known), most, cutoff)
    return f"did you mean {' or '.join(similar)}? " if similar else ""


def printable(text: str) -> str:
    """A stranger's text without anything that a terminal would obey or could not show."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def listed(items: Iterable[object], most: int = 3, separator: str = ", ") -> str:
    """The first items, and how many there are besides."""
    texts = [str(item) for item in items]
    more = f"{separator}... and {len(texts) - most} more" if len(texts) > most else ""
    return f"{separator.join(texts[:most])}{more}"
