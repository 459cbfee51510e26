"""Count parameters and multiply-adds: ``flatten-det flops CONFIG|BACKBONE [--shape H W] [--paper]``."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..cli import add_common_options, check_least, make_console, say
from ..files.atomic import refuse_overwriting
from ..lab.complexity import SAMPLING, Complexity
from ..lab.complexity.paper import (
    PUBLISHED,
    PaperCount,
    Published,
    compare_config,
    compare_published,
)
from ..lab.complexity.target import find_target
from ..lab.output import write_json
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
    check_least(parser, args, {"depth": 0})
    return args


def count_one(args: argparse.Namespace, console: Console) -> dict:
    """Count a config or a backbone, and show its modules."""
    target = find_target(args.target, args.cfg_options)
    size = tuple(args.shape or target.size())
    counted = target.count(size)
    height, width = size
    console.print(_module_table(counted, args.depth))
    say(
        console,
        *_uncounted_lines(counted),
        f"{target.name} at {height}x{width}: {counted.parameters / 1e6:.2f} M parameters, "
        f"{counted.macs / 1e9:.2f} G multiply-adds",
    )
    return {"model": target.name, "shape": [height, width], **_as_json(counted)}


def compare_with_paper(args: argparse.Namespace, console: Console) -> list[dict]:
    """Count one config, or all that the paper reports, in both styles."""
    if args.target is None:
        progress = dict(console=Console(stderr=True), transient=True)
        rows = list(track(compare_published(), "Counting", len(PUBLISHED), **progress))
    else:
        target = find_target(args.target, args.cfg_options)
        rows = [compare_config(target, args.shape and tuple(args.shape))]
    console.print(_paper_table(rows))
    explanations = filter(None, (row.explanation for row in rows))
    say(console, *explanations, ABOUT_STYLES)
    return _paper_json(rows)


def _module_table(counted: Complexity, depth: int) -> Table:
    """Parameters and multiply-adds of the modules up to ``depth`` levels below the whole."""
    table = Table("module")
    for heading in ("parameters", "multiply-adds", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, parameters in counted.parameters_by_module.items():
        level = name.count(".") + 1 if name else 0
        macs = counted.macs_by_module.get(name)
        if level > depth or not (parameters or macs):
            continue
        table.add_row(
            "  " * (level - 1) + name.rpartition(".")[2] if name else "total",
            f"{parameters:,}",
            "-" if macs is None else f"{macs / 1e9:.3f} G",
            "-" if macs is None else f"{macs / max(counted.macs, 1):.1%}",
            end_section=not name,
        )
    return table


def _uncounted_lines(counted: Complexity) -> Iterator[str]:
    """One line for each operator that ran and is in no number."""
    for name, calls in counted.uncounted.items():
        reason = (
            "sampling, which papers do not count"
            if name in SAMPLING
            else "no formula is known: give it one with torch.utils.flop_counter.register_flop_formula"
        )
        yield f"not counted: {name}, {calls} {'call' if calls == 1 else 'calls'}: {reason}"


def _as_json(counted: Complexity) -> dict[str, Any]:
    """Everything that was counted; modules that were not called have no multiply-adds."""
    return {
        "parameters": counted.parameters,
        "multiply_adds": counted.macs,
        "modules": {
            name: {"parameters": parameters, "multiply_adds": counted.macs_by_module.get(name)}
            for name, parameters in counted.parameters_by_module.items()
            if name
        },
        "operators": counted.macs_by_operator,
        "uncounted": counted.uncounted,
    }


def _paper_table(rows: Sequence[PaperCount]) -> Table:
    """Both counts beside what is published."""
    table = Table("model")
    for heading in ("size", "params", "(published)", "published", "complete", "paper style"):
        table.add_column(heading, justify="right")
    for row in rows:
        height, width = row.size
        published = row.published
        table.add_row(
            row.title,
            f"{height}x{width}",
            f"{row.complete.parameters / 1e6:.1f} M",
            "-" if published is None else f"{published.mparams} M",
            "-" if published is None else f"{published.gflops} G",
            _beside(row.complete.macs, published),
            _beside(row.paper_style, published),
        )
    return table


def _beside(macs: int, published: Published | None) -> str:
    value = f"{macs / 1e9:.1f} G"
    return value if published is None else f"{value} {macs / 1e9 / published.gflops - 1:+6.1%}"


def _paper_json(rows: Sequence[PaperCount]) -> list[dict[str, Any]]:
    """The table's rows; multiply-adds and parameters as whole numbers."""
    return [
        {
            "model": row.title,
            "shape": list(row.size),
            "parameters": row.complete.parameters,
            "multiply_adds": row.complete.macs,
            "uncounted": row.complete.uncounted,
            "paper_style": {
                "multiply_adds": row.paper_style,
                "modules": row.modules,
                "softmax_products": row.softmax,
            },
            "published": row.published
            and {
                "multiply_adds": row.published.gflops * 10**9,
                "parameters": row.published.mparams * 10**6,
            },
            "explanation": row.explanation,
        }
        for row in rows
    ]


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
        write_json(numbers, args.json)
        say(console, f"written to {args.json}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, parse_args(argv))
