"""Locks of open files, which the system gives back when their process ends in whatever way."""

import os
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

    # A locked part of a file cannot be read by others: it lies behind all content.
    _BEHIND_ALL = 1 << 30


def lock(file: IO) -> bool:
    """Lock an open file as long as it is open; False if it is locked already.

    A forked process that has the file open too keeps the lock.

    Raises:
        OSError: The file system has no locks.
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
