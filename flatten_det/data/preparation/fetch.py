"""From a data set's archives to its folder: space, download, check, unpack."""

import shutil
from pathlib import Path

from filelock import FileLock

from ...files.downloads import DownloadError, download_file
from ...errors import UserError
from .archives import ArchiveError, unpack, unpacked_size, verify
from .sources import Archive

_SLACK = 4  # How much more than is known of an archive may be in it.


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
        UserError: There is too little space, the download fails, or an archive is not what it
            should be.
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
    url = archive.url(mirror)
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
        if archive in missing:
            part = folder / f"{archive.name}.part"
            there = part.stat().st_size if part.is_file() else 0
            needed[folder] += max((archive.size or archive.unpacked) - there, 0)
            needed[root] += archive.unpacked
        else:
            path = folder / archive.name
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
