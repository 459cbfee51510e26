"""Predict with a detector or a segmentor: ``tools/infer.py CONFIG [CHECKPOINT] INPUT ...``."""

import argparse
import sys

import _quiet  # noqa: F401
import torch

from flatten_det.engine.cli import add_common_options, run_tool, use_matplotlib_without_display
from flatten_det.engine.config import load_config
from flatten_det.engine.infer import infer

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] CONFIG [CHECKPOINT] INPUT [INPUT ...]",
        description="Predict for images, folders and glob patterns: drawn pictures and JSON.",
    )
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="[CHECKPOINT] INPUT",
        help=f"checkpoint ({', '.join(CHECKPOINT_SUFFIXES)}; random weights without one), then "
        "image files, folders, quoted glob patterns",
    )
    parser.add_argument("--out-dir", default="outputs", help="results folder (default: ./outputs)")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1, ... (default: %(default)s here)",
    )
    parser.add_argument(
        "--score-thr", type=float, default=0.3, help="leave out detections below (default: 0.3)"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="images at once (default: 1)")
    add_common_options(parser)
    args = parser.parse_intermixed_args(argv)  # options between inputs too
    if args.batch_size < 1:
        parser.error(f"argument --batch-size: must be at least 1, got {args.batch_size}")
    first_is_checkpoint = args.inputs[0].endswith(CHECKPOINT_SUFFIXES)
    args.checkpoint = args.inputs.pop(0) if first_is_checkpoint else None
    if not args.inputs:
        parser.error(f"give the images to predict for, after {args.checkpoint}")
    return args


def run(args: argparse.Namespace) -> None:
    """Apply the options to the config and predict."""
    use_matplotlib_without_display()
    infer(
        load_config(args.config, args.cfg_options),
        args.checkpoint,
        args.inputs,
        args.out_dir,
        args.device,
        args.score_thr,
        args.batch_size,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    args = parse_args(argv)
    return run_tool(lambda: run(args), args.debug)


if __name__ == "__main__":
    sys.exit(main())
