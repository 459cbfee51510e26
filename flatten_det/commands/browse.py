"""Look at a config's data as the model gets them: ``flatten-det browse CONFIG``."""

import argparse

from ..cli import add_common_options, use_matplotlib_without_display
from ..config import load_config
from ..predict.browse import browse
from . import run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Draw samples of a config's data after augmentation, as the model gets them, beside what "
        "is on disk: pictures, and a page that shows them with what is in them."
    )
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--split",
        choices=["train", "val", "test"],
        default="train",
        help="the data loader whose samples are drawn (default: train)",
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--number",
        type=int,
        default=16,
        metavar="N",
        help="draw N samples, spread over the data set (default: 16)",
    )
    chosen.add_argument(
        "--indices", type=int, nargs="+", default=[], metavar="I", help="draw these samples instead"
    )
    chosen.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="NAME",
        help="draw the samples of these images instead: file names, or the ends of paths",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the augmentation: the same one gives the same pictures (default: 0)",
    )
    parser.add_argument(
        "--out-dir",
        default="outputs/browse",
        help="folder for index.html and pictures (default: ./outputs/browse)",
    )
    add_common_options(parser)
    args = parser.parse_args(argv)
    if args.number < 1:
        parser.error(f"argument --number: must be at least 1, got {args.number}")
    return args


def run(args: argparse.Namespace) -> None:
    """Apply the options to the config and draw."""
    use_matplotlib_without_display()
    cfg = load_config(args.config, args.cfg_options)
    browse(cfg, args.split, args.out_dir, args.number, args.indices, args.images, args.seed)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, parse_args(argv))
