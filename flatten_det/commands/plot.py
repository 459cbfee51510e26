"""Draw training curves of several runs: ``flatten-det plot WORK_DIR ... [--keys loss ...]``."""

import argparse
from pathlib import Path

from ..cli import add_debug_option, use_matplotlib_without_display
from ..errors import UserError
from ..files.atomic import refuse_overwriting
from ..lab.curves import choose_keys, draw_curves, read_curves
from ..lab.output import save_figure
from . import run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Draw losses and metrics of one or more trainings over their iterations, in one figure."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="WORK_DIR", help="of trainings")
    parser.add_argument(
        "--keys",
        nargs="+",
        default=[],
        metavar="KEY",
        help="a panel each, such as loss lr coco/bbox_mAP (default: the loss, and what is measured)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("curves.png"),
        metavar="FILE",
        help="PNG to write (default: curves.png)",
    )
    add_debug_option(parser)
    args = parser.parse_args(argv)
    if args.out.suffix.lower() != ".png":
        parser.error(f"argument --out: {args.out}: a PNG's name ends in .png")
    return args


def run(args: argparse.Namespace) -> None:
    """Read the logs and draw.

    Raises:
        UserError: A run has no log, or none has a key that is asked for.
    """
    use_matplotlib_without_display()
    names = [run.resolve().name for run in args.runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in args.runs]
    if len(set(names)) < len(names):
        raise UserError("a run is given twice: give each once")
    runs = dict(zip(names, map(read_curves, args.runs), strict=True))
    keys = choose_keys(runs, args.keys)
    refuse_overwriting(args.runs, [args.out], "--out")
    save_figure(draw_curves(runs, keys), args.out)
    print(f"{', '.join(keys)} of {', '.join(runs)}: {args.out}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, parse_args(argv))
