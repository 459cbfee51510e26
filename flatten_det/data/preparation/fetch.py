"""From a data set's archives to its folder: space, download, check, unpack."""

import errno
import hashlib
import lzma
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import rich.progress
from filelock import FileLock
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from ...errors import UserError
from ...files.downloads import DownloadError, download_file
from ..coco import stays_inside
from .layout import Archive

_CHUNK = 1 << 20
_SCRATCH = ".unpacking"
_SLACK = 4  # How much more than is known of an archive may be in it.
# What macOS adds to archives.
_IGNORED = ("__MACOSX", ".DS_Store")
_MAX_MEMBERS = 1_000_000
# Of names that the system refuses, and of members in the place of another one's folder.
_OF_NAMES = (
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ENOENT,
    errno.EINVAL,
    errno.EILSEQ,
)
# What damaged, encrypted and foreign contents raise.
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)


class ArchiveError(Exception):
    """An archive that is damaged, or must not be unpacked; the message says why."""


def fetch(
    archives: tuple[Archive, ...],
    root: Path,
    folder: Path | None = None,
    mirror: str | None = None,
    keep: bool = False,
) -> None:
    """Unpack the archives that are not unpacked yet, and download those that are not there.

    Args:
        archives: what the data set is made of.
        root: the data set's folder.
        folder: where archives are looked for and downloaded to; None: in ``root``. Those that were
            there before are kept.
        mirror: base URL to use instead of the archives' own.
        keep: keep the downloaded archives too.

    Raises:
        UserError: There is too little space, the download fails, or an archive is not what it should be.
    """
    folder = folder or root
    root.mkdir(parents=True, exist_ok=True)
    # A second process waits, and then finds the work done.
    with FileLock(root / ".preparing.lock"):
        wanted = [archive for archive in archives if not archive.is_unpacked(root)]
        missing = [archive for archive in wanted if not (folder / archive.name).is_file()]
        _check_space(wanted, missing, root, folder)
        for archive in wanted:
            path = folder / archive.name
            if archive in missing:
                _download(archive, path, mirror)
            try:
                verify(path, archive.size, archive.digest)
                unpack(path, root, archive.top, _SLACK * archive.unpacked)
            except ArchiveError as error:
                raise _refused(path, error) from error
            if _mark(path).is_file() and not keep:
                path.unlink()
            _mark(path).unlink(missing_ok=True)


def _download(archive: Archive, path: Path, mirror: str | None) -> None:
    url = f"{(mirror or archive.server).rstrip('/')}/{archive.path}"
    print(f"downloading {url}")
    try:
        download_file(url, path, archive.size)
        _mark(path).touch()
    except DownloadError as error:
        raise UserError(str(error)) from error
    finally:
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)


def _mark(path: Path) -> Path:
    """Says that the archive beside it was downloaded here, if only by a run that was interrupted later."""
    return path.with_name(f".{path.name}.downloaded")


def _refused(path: Path, error: ArchiveError) -> UserError:
    if not _mark(path).is_file():
        return UserError(f"{path} is not usable: {error}: get this file again, or move it away")
    path.unlink()
    _mark(path).unlink()
    return UserError(f"{path} was damaged and is removed: {error}: the same command gets it again")


def _check_space(wanted: list[Archive], missing: list[Archive], root: Path, folder: Path) -> None:
    """Compare what is needed with what is free, per disk."""
    needed: dict[Path, int] = {root: 0, folder: 0}
    for archive in wanted:
        path = folder / archive.name
        if archive in missing:
            part = path.with_name(f"{path.name}.part")
            there = part.stat().st_size if part.is_file() else 0
            needed[folder] += max((archive.size or archive.unpacked) - there, 0)
            needed[root] += archive.unpacked
        else:
            try:
                needed[root] += unpacked_size(path)
            except ArchiveError as error:
                raise _refused(path, error) from error
    disks: dict[int, list[Path]] = {}
    for place in needed:
        disks.setdefault(_existing(place).stat().st_dev, []).append(place)
    for places in disks.values():
        total = sum(needed[place] for place in places)
        free = shutil.disk_usage(_existing(places[0])).free
        if free < total:
            raise UserError(
                f"{places[0]}: {_gigabytes(total)} are needed for the archives and their files, but "
                f"{_gigabytes(free)} are free: make room, or name a folder on another disk"
            )


def _existing(path: Path) -> Path:
    """The folder or the nearest one above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def verify(path: Path, size: int | None, digest: tuple[str, str] | None) -> None:
    """Compare a file with its size in bytes and its digest, as far as known; ArchiveError if they differ."""
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
    """Bytes of the files in an archive, as its directory states them; ArchiveError if it is no zip file."""
    with _opened(path) as archive:
        return sum(info.file_size for info in archive.infolist())


def unpack(path: Path, root: Path, top: str = "", max_size: int | None = None) -> None:
    """Unpack a zip file, and the zip files in it where they lie.

    Files are unpacked into a folder beside their places and moved when all are there. A file that is
    already in its place with the right size is left alone.

    Args:
        path: the zip file.
        root: folder to unpack into; it is made.
        top: folder in the archive that stands for ``root``; what lies outside of it is left out.
        max_size: bytes of all files, those of the zip files in it too; None: what the disk has room for.

    Raises:
        ArchiveError: It is damaged or too large, or a member is a link or would leave ``root``; then
            nothing has been moved.
    """
    scratch = root / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)  # Of a process that was killed.
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    room = free if max_size is None else min(free, max_size)
    try:
        names, size = _extract(path, root, scratch, room, top)
        for name in [name for name in names if name.endswith(".zip")]:
            inner, place = scratch / name, PurePosixPath(name).parent
            names.remove(name)
            found, inner_size = _extract(inner, root / place, scratch / place, room - size)
            size += inner_size
            names += [(place / below).as_posix() for below in found]
            inner.unlink()
        for name in names:
            try:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(scratch / name, root / name)
            except OSError as error:
                raise _unwritable(name, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _extract(
    path: Path, root: Path, scratch: Path, room: int, top: str = ""
) -> tuple[list[str], int]:
    """Extract into ``scratch`` what ``root`` does not have; returns the paths below it, and their bytes.

    A member is never read beyond the size that the archive states, which is held against ``room``.
    """
    columns = (TextColumn("Unpacking {task.description}"), BarColumn(), DownloadColumn())
    with _opened(path) as archive, Progress(*columns) as progress:
        members = [
            (info, name)
            for info, name in _members(archive, top)
            if not _is_there(root / name, info.file_size)
        ]
        size = sum(info.file_size for info, _ in members)
        if size > room:
            raise ArchiveError(
                f"{path.name} states {_gigabytes(size)} of files, but there is room, or the data set "
                f"has need, for {_gigabytes(room)}: it may be meant to fill the disk"
            )
        task = progress.add_task(path.name, total=size)
        for info, name in members:
            target = scratch / name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
            except _DAMAGE as error:
                raise ArchiveError(f"its member {info.filename!r} is damaged ({error})") from error
            except OSError as error:
                raise _unwritable(info.filename, error) from error
            progress.update(task, advance=info.file_size)
    return [name for _, name in members], size


def _is_there(path: Path, size: int) -> bool:
    return os.path.isfile(path) and path.stat().st_size == size


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError) as error:
        raise ArchiveError(f"it is not a complete zip file ({error})") from error


def _members(archive: zipfile.ZipFile, top: str) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    """The files of an archive with their paths relative to ``top``; ArchiveError for links and intruders."""
    if len(archive.infolist()) > _MAX_MEMBERS:
        raise ArchiveError(f"it has more than {_MAX_MEMBERS} members")
    for info in archive.infolist():
        name = PurePosixPath(info.filename)
        if not stays_inside(info.filename):
            raise ArchiveError(f"its member {info.filename!r} would leave the folder")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ArchiveError(f"its member {info.filename!r} is a link or a device")
        if info.is_dir() or set(name.parts) & set(_IGNORED) or not name.is_relative_to(top):
            continue
        yield info, name.relative_to(top).as_posix()


def _unwritable(name: str, error: OSError) -> Exception:
    """The archive's fault, or that of the disk, for which no archive is to be given up."""
    if error.errno not in _OF_NAMES:
        return error
    return ArchiveError(f"its member {name!r} cannot be written ({error.strerror})")
