"""Make a file that runs without flatten_det: ``flatten-det export CONFIG|BACKBONE [CHECKPOINT]``."""

import argparse
from pathlib import Path

from ..cli import add_common_options, add_trust_option, make_console, say
from ..config import find_config
from ..export.exporters import DEFAULT_OPSET, LEGACY_OPSETS, ONNX, OPSETS, SUFFIXES
from ..export.graphs import FULL, HALF, LABELS, LOGITS, RESIZED
from ..export.run import Settings, export
from ..files.images import find_images
from ..lab.complexity.target import find_target
from . import run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Export a detector or a segmentor end to end, from RGB bytes to boxes, masks, logits or "
        "labels, or a backbone, for batches and images of any size."
    )
    parser.add_argument(
        "target",
        metavar="CONFIG|BACKBONE",
        help="a config file, the name of one of ours, or the short name of a backbone such as flatten-pvt-t",
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="weights of the config's model, or of the backbone (default: random)",
    )
    parser.add_argument(
        "--format",
        choices=SUFFIXES,
        default=ONNX,
        help="onnx, or torch-export: a .pt2 file for torch.export.load (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="file to write (default: named as the config or backbone, in the current folder)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument(
        "--backbone", action="store_true", help="export the backbone of the config's model alone"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--resize", action="store_true", help="segmentors: logits at the size of the image"
    )
    output.add_argument(
        "--argmax", action="store_true", help="segmentors: the label of each pixel, not logits"
    )
    parser.add_argument(
        "--precision",
        choices=(FULL, HALF),
        default=FULL,
        help="fp16: half of the bytes; norms and attention stay in float32 (default: %(default)s)",
    )
    parser.add_argument(
        "--int8",
        nargs="+",
        metavar="IMAGE",
        help="onnx: quantise weights and the inputs of products to 8 bits, with ranges from these images "
        "(files, folders, quoted glob patterns)",
    )
    parser.add_argument(
        "--opset",
        type=int,
        help=f"version of ONNX's operators, {OPSETS[0]} to {OPSETS[-1]}; with --legacy {LEGACY_OPSETS[0]} to "
        f"{LEGACY_OPSETS[-1]} (default: {DEFAULT_OPSET})",
    )
    parser.add_argument(
        "--legacy", action="store_true", help="onnx: by torch's older exporter (dynamo=False)"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare the file with torch at other sizes and batches, and both times, before it is written",
    )
    add_trust_option(parser)
    add_common_options(parser)
    args = parser.parse_args(argv)
    if args.format != ONNX and (args.int8 or args.opset or args.legacy):
        parser.error(f"--int8, --opset and --legacy are for --format {ONNX}")
    if args.int8 and args.precision != FULL:
        parser.error(f"argument --int8: quantise from --precision {FULL}")
    return args


def run(args: argparse.Namespace) -> None:
    """Export and say what was written.

    Raises:
        UserError: see :func:`flatten_det.export.run.export`.
    """
    console = make_console()
    target = find_target(args.target, args.cfg_options)
    name = target.name if target.cfg is None else find_config(target.name).stem
    out = args.out or Path(f"{name}{SUFFIXES[args.format]}")
    output = RESIZED if args.resize else LABELS if args.argmax else LOGITS
    settings = Settings(
        args.format,
        args.precision,
        DEFAULT_OPSET if args.opset is None else args.opset,
        args.legacy,
        output,
        args.backbone,
        find_images(args.int8) if args.int8 else (),
        args.check,
        args.overwrite,
    )
    export(name, target.cfg, args.checkpoint, out, settings, lambda line: say(console, line))


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, parse_args(argv))
