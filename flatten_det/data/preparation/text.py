"""Short lists in messages."""

from collections.abc import Iterable

MAX_LISTED = 3


def listed(names: Iterable[object]) -> str:
    """The first names, and how many there are besides."""
    names = [str(name) for name in names]
    shown = ", ".join(names[:MAX_LISTED])
    more = len(names) - MAX_LISTED
    return f"{shown}, ... and {more} more" if more > 0 else shown
