"""Standard output and error whose reader may go away without harm to the work."""

import contextlib
import errno
import io
import os
import sys

from .errors import UserError

# A pipe without a reader, as after ``| head``, and a terminal that was closed.
_NOBODY_READS = (errno.EPIPE, errno.EIO)


# Why standard output was not written, if it was not for want of a reader.
_lost: list[OSError] = []


class _Stream(io.FileIO):
    """A descriptor that becomes the null device when it cannot be written to any more."""

    def write(self, content) -> int | None:
        """Write, or drop."""
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in _NOBODY_READS and self.fileno() == 1:
                _lost.append(error)
            # What C code prints, and what is flushed when Python ends, goes there as well.
            _to_devnull(self.fileno())
            return len(content)


def _to_devnull(descriptor: int) -> None:
    devnull = os.open(os.devnull, os.O_RDWR)
    if devnull != descriptor:
        os.dup2(devnull, descriptor)
        os.close(devnull)


def outlive_readers() -> None:
    """Let standard output and error be dropped when nobody reads them, instead of ending the work.

    Where they are closed from the start, the next file that is opened would get what is printed. A
    standard output that cannot be written for another reason is told by :func:`check_output`.
    """
    if os.name != "posix":
        return
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream, original = getattr(sys, name), getattr(sys, f"__{name}__")
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
            try:
                os.fstat(descriptor)
            except OSError:
                _to_devnull(descriptor)
        elif stream is original:  # Else someone captures it.
            with contextlib.suppress(OSError):
                stream.flush()
            raw = _Stream(descriptor, "wb", closefd=False)
            replaced = io.TextIOWrapper(
                raw if stream.write_through else io.BufferedWriter(raw),
                stream.encoding,
                stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, replaced)
            setattr(sys, f"__{name}__", replaced)


def check_output() -> None:
    """Make sure that standard output has been written, or that nobody reads it.

    Raises:
        UserError: It is a file on a full disk, for example.
    """
    sys.stdout.flush()
    if _lost:
        raise UserError(
            f"standard output cannot be written: {_lost.pop().strerror}: what was printed is not "
            "complete; make room, or send it elsewhere"
        )
