"""Make a small backbone file of a classification checkpoint: ``flatten-det convert SRC DST``."""

import argparse

from ..backbones import BACKBONES
from ..backbones.weights import SUFFIXES, convert_checkpoint
from ..cli import add_debug_option, add_trust_option
from . import run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Convert an official classification checkpoint, or a trained detector or segmentor, "
        "to a backbone file for init_cfg: without head, optimizer and buffers."
    )
    parser.add_argument("source", help="checkpoint file or URL")
    parser.add_argument("destination", help=f"file to write ({' or '.join(SUFFIXES)})")
    parser.add_argument(
        "--backbone",
        choices=BACKBONES,
        metavar="NAME",
        help="short name, e.g. flatten-pvt-t (default: the one whose parameters the file has)",
    )
    parser.add_argument(
        "--img-size",
        type=int,
        nargs="+",
        metavar="PX",
        help="resize the learned grids to the maps of this size, one number or height and width; "
        "the config's pretrain_img_size must be the same (default: leave them)",
    )
    add_trust_option(parser)
    add_debug_option(parser)
    args = parser.parse_args(argv)
    if not args.destination.endswith(SUFFIXES):
        parser.error(f"the file to write must end in {' or '.join(SUFFIXES)}")
    if args.img_size is not None:
        if len(args.img_size) > 2 or min(args.img_size) < 32:
            parser.error("argument --img-size: one or two sizes of at least 32 px")
        args.img_size = tuple(args.img_size * 2)[:2]
    return args


def run(args: argparse.Namespace) -> None:
    """Convert and report."""
    backbone, report = convert_checkpoint(
        args.source, args.destination, args.backbone, args.img_size
    )
    print(report.summary())
    print(f"{backbone}: written to {args.destination}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, parse_args(argv))
