"""Say where a model errs: ``flatten-det evaluate CONFIG CHECKPOINT [--out-dir DIR]``."""

import argparse
from contextlib import nullcontext
from pathlib import Path

from ..cli import (
    add_common_options,
    add_trust_option,
    add_verbose_option,
    command_line,
    make_console,
    say,
    use_matplotlib_without_display,
)
from ..config import blame_config, load_config
from ..lab.evaluation.report import JSON, PAGE, ReportOptions
from ..lab.evaluation.run import evaluate_model
from ..predict.evaluate import TestConsoleHook
from ..predict.tiles import at_full_size
from ..train.console import short_console
from . import run_command
from .infer import add_large_image_options, tiling


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] CONFIG CHECKPOINT\n"
        "       %(prog)s [options] CONFIG --predictions FILE",
        description="Test a model as `flatten-det test` does, and say where it errs: by class, kind of "
        "error and image. Writes a page, its figures, and all numbers as JSON.",
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint file")
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="of a detector, in place of a checkpoint: COCO's results (JSON), or the .pkl that "
        "`flatten-det test --out` writes, such as with --tta",
    )
    parser.add_argument(
        "--out-dir",
        type=Path,
        default=Path("outputs/evaluation"),
        help="folder of the report (default: ./outputs/evaluation)",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=ReportOptions.threshold,
        metavar="SCORE",
        help="of detections: count errors from this score on; AP is of all (default: %(default)s)",
    )
    parser.add_argument(
        "--worst",
        type=int,
        default=ReportOptions.worst,
        metavar="N",
        help="draw the N images with most errors (default: %(default)s)",
    )
    add_verbose_option(parser)
    add_large_image_options(parser)
    add_trust_option(parser)
    add_common_options(parser)
    args = parser.parse_intermixed_args(argv)
    if (args.checkpoint is None) == (args.predictions is None):
        parser.error("give either a checkpoint or --predictions FILE")
    args.tiling = tiling(parser, args)
    if args.worst < 0:
        parser.error(f"argument --worst: must be 0 or more, got {args.worst}")
    if not 0 <= args.score_threshold <= 1:
        parser.error(f"argument --score-threshold: must be from 0 to 1, got {args.score_threshold}")
    return args


class _Progress(TestConsoleHook):
    """Shows a test without the tables of its metrics, which the report's take the place of."""

    shows_tables = False


def run(args: argparse.Namespace) -> None:
    """Analyse, print the tables, and say where the report is."""
    use_matplotlib_without_display()
    cfg = load_config(args.config, args.cfg_options)
    with blame_config(cfg):
        at_full_size(cfg, args.full_size, args.tiling)
    options = ReportOptions(args.out_dir, args.score_threshold, args.worst)
    about = {
        "command": command_line("evaluate"),
        "config": str(args.config),
        "checkpoint": args.checkpoint,
        "predictions": args.predictions and str(args.predictions),
    }
    given = (cfg, args.checkpoint, args.predictions, options, about)
    with nullcontext(()) if args.verbose else short_console(args.config, _Progress) as hooks:
        report = evaluate_model(*given, hooks)
    console = make_console()
    for table in report.tables:
        table.print(console)
    say(console, f"report: {args.out_dir / PAGE} (numbers: {args.out_dir / JSON})")
    if report.unreadable:
        raise report.unreadable


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, parse_args(argv))
