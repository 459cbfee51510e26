"""Files that are written whole or not at all, and locks of files."""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

from ..errors import NO_ROOM, UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

    # A locked part of a file cannot be read by others: it lies behind all content.
    _BEHIND_ALL = 1 << 30


def lock(file: IO) -> bool:
    """Lock an open file as long as it, or a forked process's, is open; False if it is locked already.

    An OSError if the file system has no locks.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            position = os.lseek(file.fileno(), 0, os.SEEK_CUR)
            os.lseek(file.fileno(), _BEHIND_ALL, os.SEEK_SET)
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(file.fileno(), position, os.SEEK_SET)
    except (BlockingIOError, PermissionError):
        return False
    return True


# What file systems answer that cannot flush a folder.
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EISDIR)
_PARTIAL = re.compile(r"\.flatten_det-[0-9a-f]{16}\.partial")
_LOCK = "lock"  # in a folder


class UnwritableError(UserError, OSError):
    """A file could not be written; an earlier file of the same name is as it was."""


class DiskFullError(UnwritableError):
    """There was no room for a file; an earlier file of the same name is as it was."""


def write_atomically(path: str | Path, content: bytes, durable: bool = True) -> None:
    """Write a file such that, at any moment, its name stands for the old or the new content.

    Its folder is made. Of several processes that write one file, the last one prevails. A link leads to
    the file that is written. What is no file, such as ``/dev/stdout`` or a pipe, is not replaced. If
    ``durable``, the content has reached the disk then, where a power cut no longer harms it; what can be
    made again need not wait for that.

    Raises:
        UnwritableError: It cannot be written, a DiskFullError for want of room. No part of it is left.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
        else:
            _replace(Path(os.path.realpath(path)), content, durable)
    except OSError as error:
        raise _told(error, path, len(content)) from error


def _replace(path: Path, content: bytes, durable: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    is_there = path.exists()
    if is_there and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "it is write-protected")
    file, partial = _new_partial(path.parent)
    try:
        with file:
            file.write(content)
            if is_there:
                shutil.copymode(path, partial)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            else:
                # A disk over the network may tell only when a descriptor is closed; the lock must last.
                os.close(os.dup(file.fileno()))
            if fcntl is None:
                file.close()  # Windows renames no open file.
            os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    if durable:
        _flush_folder(path.parent)


def _new_partial(folder: Path) -> tuple[BinaryIO, Path]:
    """A file whose name no other writer has, locked as long as it is open."""
    while True:
        # Of one length, as the name of the file may be as long as names can be.
        path = folder / f".flatten_det-{secrets.token_hex(8)}.partial"
        file = open(path, "xb")  # noqa: SIM115
        if _keeps(file, path):
            return file, path


def _keeps(file: BinaryIO, path: Path) -> bool:
    """Lock a new file, or that of a new folder; closed and False if it was taken for a leftover before.

    Who takes it has the lock, and may not have removed it yet.
    """
    is_locked = True
    with contextlib.suppress(OSError):  # A file system without locks.
        is_locked = lock(file)
    if is_locked and path.exists():
        return True
    file.close()
    return False


def _told(error: OSError, path: Path, size: int) -> UnwritableError:
    if error.errno not in NO_ROOM:
        reason = error.strerror or error
        return UnwritableError(f"cannot write {path}: {reason}: check the path and its permissions")
    where = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(where).free
    return DiskFullError(
        f"cannot write {path}: {NO_ROOM[error.errno]}: it takes {_bytes(size)}, and {_bytes(free)} are "
        "free there: make room, or choose another folder"
    )


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _flush_folder(folder: Path) -> None:
    """Make a new name in a folder outlive a power cut."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise


@contextlib.contextmanager
def partial_folder(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent`` for what :func:`replace_folder` moves to its place when it is complete.

    In the end it is removed, with all that is still in it; what a killed process left is removed before.

    Raises:
        UnwritableError: It cannot be made.
    """
    path = parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        remove_partial_files(parent)
        while True:
            path = parent / f".flatten_det-{secrets.token_hex(8)}.partial"
            path.mkdir()
            file = open(path / _LOCK, "xb")  # noqa: SIM115
            if _keeps(file, path):
                break
    except OSError as error:
        raise _told(error, path, 0) from error
    try:
        with file:
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def replace_folder(new: Path, target: Path) -> None:
    """Move a folder out of a :func:`partial_folder` to its place; one that is there is replaced by it.

    Raises:
        UnwritableError: It cannot be moved; what was there is as it was.
    """
    old = new.with_name(f"{new.name}.old")
    try:
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(new, target)
        except BaseException:
            if old.exists():
                os.replace(old, target)
            raise
    except OSError as error:
        raise _told(error, target, 0) from error


def replace_file(new: Path, target: Path) -> None:
    """As :func:`replace_folder`, for a file; in the same file system."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(new, target)
    except OSError as error:
        raise _told(error, target, 0) from error


def remove_partial_files(folder: str | Path) -> None:
    """Remove what writers that were killed have left behind, and nothing that is written at the moment."""
    for path in Path(folder).iterdir() if fcntl is not None else ():
        if not _PARTIAL.fullmatch(path.name) or path.is_symlink():
            continue
        is_folder = path.is_dir()
        if is_folder or path.is_file():
            # Another process may remove it, or it is on a file system without locks, or read-only.
            with (
                contextlib.suppress(OSError),
                open(path / _LOCK if is_folder else path, "rb") as file,
            ):
                if lock(file):
                    shutil.rmtree(path) if is_folder else path.unlink()


def refuse_overwriting(
    inputs: Iterable[str | Path], outputs: Iterable[str | Path], option: str
) -> None:
    """A UserError if a result would take the place of what it is made of, if only by another name.

    Inputs that do not exist do not matter; ``option`` says where the outputs go.
    """
    known = {identity: path for path in inputs if (identity := _identity(path))}
    for output in outputs:
        if (identity := _identity(output)) and identity in known:
            raise UserError(
                f"{option}: the result {output} would overwrite the input {known[identity]}: choose "
                "another place"
            )


def _identity(path: str | Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = os.stat(path)
        return status.st_dev, status.st_ino
    return None
