"""Checkpoints by their URL, downloaded once into torch's hub folder."""

import hashlib
from pathlib import Path
from urllib.parse import urlsplit

import torch

from ..downloads import DownloadError, download_file
from .errors import CheckpointError

_MAX_NAME = 150  # of the 255 bytes that file systems allow, with what is put around it


def cached_path(url: str) -> Path:
    """Where the file of a URL is kept: torch's hub folder, under a name that no other URL has."""
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    return _folder() / f"{digest}-{_name(url)[-_MAX_NAME:] or 'checkpoint'}"


def download(url: str) -> Path:
    """The local copy of a URL; downloaded unless it is in the cache.

    So is what torch has downloaded itself, if its name tells its digest, as those of torchvision and the
    frameworks' zoos do. See :func:`~flatten_det.downloads.download_file` for how.

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
