"""Count parameters and multiply-adds: ``flatten-det flops CONFIG|BACKBONE [--shape H W] [--paper]``."""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.progress import track

from ..cli import add_common_options, make_console, say
from ..files.atomic import refuse_overwriting, write_atomically
from ..lab.complexity.paper import PUBLISHED, compare_config, compare_published
from ..lab.complexity.table import (
    as_json,
    module_table,
    paper_json,
    paper_table,
    uncounted_lines,
)
from ..lab.complexity.target import find_target
from . import run_command

LEAST_SIDE = 32  # pixels, the stride of the last stage
ABOUT_STYLES = (
    "Complete: all matrix products and convolutions that run. Paper style: modules with biases and norms, as "
    "mmcv counts, plus the softmax baseline's attention (flatten_det/lab/complexity/paper.py)."
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Parameters and multiply-adds (what papers call FLOPs) of a model for one image, by "
        "module, with the products of every attention. Names the operators that it cannot count."
    )
    parser.add_argument(
        "target",
        nargs="?",
        metavar="CONFIG|BACKBONE",
        help="a config file, or the short name of a backbone such as flatten-pvt-t",
    )
    parser.add_argument(
        "--shape",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="image size in pixels (default: the config's; 224 224 for a backbone)",
    )
    parser.add_argument(
        "--depth", type=int, default=2, help="levels of modules in the table (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there too")
    parser.add_argument(
        "--paper",
        action="store_true",
        help="count as the paper does too, and compare with what it reports; without a config: all its "
        "detectors and segmentors",
    )
    add_common_options(parser)
    args = parser.parse_args(argv)
    if args.target is None and not args.paper:
        parser.error("give a config or a backbone, or --paper")
    if args.target is None and (args.shape or args.cfg_options):
        parser.error("--shape and --cfg-options need a config")
    if args.shape and min(args.shape) < LEAST_SIDE:
        parser.error(f"argument --shape: at least {LEAST_SIDE} pixels a side, got {args.shape}")
    if args.depth < 0:
        parser.error(f"argument --depth: must be at least 0, got {args.depth}")
    return args


def count_one(args: argparse.Namespace, console: Console) -> dict:
    """Count a config or a backbone, and show its modules."""
    target = find_target(args.target, args.cfg_options)
    size = tuple(args.shape or target.size())
    counted = target.count(size)
    height, width = size
    console.print(module_table(counted, args.depth))
    say(
        console,
        *uncounted_lines(counted),
        f"{target.name} at {height}x{width}: {counted.parameters / 1e6:.2f} M parameters, "
        f"{counted.macs / 1e9:.2f} G multiply-adds",
    )
    return {"model": target.name, "shape": [height, width], **as_json(counted)}


def compare_with_paper(args: argparse.Namespace, console: Console) -> list[dict]:
    """Count one config, or all that the paper reports, in both styles."""
    if args.target is None:
        progress = dict(console=Console(stderr=True), transient=True)
        rows = list(track(compare_published(), "Counting", len(PUBLISHED), **progress))
    else:
        target = find_target(args.target, args.cfg_options)
        rows = [compare_config(target, args.shape and tuple(args.shape))]
    console.print(paper_table(rows))
    explanations = filter(None, (row.explanation for row in rows))
    say(console, *explanations, ABOUT_STYLES)
    return paper_json(rows)


def run(args: argparse.Namespace) -> None:
    """Count, show and save.

    Raises:
        UserError: there is no such config or backbone, or its model cannot be counted.
    """
    if args.json is not None and args.target is not None:
        refuse_overwriting([args.target], [args.json], "--json")
    console = make_console()
    numbers = (compare_with_paper if args.paper else count_one)(args, console)
    if args.json is not None:
        write_atomically(args.json, f"{json.dumps(numbers, indent=1)}\n".encode())
        say(console, f"written to {args.json}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, parse_args(argv))
