"""Checkpoints by their URL, downloaded once into torch's hub folder."""

import hashlib
from pathlib import Path
from urllib.parse import urlsplit

import torch

from ..downloads import DownloadError, download_file
from .errors import CheckpointError


def cached_path(url: str) -> Path:
    """Where the file of a URL is kept: torch's hub folder, under a name that no other URL has."""
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    name = Path(urlsplit(url).path).name or "checkpoint"
    return Path(torch.hub.get_dir()) / "checkpoints" / f"{digest}-{name}"


def download(url: str) -> Path:
    """The local copy of a URL; downloaded unless it is in the cache.

    See :func:`~flatten_det.downloads.download_file` for how.

    Raises:
        CheckpointError: The server cannot be reached, refuses, or breaks off each time.
    """
    target = cached_path(url)
    try:
        download_file(url, target)
    except DownloadError as error:
        raise CheckpointError(str(error)) from error
    return target


def forget(url: str) -> None:
    """Remove a file from the cache, because it is not what was asked for."""
    cached_path(url).unlink(missing_ok=True)
