"""Update the metafiles and the zoo page from the configs: ``tools/update_zoo.py [--check]``."""

import argparse
import sys
from pathlib import Path

from flatten_det.cli import add_debug_option
from flatten_det.commands import run_command
from flatten_det.errors import UserError
from flatten_det.lab.zoo import inspect_zoo

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Write configs/*/metafile.yml, model-index.yml and the zoo page configs/README.md from "
        "the configs. What the metafiles' Collections and Results say is kept."
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; name what is out of date, and exit with 2 if anything is",
    )
    parser.add_argument(
        "--no-count",
        action="store_true",
        help="believe the metafiles' parameters and FLOPs: seconds instead of minutes",
    )
    parser.add_argument(
        "--root", type=Path, default=ROOT, metavar="DIR", help="checkout (default: the tool's own)"
    )
    add_debug_option(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Compare, then report or write.

    Raises:
        UserError: something is wrong, or with ``--check`` out of date.
    """
    zoo = inspect_zoo(args.root, count=not args.no_count)
    lines = zoo.wrong + (zoo.stale if args.check else [])
    for line in lines:
        print(line)
    if lines:
        more = "" if args.check else "; nothing was written"
        raise UserError(f"the zoo has {len(lines)} faults, listed above{more}")
    if args.check:
        print("The metafiles and the zoo page are up to date.")
        return
    zoo.write(args.root)
    print(f"{len(zoo.stale)} differences; written: {', '.join(zoo.files)}")


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
