"""Which image files a command line means."""

import glob
from collections.abc import Sequence
from pathlib import Path

from .errors import UserError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def find_images(inputs: Sequence[str]) -> list[str]:
    """List the images that files, folders and glob patterns stand for, each one once.

    A folder stands for the images directly in it (by suffix); ``folder/**`` for all below it.

    Raises:
        UserError: An input stands for no image at all.
    """
    found: dict[Path, str] = {}
    for given in inputs:
        paths = _expand(given)
        if not paths:
            kinds = " ".join(IMAGE_SUFFIXES)
            raise UserError(
                f"{given}: no image found: give image files, a folder or a quoted glob pattern "
                f"(known suffixes: {kinds})"
            )
        for path in paths:
            found.setdefault(path.resolve(), str(path))
    return list(found.values())


def _expand(given: str) -> list[Path]:
    path = Path(given)
    if path.is_file():
        return [path]  # Named by the user: whatever its suffix.
    candidates = path.iterdir() if path.is_dir() else map(Path, glob.glob(given, recursive=True))
    return sorted(p for p in candidates if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
