"""Downloading a file once: resumable, with a progress bar, and never half a file at its place.

``pooch`` and :func:`torch.hub.download_url_to_file` begin an interrupted download anew.
"""

import errno
import hashlib
import shutil
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import torch
from filelock import FileLock
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ..errors import CheckpointError

ATTEMPTS = 3
TIMEOUT_SECONDS = 30
LONGEST_SECONDS = 300
_CHUNK = 1 << 18
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
_UNANNOUNCED = 1 << 34  # Bytes that are taken from a server that does not say how many there are.


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server elsewhere by http(s), but not from where a certificate counts to where none does."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        """The request that follows; a DownloadError if it would be of another kind."""
        kinds = ("https",) if req.type == "https" else ("http", "https")
        if urlsplit(newurl).scheme not in kinds:
            raise DownloadError(
                f"{req.full_url}: the server refers to {newurl}, which is not {' or '.join(kinds)}"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)


class DownloadError(Exception):
    """A file that cannot be downloaded; the message says why."""


def download_file(url: str, target: Path, size: int | None = None) -> None:
    """Download a URL to ``target``, unless that file is there.

    What an interrupted download has written is kept and continued, by the next attempt here (three in
    all) or by the next call, if the server still has the same file. Processes that want the same file
    wait for the first. ``size`` is the expected one in bytes, if it is known.

    Raises:
        DownloadError: The server cannot be reached, refuses, breaks off each time, or has a file of
            another size; or there is no space.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        for attempt in range(ATTEMPTS):
            if target.exists():
                break
            try:
                _continue(url, target, size)
            except urllib.error.HTTPError as error:
                raise DownloadError(
                    f"{url}: the server answers {error.code} {error.reason}"
                ) from error
            except ValueError as error:
                raise DownloadError(f"{url}: this is no address ({error})") from error
            except (OSError, HTTPException) as error:
                if getattr(error, "errno", None) in _OF_DISKS:
                    raise DownloadError(
                        f"{target} cannot be written: {error.strerror}; the same command continues it"
                    ) from error
                if attempt == ATTEMPTS - 1:
                    raise DownloadError(
                        f"{url}: the download broke off ({error}); the same command continues it"
                    ) from error


def read_url(url: str, most: int) -> bytes:
    """What an address holds, of ``most`` bytes; nothing of it is kept.

    Raises:
        DownloadError: The server cannot be reached, refuses, breaks off, sends more, or takes longer than
            :data:`LONGEST_SECONDS`.
    """
    end = time.monotonic() + LONGEST_SECONDS
    content = bytearray()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "flatten_det"})
        with _OPENER.open(request, timeout=TIMEOUT_SECONDS) as response:
            while chunk := response.read1(_CHUNK):
                content += chunk
                if len(content) > most:
                    raise DownloadError(f"{url}: it is larger than {most} bytes")
                if time.monotonic() > end:
                    raise DownloadError(f"{url}: it takes longer than {LONGEST_SECONDS} s")
            if response.length:  # What was announced, and did not come.
                raise DownloadError(f"{url}: the download broke off")
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{url}: the server answers {error.code} {error.reason}") from error
    except ValueError as error:
        raise DownloadError(f"{url}: this is no address ({error})") from error
    except (OSError, HTTPException) as error:
        raise DownloadError(f"{url}: it cannot be downloaded ({error})") from error
    return bytes(content)


def _continue(url: str, target: Path, size: int | None) -> None:
    """One attempt: append to the partial file, and move it to ``target`` when it is complete."""
    part = target.with_name(f"{target.name}.part")
    state = target.with_name(f"{target.name}.version")
    start = part.stat().st_size if part.exists() and state.exists() else 0
    headers = {"User-Agent": "flatten_det"}
    if start:
        # If the file has changed since, the server sends all of it.
        headers |= {"Range": f"bytes={start}-", "If-Range": state.read_text()}
    request = urllib.request.Request(url, headers=headers)
    try:
        response = _OPENER.open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        part.unlink()  # Nothing lies after its end: it is not the beginning of this file.
        raise ConnectionError("the partial file did not fit and was dropped") from error
    with response:
        if response.status != 206:
            start = 0
        sent = response.headers.get("Content-Range")
        if start and sent and not sent.startswith(f"bytes {start}-"):
            part.unlink()
            raise ConnectionError("the server sent another part than was asked for")
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        if size is not None and total is not None and total != size:
            raise DownloadError(f"{url}: the server has a file of {total} bytes instead of {size}")
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version and not version.startswith("W/"):
            state.write_text(version)
        else:
            state.unlink(missing_ok=True)
        total = size if total is None else total
        _append(response, part, start, total, name=target.name)
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"{part.stat().st_size} of {total} bytes arrived")
    state.unlink(missing_ok=True)
    part.replace(target)


def _append(response, part: Path, start: int, total: int | None, name: str) -> None:
    if total is not None and shutil.disk_usage(part.parent).free < total - start:
        raise DownloadError(f"{part.parent}: no space for the {total / 1e6:.0f} MB of {name}")
    most = _UNANNOUNCED if total is None else total
    text = TextColumn("{task.description}")
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with part.open("ab" if start else "wb") as file, Progress(*columns) as progress:
        task = progress.add_task(name, total=total, completed=start)
        while chunk := response.read(_CHUNK):
            if file.tell() + len(chunk) > most:
                part.unlink()
                raise DownloadError(
                    f"{part}: the server sends more than the {most} bytes of {name}"
                )
            file.write(chunk)
            progress.update(task, advance=len(chunk))


_MAX_NAME = 150  # of the 255 bytes that file systems allow, with what is put around it


def cached_path(url: str) -> Path:
    """Where the file of a URL is kept: torch's hub folder, under a name that no other URL has."""
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    return _folder() / f"{digest}-{_name(url)[-_MAX_NAME:] or 'checkpoint'}"


def download(url: str) -> Path:
    """The local copy of a URL, by :func:`download_file` unless it is in the cache.

    What torch has downloaded itself counts, if its name tells its digest, as those of torchvision and the
    frameworks' zoos do.

    Raises:
        CheckpointError: The server cannot be reached, refuses, or breaks off each time.
    """
    target, of_torch = cached_path(url), _folder() / _name(url)
    digest = torch.hub.HASH_REGEX.search(of_torch.name)
    if digest and of_torch.is_file():
        whole = hashlib.sha256(of_torch.read_bytes()).hexdigest()
        if whole.startswith(digest[1]):
            return of_torch
    try:
        download_file(url, target)
    except DownloadError as error:
        raise CheckpointError(str(error)) from error
    return target


def _folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _name(url: str) -> str:
    return Path(urlsplit(url).path).name


def forget(url: str) -> None:
    """Remove a file from the cache, because it is not what was asked for."""
    cached_path(url).unlink(missing_ok=True)
