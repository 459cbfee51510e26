"""Train a detector or a segmentor: ``flatten-det train CONFIG``."""

import argparse
from contextlib import nullcontext

from ..cli import (
    add_common_options,
    add_launcher_options,
    add_trust_option,
    cfg_option_texts,
    set_local_rank,
    use_matplotlib_without_display,
)
from ..config import blame_config, enable_auto_scale_lr, load_config
from ..data.doctor.report import check_command
from ..train.console import short_console
from ..train.optimizer import AMP_DTYPES, enable_amp
from ..train.resume import resume_from
from ..train.run import train
from . import run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Train a detector or a segmentor.")
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--work-dir", help="folder for checkpoints and logs (default: ./work_dirs/<config name>)"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="continue a run, from the newest valid checkpoint in the work dir or from the given one",
    )
    parser.add_argument(
        "--amp",
        nargs="?",
        const="auto",
        choices=["auto", *AMP_DTYPES],
        help="mixed precision; auto, or no value: the config's dtype, else bf16, or fp16 on a GPU that "
        "has no bf16",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate with the total batch size",
    )
    parser.add_argument(
        "--no-data-check",
        action="store_true",
        help="do not look for errors in the annotations first (flatten-det check looks at all)",
    )
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="print all that goes to the log file, as MMEngine does",
    )
    add_common_options(parser)
    add_trust_option(parser)
    add_launcher_options(parser)
    args = parser.parse_args(argv)
    args.cfg_option_texts = cfg_option_texts(argv)
    return args


def run(args: argparse.Namespace) -> None:
    """Apply the options to the config and train."""
    set_local_rank(args)
    use_matplotlib_without_display()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    cfg.launcher = args.launcher
    with blame_config(cfg):
        if args.amp:
            enable_amp(cfg, None if args.amp == "auto" else args.amp)
        if args.auto_scale_lr:
            enable_auto_scale_lr(cfg)
    resume_from(cfg, args.resume)
    with nullcontext([]) if args.verbose else short_console(args.config) as hooks:
        train(
            cfg,
            check_data=not args.no_data_check,
            hooks=hooks,
            check_command=check_command(args.config, args.cfg_option_texts),
        )


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, parse_args(argv))
