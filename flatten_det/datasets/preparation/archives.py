"""Zip files of strangers: compared with what they should be, and unpacked only into their own folder."""

import hashlib
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import rich.progress
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

_CHUNK = 1 << 20
_SCRATCH = ".unpacking"
# What macOS adds to archives.
_IGNORED = ("__MACOSX", ".DS_Store")


class ArchiveError(Exception):
    """An archive that is damaged, or must not be unpacked; the message says why."""


def verify(path: Path, size: int | None, digest: tuple[str, str] | None) -> None:
    """Compare a file with its size in bytes and its digest, as far as they are known.

    Raises:
        ArchiveError: They differ.
    """
    found = path.stat().st_size
    if size is not None and found != size:
        raise ArchiveError(f"{found} bytes instead of {size}")
    if digest is None:
        return
    algorithm, expected = digest
    hashed = hashlib.new(algorithm, usedforsecurity=False)
    with rich.progress.open(path, "rb", description=f"Checking {path.name}") as file:
        while chunk := file.read(_CHUNK):
            hashed.update(chunk)
    if hashed.hexdigest() != expected:
        raise ArchiveError(f"its {algorithm} is {hashed.hexdigest()} instead of {expected}")


def unpacked_size(path: Path) -> int:
    """Bytes of the files in an archive, as its directory states them.

    Raises:
        ArchiveError: It is no zip file.
    """
    with _opened(path) as archive:
        return sum(info.file_size for info in archive.infolist())


def unpack(path: Path, root: Path, top: str = "") -> None:
    """Unpack a zip file, and the zip files in it where they lie.

    Files are unpacked into a folder beside their places and moved when all are there. A file that is
    already in its place with the right size is left alone.

    Args:
        path: the zip file.
        root: folder to unpack into; it is made.
        top: folder in the archive that stands for ``root``; what lies outside of it is left out.

    Raises:
        ArchiveError: It is damaged, or a member is a link or would leave ``root``; then nothing has
            been moved.
    """
    scratch = root / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)  # Of a process that was killed.
    try:
        names = _extract(path, root, scratch, top)
        for name in [name for name in names if name.endswith(".zip")]:
            inner, place = scratch / name, PurePosixPath(name).parent
            names.remove(name)
            names += [
                (place / below).as_posix()
                for below in _extract(inner, root / place, scratch / place)
            ]
            inner.unlink()
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(scratch / name, root / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ArchiveError(f"it is not a complete zip file ({error})") from error


def _members(archive: zipfile.ZipFile, top: str) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    """The files of an archive with their paths relative to ``top``.

    Raises:
        ArchiveError: A member is a link or lies outside of the archive.
    """
    for info in archive.infolist():
        name = PurePosixPath(info.filename)
        windows = PureWindowsPath(info.filename)
        if name.is_absolute() or windows.anchor or ".." in (*name.parts, *windows.parts):
            raise ArchiveError(f"its member {info.filename!r} would leave the folder")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ArchiveError(f"its member {info.filename!r} is a link or a device")
        if info.is_dir() or set(name.parts) & set(_IGNORED) or not name.is_relative_to(top):
            continue
        yield info, name.relative_to(top).as_posix()


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _extract(path: Path, root: Path, scratch: Path, top: str = "") -> list[str]:
    """Extract into ``scratch`` what ``root`` does not have; returns the paths below it."""
    columns = (TextColumn("Unpacking {task.description}"), BarColumn(), DownloadColumn())
    with _opened(path) as archive, Progress(*columns) as progress:
        members = [
            (info, name)
            for info, name in _members(archive, top)
            if not _is_there(root / name, info.file_size)
        ]
        task = progress.add_task(path.name, total=sum(info.file_size for info, _ in members))
        for info, name in members:
            target = scratch / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with archive.open(info) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
                raise ArchiveError(f"its member {info.filename!r} is damaged ({error})") from error
            progress.update(task, advance=info.file_size)
    return [name for _, name in members]
