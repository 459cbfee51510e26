"""Files that are written whole or not at all: after a kill, a power cut or on a full disk."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from .errors import UserError

PARTIAL_SUFFIX = ".partial"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# What file systems answer that cannot flush a folder.
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EISDIR)


class DiskFullError(UserError):
    """There was no room for a file; an earlier file of the same name is as it was."""


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file such that, at any moment, its name stands for the old or the new content.

    On return the content has reached the disk, and a power cut no longer harms it.

    Raises:
        DiskFullError: There is no room for it. No part of it is left.
        OSError: It cannot be written for another reason. No part of it is left either.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            raise _disk_full(path, len(content), error.errno) from error
        raise
    _flush_folder(path.parent)


def _disk_full(path: Path, size: int, code: int) -> DiskFullError:
    what = "the disk is full" if code == errno.ENOSPC else "the disk quota is used up"
    free = shutil.disk_usage(path.parent).free
    return DiskFullError(
        f"cannot write {path}: {what}: it takes {size / 1e6:.1f} MB, and {free / 1e6:.1f} MB are "
        "free there: make room, or choose another folder"
    )


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


def remove_partial_files(folder: str | Path) -> None:
    """Remove what writers that were killed have left behind."""
    for path in Path(folder).glob(f"*{PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)


class AtomicLocalBackend(LocalBackend):
    """mmengine's access to local files, with :func:`write_atomically`."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file whole or not at all, and its folder where there is none."""
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        """Write a text file whole or not at all."""
        self.put(obj.encode(encoding), filepath)


@contextlib.contextmanager
def atomic_local_files() -> Iterator[None]:
    """Let mmengine write local files, checkpoints above all, whole or not at all.

    Its other backends (s3, petrel and the like) are left alone: their services have no rename.
    """
    register_backend("local", AtomicLocalBackend, force=True, prefixes="")
    try:
        yield
    finally:
        register_backend("local", LocalBackend, force=True, prefixes="")
