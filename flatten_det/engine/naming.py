"""File names for results, such that no two inputs share one."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path


def output_names(paths: Iterable[str]) -> dict[str, str]:
    """Give each input path a name for its results, without suffix.

    The name is the path below the inputs' common folder, so equal file names in two folders stay
    apart; files that differ in the suffix only keep it.

    Returns:
        The name of each path, with ``/`` for subfolders.
    """
    absolute = {path: Path(os.path.abspath(path)) for path in paths}
    if not absolute:
        return {}
    folder = os.path.commonpath([path.parent for path in absolute.values()])
    relative = {key: path.relative_to(folder) for key, path in absolute.items()}
    stems = Counter(path.with_suffix("") for path in relative.values())
    names: dict[str, str] = {}
    for key, path in relative.items():
        stem = path.with_suffix("")
        name = (stem if stems[stem] == 1 else path).as_posix()
        while name in names.values():
            name += "_"
        names[key] = name
    return names
