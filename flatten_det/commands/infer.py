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
from ..data.tiling import Tiling
from ..predict.infer import InferOptions, infer
from ..predict.predictor import PRECISIONS
from ..predict.video import CODECS
from . import run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] CONFIG [CHECKPOINT] INPUT [INPUT ...]",
        description="Predict for images and videos: drawn pictures and videos, and JSON.",
    )
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="[CHECKPOINT] INPUT",
        help=f"checkpoint ({', '.join(CHECKPOINT_SUFFIXES)}; random weights without one), then "
        "image and video files, folders, quoted glob patterns, addresses of images (http, https), numbers "
        "of cameras",
    )
    parser.add_argument("--out-dir", default="outputs", help="results folder (default: ./outputs)")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1, ... (default: %(default)s here)",
    )
    parser.add_argument(
        "--precision",
        choices=[*PRECISIONS, "auto"],
        default="auto",
        help="of the model (default: fp16 on a GPU, fp32 on a CPU)",
    )
    parser.add_argument(
        "--score-thr",
        type=float,
        help="leave out detections below (default: 0.3; 0 in a file of --format coco)",
    )
    parser.add_argument("--batch-size", type=int, default=1, help="images at once (default: 1)")
    _add_result_options(parser)
    add_large_image_options(parser)
    add_cuda_graphs_option(parser)
    add_trust_option(parser)
    add_common_options(parser)
    args = parser.parse_intermixed_args(argv)  # options between inputs too
    if args.batch_size < 1:
        parser.error(f"argument --batch-size: must be at least 1, got {args.batch_size}")
    if args.camera_frames is not None and args.camera_frames < 1:
        parser.error(f"argument --camera-frames: must be at least 1, got {args.camera_frames}")
    if args.coco_annotations and args.format != "coco":
        parser.error("argument --coco-annotations: give --format coco, too")
    args.tiling = tiling(parser, args)
    split_off_checkpoint(parser, args, "predict for")
    return args


def _add_result_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which files are written."""
    group = parser.add_argument_group("results")
    group.add_argument(
        "--format",
        choices=["json", "coco"],
        default="json",
        help="a JSON file per image, or detectors' results of all images in one file of COCO "
        "(OUT_DIR/predictions.json), which pycocotools evaluates (default: json)",
    )
    group.add_argument(
        "--coco-annotations",
        metavar="FILE",
        help="with --format coco: take the ids of images and categories from this file, by their names "
        "(default: numbers that the images' names are, and COCO's own categories, else 1, 2, 3, ...)",
    )
    group.add_argument(
        "--no-pictures",
        action="store_true",
        help="write predictions only, without drawing them into images and videos",
    )
    group.add_argument(
        "--video-codec",
        choices=CODECS,
        help="H.264, VP9 or MPEG-4 (default: the first one that this OpenCV writes, as more programs play "
        "it; MPEG-4 takes a tenth of VP9's time, but browsers do not play it)",
    )
    group.add_argument(
        "--camera-frames",
        type=int,
        metavar="N",
        help="take N frames of a camera (default: until Ctrl-C)",
    )


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
    options = InferOptions(
        args.out_dir,
        args.score_thr,
        args.format == "coco",
        args.coco_annotations,
        not args.no_pictures,
        args.video_codec,
        args.camera_frames,
    )
    infer(
        cfg,
        args.checkpoint,
        args.inputs,
        options,
        device=args.device,
        precision=args.precision,
        batch_size=args.batch_size,
        full_size=args.full_size,
        tiling=args.tiling,
        cuda_graphs=args.cuda_graphs,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, parse_args(argv))
