"""Draw and measure attention weights: ``flatten-det analyze CONFIG [CKPT] IMAGE ...``."""

import argparse
import sys
from pathlib import Path

from ..cli import (
    CHECKPOINT_SUFFIXES,
    add_common_options,
    add_trust_option,
    check_least,
    make_console,
    progress_bar,
    say,
    split_off_checkpoint,
    use_matplotlib_without_display,
)
from ..data.loading import left_out
from ..errors import UserError
from ..files.images import find_images
from ..lab.analysis.layers import attention_layers, choose_layers
from ..lab.analysis.measure import CENTRE, Measures, order_lines, rank_table, sharpness_table
from ..lab.analysis.model import DEIT_ABLATION, NAMES, load_model, named_target
from ..lab.analysis.run import JSON, analyse, layers_with_heads
from ..lab.complexity.target import Target, find_target
from . import run_command

LEAST_SIDE = 32  # pixels, the stride of the last stage


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] CONFIG [CHECKPOINT] IMAGE [IMAGE ...]\n"
        "       %(prog)s [options] --model NAME [CHECKPOINT] IMAGE [IMAGE ...]",
        description="Attention weights of a model on images: softmax, plain linear and focused linear "
        "attention on the same queries and keys, and with the convolution as one matrix. Maps over the "
        "image, how sharp the weights are, and singular values with ranks.",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="a backbone instead of a config: flatten-pvt-t and all others of the zoo, or one of the paper's "
        f"ablation: {', '.join(DEIT_ABLATION)}",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="[CONFIG] [CHECKPOINT] IMAGE",
        help="config file, unless there is --model; checkpoint "
        f"({', '.join(CHECKPOINT_SUFFIXES)}; random weights without one), then image "
        "files, folders, quoted glob patterns; statistics are means over all of them",
    )
    parser.add_argument(
        "--layers",
        nargs="+",
        metavar="STAGE[.BLOCK]",
        help="1.2: second block of stage 1; 3: all blocks of stage 3; all (default: the last block of each "
        "stage)",
    )
    parser.add_argument(
        "--heads", nargs="+", type=int, help="of each layer, from 0 (default: all; maps of head 0)"
    )
    parser.add_argument(
        "--points",
        nargs="+",
        type=_point,
        default=[CENTRE],
        metavar="X,Y",
        help="queries to draw, as parts of width and height (default: 0.5,0.5)",
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="resize images to it, in pixels (default: what the config trains on; 224 224 with --model)",
    )
    parser.add_argument(
        "--drawn",
        type=int,
        default=1,
        metavar="N",
        help="maps, spectra and ranks of the first N images (default: 1)",
    )
    parser.add_argument(
        "--no-spectra",
        action="store_true",
        help="no singular values and ranks, which take the longest: 4096 tokens half a minute a matrix",
    )
    parser.add_argument(
        "--channels",
        type=int,
        default=1,
        help="of a head, whose matrices with the convolution are looked at: kernels differ from channel to "
        "channel (default: 1, the one with the median kernel; more go from the smallest to the largest)",
    )
    parser.add_argument(
        "--out-dir", type=Path, default=Path("outputs/analysis"), help="default: %(default)s"
    )
    add_trust_option(parser)
    add_common_options(parser)
    args = parser.parse_intermixed_args(argv)  # options between inputs too
    if args.size and min(args.size) < LEAST_SIDE:
        parser.error(f"argument --size: at least {LEAST_SIDE} pixels a side, got {args.size}")
    check_least(parser, args, {"drawn": 0, "channels": 1})
    args.config = None if args.model else args.inputs.pop(0)
    if not args.inputs:
        parser.error(f"give the images to look at, after {args.config}")
    split_off_checkpoint(parser, args, "look at")
    return args


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give X,Y such as 0.5,0.25") from None
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise argparse.ArgumentTypeError(f"{text}: X and Y are parts of the image, from 0 to 1")
    return x, y


def _find_target(args: argparse.Namespace) -> Target:
    if args.model is None and args.config in NAMES:
        raise UserError(
            f"{args.config} is no config file, but a model's name: --model {args.config}"
        )
    if args.model is None:
        return find_target(args.config, args.cfg_options)
    if args.cfg_options:
        raise UserError("--cfg-options changes configs, and there is none with --model: drop it")
    return named_target(args.model)


def run(args: argparse.Namespace) -> None:
    """Analyse, show and write."""
    use_matplotlib_without_display()
    target = _find_target(args)
    images = find_images(args.inputs)
    model = load_model(target, args.checkpoint, args.size and tuple(args.size))
    chosen = choose_layers(attention_layers(model.backbone), args.layers)
    layers = layers_with_heads(chosen, args.heads)
    for layer in chosen:
        if layer not in layers:
            print(f"layer {layer.name} is left out: it has none of these heads", file=sys.stderr)
    if args.checkpoint is None:
        print(
            "warning: no checkpoint given: weights, and so what is measured, may be random",
            file=sys.stderr,
        )
    measures = Measures(
        heads=args.heads and tuple(args.heads),
        spectra=not args.no_spectra,
        channels=args.channels,
        points=tuple(args.points),
        drawn=args.drawn,
    )
    about = dict(target=target.name, checkpoint=args.checkpoint, size=list(model.size))
    with progress_bar() as progress:
        task = progress.add_task("", total=len(images) * len(layers))
        analysis = analyse(
            model,
            layers,
            images,
            measures,
            args.out_dir,
            about,
            lambda what: progress.update(task, advance=1, description=what),
        )
    console = make_console()
    console.print(sharpness_table(analysis.summaries))
    if measures.spectra and measures.drawn:
        console.print(rank_table(analysis.results[0]))
    say(console, *order_lines(analysis.summaries))
    errors = [r.error for of_image in analysis.results for r in of_image if r.error is not None]
    if errors:
        largest = max(errors)
        say(console, f"the matrices give what the layers do, to {largest:.1g} of the largest entry")
    say(console, f"figures and {JSON} in {args.out_dir}")
    if analysis.unreadable:
        raise left_out(analysis.unreadable, len(images), ", without which the statistics are")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, parse_args(argv))
