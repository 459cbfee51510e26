"""Train a detector or a segmentor: ``flatten-det train CONFIG``."""

import argparse
from contextlib import nullcontext

from ..cli import (
    RankParser,
    add_common_options,
    add_launcher_options,
    add_trust_option,
    add_verbose_option,
    cfg_option_texts,
    set_launcher,
    use_matplotlib_without_display,
)
from ..config import blame_config, enable_auto_scale_lr, load_config
from ..data.doctor.check import check_command
from ..predict.drawing import ValidationPicturesHook
from ..train.console import short_console
from ..train.finetune import fine_tune
from ..train.logs import LOGS
from ..train.optimizer import AMP_DTYPES, enable_amp
from ..train.processes import in_processes
from ..train.resume import resume_from
from ..train.run import STRATEGIES, train
from . import run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = RankParser(description="Train a detector or a segmentor.")
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
        "--strategy",
        choices=list(STRATEGIES),
        default="ddp",
        help="of several processes: ddp: each has the whole model (default); fsdp: weights, gradients and "
        "optimizer state are shared out to them",
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
    group = parser.add_argument_group("fine-tuning")
    group.add_argument(
        "--weights",
        metavar="CHECKPOINT",
        help="start from what fits of another detector's or segmentor's weights; a head for other classes "
        "is left out",
    )
    group.add_argument(
        "--freeze",
        type=int,
        metavar="N",
        help="keep the backbone's first N stages, and what comes before them, as they are",
    )
    group.add_argument(
        "--ema", action="store_true", help="evaluate and save a moving average of the weights"
    )
    group.add_argument(
        "--save-best",
        nargs="?",
        const="auto",
        metavar="METRIC",
        help="keep the best checkpoint too (default: by the mask, else box mAP, PQ or mIoU)",
    )
    group.add_argument(
        "--early-stopping",
        type=int,
        metavar="N",
        help="end after N validations in a row that are not better, by the metric of --save-best",
    )
    parser.add_argument(
        "--log",
        nargs="+",
        choices=list(LOGS),
        default=[],
        metavar="LOG",
        help=f"write scalars, the config and pictures of validations to {', '.join(LOGS)} too, in the work "
        "dir or where their own environment variables say",
    )
    add_verbose_option(parser)
    add_common_options(parser)
    add_trust_option(parser)
    add_launcher_options(parser)
    args = parser.parse_args(argv)
    if args.weights and args.resume:
        parser.error("argument --weights: a training that goes on (--resume) has its own weights")
    if args.freeze is not None and args.freeze < 0:
        parser.error("argument --freeze: must be at least 0")
    if args.early_stopping is not None and args.early_stopping < 1:
        parser.error("argument --early-stopping: must be at least 1")
    args.cfg_option_texts = cfg_option_texts(argv)
    return args


def run(args: argparse.Namespace) -> None:
    """Apply the options to the config and train."""
    use_matplotlib_without_display()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    set_launcher(cfg, args)
    with blame_config(cfg):
        if args.amp:
            enable_amp(cfg, None if args.amp == "auto" else args.amp)
        if args.auto_scale_lr:
            enable_auto_scale_lr(cfg)
        own_hooks = fine_tune(
            cfg, args.weights, args.freeze, args.ema, args.save_best, args.early_stopping
        )
    resume_from(cfg, args.resume)
    with nullcontext([]) if args.verbose else short_console(args.config) as hooks:
        train(
            cfg,
            check_data=not args.no_data_check,
            hooks=[*own_hooks, *hooks, ValidationPicturesHook()],
            check_command=check_command(args.config, args.cfg_option_texts),
            logs=args.log,
            strategy=args.strategy,
        )


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv)
    return run_command(in_processes("train", run, argv), args)
