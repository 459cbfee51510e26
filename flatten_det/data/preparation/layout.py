"""What a data set's folder holds, and what of it is missing."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..coco_values import parse_json
from .text import listed


@dataclass(frozen=True)
class Files:
    """Files of one kind.

    Attributes:
        folder: relative to the data set's root; files in its subfolders count too.
        suffix: how their names end.
        count: how many there are in the complete data set.
    """

    folder: str
    suffix: str
    count: int

    def names(self, root: Path) -> set[str]:
        """The files that are there: paths relative to ``folder``, with ``/``."""
        top = str(root / self.folder)
        found = set()
        for place, _, names in os.walk(top):
            below = "" if place == top else f"{Path(os.path.relpath(place, top)).as_posix()}/"
            found |= {f"{below}{name}" for name in names if name.endswith(self.suffix)}
        return found

    def problems(self, root: Path) -> list[str]:
        """Whether the number of files is right."""
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
            if missing:
                found.append(
                    f"{others.folder}/: {len(missing)} of the files that belong to those in "
                    f"{these.folder}/ are missing: {listed(missing)}"
                )
        return found


@dataclass(frozen=True)
class Listing:
    """A COCO file and the folder of the images that it names.

    Attributes:
        file: relative to the data set's root.
        images: the files that its ``images`` name.
        segments: for panoptic annotations: the label maps that its ``annotations`` name.
    """

    file: str
    images: Files
    segments: Files | None = None

    def problems(self, root: Path) -> list[str]:
        """Whether the file can be read, and what it names is there."""
        path = root / self.file
        if not path.is_file():
            return [f"{self.file}: missing"]
        try:
            content = parse_json(path.read_bytes())
            named = {self.images: {image["file_name"] for image in content["images"]}}
            if self.segments is not None:
                named[self.segments] = {
                    annotation["file_name"] for annotation in content["annotations"]
                }
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return [f"{self.file}: damaged, not a COCO file ({type(error).__name__}: {error})"]
        found = []
        for files, names in named.items():
            missing = sorted(names - files.names(root))
            if missing:
                found.append(
                    f"{files.folder}/: {len(missing)} of the {len(names)} files that {self.file} "
                    f"names are missing: {listed(missing)}"
                )
        return found


@dataclass(frozen=True)
class Layout:
    """All that a data set's folder must hold."""

    files: tuple[Files, ...]
    pairs: tuple[Pairs, ...] = ()
    listings: tuple[Listing, ...] = ()

    def problems(self, root: Path) -> list[str]:
        """One line for everything that is missing or too much; empty for a complete folder.

        Paths are relative to ``root``. Nothing is written.
        """
        if not root.is_dir():
            return [f"{root}: no such folder"]
        parts = (*self.files, *self.pairs, *self.listings)
        return [problem for part in parts for problem in part.problems(root)]

    def summary(self) -> str:
        """What a complete folder holds, in one line."""
        counted = [
            f"{files.count} files *{files.suffix} in {files.folder}/" for files in self.files
        ]
        return ", ".join([*counted, *(listing.file for listing in self.listings)])
