"""A finding: one fault in one place."""

from collections.abc import Iterable
from dataclasses import dataclass

from .kinds import ERROR, KINDS, Kind
from ...errors import printable

_MAX_QUOTED = 80


@dataclass(frozen=True)
class Finding:
    """One fault in one place.

    Attributes:
        kind: what is wrong, and what to do.
        data_set: where the config uses it, such as ``'train'``.
        file: the file that is wrong.
        id: of the image, annotation or category in the file; a label map's labels; None if it is the
            file itself.
        message: what is wrong with it, in some words.
    """

    kind: Kind
    data_set: str
    file: str
    id: int | str | None
    message: str


def by_kind(findings: Iterable[Finding]) -> dict[Kind, list[Finding]]:
    """The findings of each kind that occurs, errors first."""
    found: dict[Kind, list[Finding]] = {kind: [] for kind in KINDS}
    for finding in findings:
        found[finding.kind].append(finding)
    return {kind: of_kind for kind, of_kind in found.items() if of_kind}


def count_errors(findings: Iterable[Finding]) -> int:
    """How many of them are errors; the others are warnings."""
    return sum(finding.kind.severity == ERROR for finding in findings)




def quoted(value: object) -> str:
    """A stranger's value as a message shows it: printable and short."""
    text = str(value)
    return printable(text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}...")


def counted(number: int, noun: str) -> str:
    """``'1 error'``, ``'2 errors'``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
