"""Test a detector or a segmentor: ``flatten-det test CONFIG CHECKPOINT``."""

import argparse

from ..cli import (
    RankParser,
    add_common_options,
    add_cuda_graphs_option,
    add_launcher_options,
    add_trust_option,
    add_verbose_option,
    set_launcher,
    use_matplotlib_without_display,
)
from ..config import blame_config, load_config
from ..predict.evaluate import TestConsoleHook, evaluate
from ..predict.tiles import at_full_size
from ..predict.tta import enable_tta
from ..train.console import short_console
from ..train.processes import in_processes
from . import run_command
from .infer import add_large_image_options, tiling


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = RankParser(description="Test a detector or a segmentor.")
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument(
        "--work-dir", help="folder for logs and metrics (default: ./work_dirs/<config name>)"
    )
    parser.add_argument(
        "--out",
        help="write raw predictions: detection, to this .pkl file; segmentation, label maps "
        "(PNG) to this folder",
    )
    parser.add_argument("--show-dir", help="write drawn pictures to this folder")
    parser.add_argument("--show", action="store_true", help="show drawn pictures in a window")
    parser.add_argument(
        "--wait-time", type=float, default=2, help="seconds that a window stays (default: 2)"
    )
    parser.add_argument("--tta", action="store_true", help="test-time augmentation")
    add_large_image_options(parser)
    add_verbose_option(parser)
    add_cuda_graphs_option(parser)
    add_common_options(parser)
    add_trust_option(parser)
    add_launcher_options(parser)
    args = parser.parse_args(argv)
    args.tiling = tiling(parser, args)
    if args.tta and args.tile:
        parser.error("argument --tile: test-time augmentation (--tta) takes images as a whole")
    return args


def run(args: argparse.Namespace) -> None:
    """Apply the options to the config and test."""
    if not args.show:
        use_matplotlib_without_display()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    set_launcher(cfg, args)
    with blame_config(cfg):
        at_full_size(cfg, args.full_size, args.tiling)
        if args.tta:
            enable_tta(cfg)
    evaluate(
        cfg,
        args.checkpoint,
        args.out,
        args.show_dir,
        args.show,
        args.wait_time,
        args.cuda_graphs,
        None if args.verbose else short_console(args.config, TestConsoleHook),
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv)
    return run_command(in_processes("test", run, argv), args)
