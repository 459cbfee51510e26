"""What a data set is made of: archives, their addresses, and the folder that they fill."""

from dataclasses import dataclass
from pathlib import Path

from .layout import Files, Layout


@dataclass(frozen=True)
class Archive:
    """A zip file with a part of a data set.

    Attributes:
        server: base URL; empty where there is none without a login.
        path: below ``server``.
        provides: what it brings, by which it is known whether it has been unpacked: files of one
            kind, or the path of a single file relative to the data set's root.
        size: in bytes; None if it is not known.
        unpacked: bytes of its files on disk, about.
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

    def url(self, mirror: str | None = None) -> str:
        """Its address, on the mirror if there is one."""
        return f"{(mirror or self.server).rstrip('/')}/{self.path}"

    def is_unpacked(self, root: Path) -> bool:
        """Whether all that it brings is in the data set's folder."""
        return all(
            (root / part).is_file() if isinstance(part, str) else not part.problems(root)
            for part in self.provides
        )


@dataclass(frozen=True)
class DataSet:
    """A data set: its archives, and the folder that they make."""

    name: str
    layout: Layout
    archives: tuple[Archive, ...]
