"""Files that users name, before they are read: whether they are files at all, and what text is in them."""

import codecs
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError

_MARKS = (
    # UTF-32's begins with UTF-16's.
    (codecs.BOM_UTF8, "utf-8-sig", "a byte order mark (UTF-8 with BOM)"),
    (codecs.BOM_UTF32_LE, "utf-32", "the byte order mark of UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "the byte order mark of UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "the byte order mark of UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "the byte order mark of UTF-16"),
)
_NO_FILES = {
    stat.S_IFDIR: "is a folder, not a file",
    stat.S_IFIFO: "is a named pipe, not a file",
    stat.S_IFSOCK: "is a socket, not a file",
    stat.S_IFCHR: "is a device, not a file",
    stat.S_IFBLK: "is a device, not a file",
}


def why_not_read(path: str | Path) -> str | None:
    """Say why a file cannot be read, in words that complete "it ..."; None if it can.

    Opening a named pipe waits for a writer that may never come.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except (OSError, ValueError):  # A ValueError: no file has such a name.
        return "is a link to nothing" if os.path.islink(path) else "was not found"
    if kind != stat.S_IFREG:
        return _NO_FILES.get(kind, "is no regular file")
    return None if os.access(path, os.R_OK) else "cannot be read: permission denied"


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """What :func:`os.walk` gives through links, but for those that lead back up."""
    seen = set()
    for place, below, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        yield place, below, names


def files_below(folder: Path, *suffixes: str) -> list[Path]:
    """The files in a folder and below it with these suffixes (lower case, as ``.jpg``), whatever their case.

    Links are followed. What is hidden, or of a Mac's archive, is no data: ``._photo.jpg``,
    ``.ipynb_checkpoints/``, ``__MACOSX/``.
    """
    found = []
    for place, below, names in walk(folder):
        below[:] = [name for name in below if not name.startswith(".") and name != "__MACOSX"]
        paths = (Path(place, name) for name in names if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in suffixes]
    return sorted(found)


class NotUtf8Error(ValueError):
    """A text file that the frameworks, which take UTF-8 without a mark, misread; completes "it ..."."""


def utf8_text(content: bytes) -> str:
    """The text of a file; a NotUtf8Error if it is not in UTF-8, or begins with a byte order mark."""
    for mark, _, name in _MARKS:
        if content.startswith(mark):
            raise NotUtf8Error(f"begins with {name}: save it as UTF-8 without one")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise NotUtf8Error(
            f"is not UTF-8 (byte 0x{content[error.start]:02x} in line {line}): save it as UTF-8"
        ) from error


def read_text(path: Path) -> str:
    """The text of a file in UTF-8 without a mark; a UserError that names the file if it is none."""
    if reason := why_not_read(path):
        raise UserError(f"{path} {reason}")
    try:
        return utf8_text(path.read_bytes())
    except NotUtf8Error as error:
        raise UserError(f"{path} {error}") from error


def read_lines(path: Path) -> list[str]:
    """The lines of :func:`read_text` that are not empty, without blanks around them."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def text_with_mark(content: bytes) -> tuple[str, bool]:
    """The text of a file in UTF-8, or in what its byte order mark says, and whether it has one."""
    for mark, encoding, _ in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding, "replace"), True
    return utf8_text(content), False
