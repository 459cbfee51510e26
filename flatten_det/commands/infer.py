"""Predict with a detector or a segmentor: ``flatten-det infer CONFIG [CHECKPOINT] INPUT ...``."""

import argparse

import torch

from ..cli import (
    CHECKPOINT_SUFFIXES,
    add_common_options,
    add_cuda_graphs_option,
    add_trust_option,
    split_off_checkpoint,
    use_matplotlib_without_display,
)
from ..config import load_config
from ..predict.infer import infer
from ..predict.tiles import Tiling
from . import run_command


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
    add_large_image_options(parser)
    add_cuda_graphs_option(parser)
    add_trust_option(parser)
    add_common_options(parser)
    args = parser.parse_intermixed_args(argv)  # options between inputs too
    if args.batch_size < 1:
        parser.error(f"argument --batch-size: must be at least 1, got {args.batch_size}")
    args.tiling = tiling(parser, args)
    split_off_checkpoint(parser, args, "predict for")
    return args


def add_large_image_options(parser: argparse.ArgumentParser) -> None:
    """Add what keeps large images from being shrunk to the size of the config's test pipeline."""
    group = parser.add_argument_group("large images")
    group.add_argument(
        "--full-size",
        action="store_true",
        help="predict at the size of the image (with --tile: of the tile), not at that of the "
        "test pipeline's Resize",
    )
    group.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="detectors: cut images into tiles of this side and merge what is found in them; "
        "batches are then of tiles, and the model's test_cfg limits the detections of "
        "a tile and of the image (max_per_img)",
    )
    group.add_argument(
        "--tile-overlap",
        type=float,
        metavar="PART",
        help="how much neighbouring tiles share at least, as a part of their side; best as much "
        f"as most objects are large (default: {Tiling.overlap})",
    )


def tiling(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Tiling | None:
    """How to cut the images, if at all."""
    if args.tile is None:
        if args.tile_overlap is not None:
            parser.error("argument --tile-overlap: give --tile, too")
        return None
    overlap = Tiling.overlap if args.tile_overlap is None else args.tile_overlap
    try:
        return Tiling(args.tile, overlap)
    except ValueError as error:
        parser.error(f"argument --tile: {error}")


def run(args: argparse.Namespace) -> None:
    """Apply the options to the config and predict."""
    use_matplotlib_without_display()
    cfg = load_config(args.config, args.cfg_options)
    infer(
        cfg,
        args.checkpoint,
        args.inputs,
        args.out_dir,
        args.device,
        args.score_thr,
        args.batch_size,
        args.full_size,
        args.tiling,
        args.cuda_graphs,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, parse_args(argv))
