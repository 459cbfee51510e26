"""List the configs that commands take by name: ``flatten-det models [WORD ...]``."""

import argparse
from fnmatch import fnmatch
from typing import Any

from rich.table import Table

from ..cli import add_debug_option, make_console
from ..config import CONFIGS, our_configs
from ..errors import UserError
from ..lab.zoo.metafiles import METAFILES, read_metafile
from . import run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="List the configs of this package, which all commands take by name: what they are "
        "trained on, their size for one image, and what the paper reports."
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WORD",
        help="list those with all of these in their names, e.g. mask-rcnn pvt-t; * stands for anything",
    )
    parser.add_argument("--names", action="store_true", help="print the names alone, one per line")
    add_debug_option(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Print the table; a UserError if no name has all the words."""
    configs = {
        name: path
        for name, path in our_configs().items()
        if all(fnmatch(name, f"*{word}*") for word in args.words)
    }
    if not configs:
        raise UserError(
            f"no model has {' and '.join(args.words)} in its name: leave out a word, or all to see every one"
        )
    if args.names:
        print(*configs, sep="\n")
        return
    entries = {
        entry["Name"]: entry
        for path in METAFILES
        for entry in read_metafile(CONFIGS.parent, path)["Models"]
    }
    columns = ("trained on", "input", "params M", "GMACs", "paper")
    table = Table("config", *columns, title=f"{len(configs)} models", title_justify="left")
    for name, path in configs.items():
        table.add_row(name, *_cells(path.parent.name, entries.get(name)))
    make_console().print(table)


def _cells(folder: str, entry: dict[str, Any] | None) -> tuple[str, ...]:
    """Of a row of the table, after the name; quickstarts and ablations are in no metafile."""
    if entry is None:
        return (f"Shapes ({folder})", "", "", "", "")
    metadata = entry["Metadata"]
    results = [
        f"{next(iter(result['Metrics']))} {next(iter(result['Metrics'].values()))}"
        for result in entry.get("Results", ())
    ]
    return (
        metadata["Training Data"],
        metadata["Input Size"],
        f"{metadata['Parameters'] / 1e6:.1f}",
        f"{metadata['FLOPs'] / 1e9:.0f}",
        ", ".join(results),
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, parse_args(argv))
