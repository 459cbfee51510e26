"""The zoo's metafiles, page and table of estimates, computed from the configs and compared with the disk."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from ...files.atomic import write_atomically
from . import estimates
from .metafiles import (
    HEADER,
    METAFILES,
    MODEL_INDEX,
    changes,
    dump,
    find_configs,
    make_entry,
    metafile_of,
    misfits,
    read_config,
    read_metafile,
)
from .page import PAGE, dead_links, render_page

__all__ = ["Zoo", "inspect_zoo"]

_README = "README.md"
_CURE = "run tools/update_zoo.py"


@dataclass(frozen=True)
class Zoo:
    """The zoo's files as they should be."""

    files: dict[str, str]  # path relative to the checkout -> content
    stale: list[str]  # one line for each difference of the files on disk, which writing removes
    wrong: list[str]  # one line for each fault that only a person can put right

    def write(self, root: Path) -> None:
        """Write the files into the checkout ``root``."""
        for path, text in self.files.items():
            write_atomically(root / path, text.encode())


def inspect_zoo(root: Path, count: bool = True) -> Zoo:
    """Compute the metafiles, the model index and the zoo page from the configs of the checkout ``root``.

    ``count`` counts the parameters and FLOPs of all models, which takes minutes; False: believe what the
    metafiles say, and count what they lack. UserError for a config or metafile that cannot be read, and for
    a model that cannot be counted.
    """
    found = {path: read_metafile(root, path) for path in METAFILES}
    paths = find_configs(root)
    entries = {
        entry.get("Config"): entry for content in found.values() for entry in content["Models"]
    }
    wanted = {path: content | {"Models": []} for path, content in found.items()}
    stale = []
    progress = dict(console=Console(stderr=True), transient=True)
    configs = [read_config(root, path) for path in track(paths, "Reading configs", **progress)]
    for config in track(configs, "Counting" if count else "Comparing", **progress):
        metafile, old = metafile_of(config.backbone), entries.get(config.path)
        new = make_entry(config, old or {}, count)
        wanted[metafile]["Models"].append(new)
        if old is None:
            stale.append(f"{config.path}: no entry in {metafile}: {_CURE}")
        else:
            stale += [f"{metafile}: {new['Name']}: {line}: {_CURE}" for line in changes(old, new)]
    wrong = list(_faulty_entries(found, paths))
    for path, content in wanted.items():
        wrong += misfits(path, content)
    # A page of results whose source is missing would show them as ours.
    files = {}
    if not wrong:
        files = {path: dump(content, HEADER) for path, content in wanted.items()}
        files |= {MODEL_INDEX: dump({"Import": list(wanted)}), PAGE: render_page(wanted)}
        if page := _text(root, estimates.PAGE):
            files[estimates.PAGE] = estimates.with_estimates(page, wanted)
    stale += [
        f"{path}: not what tools/update_zoo.py writes: {_CURE}"
        for path, text in files.items()
        if not any(line.startswith(f"{path}: ") for line in stale) and _text(root, path) != text
    ]
    planned = {(root / path).resolve() for path in files}
    for path, text in ((PAGE, files.get(PAGE, _text(root, PAGE))), (_README, _text(root, _README))):
        wrong += [
            f"{path}: dead link {link}: correct it, or add the file"
            for link in dead_links(root / path, text, planned)
        ]
    return Zoo(files, stale, wrong)


def _faulty_entries(metafiles: dict[str, dict[str, Any]], paths: list[str]) -> Iterator[str]:
    """Entries without a config, and all but one of a config's entries."""
    listed = Counter()
    for metafile, content in metafiles.items():
        for entry in content["Models"]:
            config = entry.get("Config")
            listed[config] += 1
            if config not in paths:
                yield (
                    f"{metafile}: {entry['Name']}: its config {config} does not exist: remove the entry, "
                    "or restore the config"
                )
            elif listed[config] == 2:
                yield f"{metafile}: {entry['Name']}: {config} has another entry: remove one"


def _text(root: Path, path: str) -> str:
    file = root / path
    return file.read_text(encoding="utf-8") if file.exists() else ""
