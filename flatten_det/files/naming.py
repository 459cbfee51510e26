"""File names for results, such that no two inputs share one, and no result takes an input's place."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path


def output_names(paths: Iterable[str], reserved: Sequence[str] = ()) -> dict[str, str]:
    """Give each input path a name for its results, without suffix.

    The name is the path below the inputs' common folder, so equal file names in two folders stay
    apart; files that differ in the suffix only keep it. Names that differ in case only, or in how an
    accent is encoded, count as equal, as they are for many disks.

    Args:
        paths: of the inputs.
        reserved: names that are taken already.

    Returns:
        The name of each path, with ``/`` for subfolders.
    """
    absolute = {path: Path(os.path.abspath(path)) for path in paths}
    if not absolute:
        return {}
    folder = os.path.commonpath([path.parent for path in absolute.values()])
    relative = {key: path.relative_to(folder).as_posix() for key, path in absolute.items()}
    # Of "..jpg" this is all.
    stems = {key: os.path.splitext(path)[0] for key, path in relative.items()}
    counts = Counter(map(_as_disks_see_it, stems.values()))
    names: dict[str, str] = {}
    taken = set(map(_as_disks_see_it, reserved))
    for key, path in relative.items():
        name = stems[key] if counts[_as_disks_see_it(stems[key])] == 1 else path
        while _as_disks_see_it(name) in taken:
            name += "_"
        taken.add(_as_disks_see_it(name))
        names[key] = name
    return names


def _as_disks_see_it(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
