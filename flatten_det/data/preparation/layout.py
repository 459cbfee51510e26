"""What a data set consists of: archives, and the files in its folder."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...errors import listed
from ..coco import parse_json


@dataclass(frozen=True)
class Files:
    """Files of one kind: in a folder of the data set and below, with a suffix, and how many there are."""

    folder: str
    suffix: str
    count: int

    def __str__(self) -> str:
        return f"{self.count} files *{self.suffix} in {self.folder}/"

    def names(self, root: Path) -> set[str]:
        """The files that are there: paths relative to ``folder``, with ``/``."""
        top = str(root / self.folder)
        places = ((os.path.join(place, ""), names) for place, _, names in os.walk(top))
        paths = (place + name for place, names in places for name in names)
        below = (path[len(top) + 1 :] for path in paths if path.endswith(self.suffix))
        return {path.replace(os.sep, "/") for path in below}

    def problems(self, root: Path) -> list[str]:
        """Another number of files than there should be."""
        if not (root / self.folder).is_dir():
            return [f"{self.folder}/: missing ({self.count} files *{self.suffix})"]
        found = len(self.names(root))
        if found == self.count:
            return []
        return [f"{self.folder}/: {found} files *{self.suffix} instead of {self.count}"]


@dataclass(frozen=True)
class Pairs:
    """Images and label maps whose names differ in the suffix only."""

    images: Files
    labels: Files

    def problems(self, root: Path) -> list[str]:
        """Images without a label map, and the other way round."""
        found = []
        for these, others in ((self.images, self.labels), (self.labels, self.images)):
            stems = {name.removesuffix(others.suffix) for name in others.names(root)}
            expected = {name.removesuffix(these.suffix) for name in these.names(root)}
            missing = [f"{stem}{others.suffix}" for stem in sorted(expected - stems)]
            found += _missing(others, missing, f"the files that belong to those in {these.folder}/")
        return found


@dataclass(frozen=True)
class Listing:
    """A COCO file, relative to the data set's root, and what its ``images`` name.

    For panoptic annotations, ``segments`` are the label maps that its ``annotations`` name.
    """

    file: str
    images: Files
    segments: Files | None = None

    def __str__(self) -> str:
        return self.file

    def problems(self, root: Path) -> list[str]:
        """Whether the file can be read, and what it names is there."""
        path = root / self.file
        if not path.is_file():
            return [f"{self.file}: missing"]
        try:
            content = parse_json(path.read_bytes())
            named = {self.images: {image["file_name"] for image in content["images"]}}
            if self.segments is not None:
                named[self.segments] = {entry["file_name"] for entry in content["annotations"]}
        except (ValueError, KeyError, TypeError) as error:
            return [f"{self.file}: damaged, not a COCO file ({type(error).__name__}: {error})"]
        found = []
        for files, names in named.items():
            missing = sorted(names - files.names(root))
            found += _missing(files, missing, f"the {len(names)} files that {self.file} names")
        return found


def _missing(files: Files, names: list[str], of: str) -> list[str]:
    what = f"{files.folder}/: {len(names)} of {of} are missing: {listed(names)}"
    return [what] if names else []


@dataclass(frozen=True)
class Archive:
    """A zip file with a part of a data set, at ``path`` below the base URL ``server``.

    Attributes:
        server: empty where there is none without a login.
        provides: what it brings, by which it is known whether it has been unpacked: files of one
            kind, or the path of a single file relative to the data set's root.
        unpacked: bytes of its files on disk, about.
        size: in bytes; None if it is not known.
        digest: hash algorithm and hexadecimal digest; None if there is none to compare with.
        top: folder in the archive that is the data set's root.
    """

    server: str
    path: str
    provides: tuple[Files | str, ...]
    unpacked: int
    size: int | None = None
    digest: tuple[str, str] | None = None
    top: str = ""

    @property
    def name(self) -> str:
        """Its file name."""
        return self.path.rsplit("/", 1)[-1]

    def is_unpacked(self, root: Path) -> bool:
        """Whether all that it brings is in the data set's folder."""
        return all(
            (root / part).is_file() if isinstance(part, str) else not part.problems(root)
            for part in self.provides
        )


@dataclass(frozen=True)
class PublicDataSet:
    """A data set: all that its folder must hold, and the archives that fill it.

    ``convert`` makes the files that are not in the archives, in the folder. ``steps``, for archives behind a
    login, says how to get them, for a folder to put them into.
    """

    name: str
    parts: tuple[Files | Pairs | Listing, ...]
    archives: tuple[Archive, ...] = ()
    convert: Callable[[Path], None] | None = None
    steps: Callable[[Path], str] | None = None

    def problems(self, root: Path) -> list[str]:
        """One line for everything that is missing or too much, with paths relative to ``root``."""
        if not root.is_dir():
            return [f"{root}: no such folder"]
        return [problem for part in self.parts for problem in part.problems(root)]

    def summary(self) -> str:
        """What a complete folder holds, in one line."""
        return ", ".join(str(part) for part in self.parts if not isinstance(part, Pairs))
