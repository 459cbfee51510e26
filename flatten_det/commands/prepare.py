"""Get, convert and check data sets, or write a config for one's own: ``flatten-det prepare coco``."""

import argparse
import re
import sys
from pathlib import Path

from ..cli import add_debug_option
from ..data.preparation import public
from ..data.preparation.cityscapes import CITYSCAPES
from ..data.preparation.coco_file import Division
from ..data.preparation.custom import CustomDataOptions, write_config
from ..data.preparation.formats import FORMATS
from ..data.tiling import Tiling
from ..errors import UserError
from . import run_command

INCOMPLETE_EXIT = 1
LEAST_SIDE, LARGEST_SIDE = 32, 8192


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Download, unpack, convert and check data sets where the configs expect them; or "
        "write a config for data of your own. Exit code 1: the data set is not complete."
    )
    commands = parser.add_subparsers(required=True, metavar="DATA")

    command = _data_set(commands, "coco", "COCO 2017", "data/coco")
    command.add_argument("--panoptic", action="store_true", help="panoptic annotations too")
    _add_download_options(command)
    command.set_defaults(
        work=lambda args: _public(public.COCO_PANOPTIC if args.panoptic else public.COCO, args)
    )

    command = _data_set(commands, "ade20k", "ADE20K (2016)", "data/ade/ADEChallengeData2016")
    _add_download_options(command)
    command.set_defaults(work=lambda args: _public(public.ADE20K, args))

    command = _data_set(commands, "cityscapes", "Cityscapes (after a login)", "data/cityscapes")
    command.set_defaults(
        mirror=None, keep_archives=False, work=lambda args: _public(CITYSCAPES, args)
    )

    command = commands.add_parser(
        "custom", help="write a config for data of your own; may be left out before a folder"
    )
    _add_custom_options(command)
    command.set_defaults(work=_custom)

    for command in commands.choices.values():
        add_debug_option(command)
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] not in commands.choices and not argv[0].startswith("-"):
        argv.insert(0, "custom")
    return parser.parse_args(argv)


def _data_set(commands, name: str, title: str, root: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=title)
    command.add_argument(
        "root", nargs="?", type=Path, default=Path(root), help=f"its folder (default: {root})"
    )
    command.add_argument(
        "--check", action="store_true", help="only say what is missing; write nothing"
    )
    command.add_argument(
        "--archives",
        type=Path,
        metavar="DIR",
        help="folder of the zip files; those that are there are not downloaded (default: the root)",
    )
    return command


def _add_download_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--mirror", metavar="URL", help="base URL to download from")
    command.add_argument(
        "--keep-archives", action="store_true", help="do not remove the downloaded zip files"
    )


def _add_custom_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, help="folder with images and annotations")
    command.add_argument(
        "--config", type=Path, required=True, help="config to start from, or its name"
    )
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="config to write")
    for split in ("train", "val"):
        command.add_argument(
            f"--{split}-ann", type=Path, metavar="FILE", help="annotation file (default: found)"
        )
        command.add_argument(
            f"--{split}-images", type=Path, metavar="DIR", help="image folder (default: found)"
        )
    command.add_argument(
        "--val-fraction",
        type=_fraction,
        metavar="F",
        help="hold this part of the training images back for validation, e.g. 0.2",
    )
    command.add_argument(
        "--group-by-prefix",
        type=_pattern,
        nargs="?",
        const=re.compile(r"[ _.-]*\d+$"),
        metavar="SEP",
        help="with --val-fraction: images whose names begin alike stay in one part; SEP, a text or regular "
        "expression, ends this prefix (default: the number at the end of a name)",
    )
    command.add_argument(
        "--image-size",
        type=_side,
        nargs="+",
        metavar="N",
        help="resize images to a longer side of N pixels, or to fit into a height and a width (default: "
        "chosen by the objects)",
    )
    command.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="detectors: cut the training images into tiles of this side, e.g. 512",
    )
    command.add_argument(
        "--tile-overlap",
        type=float,
        default=Tiling.overlap,
        metavar="PART",
        help="how much neighbouring tiles share at least, as a part of their side (default: %(default)s)",
    )
    command.add_argument(
        "--from-scratch", action="store_true", help="do not start from pretrained weights"
    )
    command.add_argument(
        "--format",
        choices=["coco", *FORMATS],
        help="of the annotations (default: that which the folder holds)",
    )
    command.add_argument(
        "--classes",
        type=lambda text: tuple(name.strip() for name in text.split(",")),
        metavar="A,B,...",
        help="all classes in their order (default: the data's own order, or by name; COCO has its own)",
    )
    command.add_argument("--force", action="store_true", help="overwrite files that exist")


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError("between 0 and 1")
    return value


def _pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"no regular expression: {error}") from error
    if pattern.match(""):
        raise argparse.ArgumentTypeError("it fits every name at its begin: give what ends a prefix")
    return pattern


def _side(text: str) -> int:
    value = int(text)
    if not LEAST_SIDE <= value <= LARGEST_SIDE:
        raise argparse.ArgumentTypeError(f"between {LEAST_SIDE} and {LARGEST_SIDE} pixels")
    return value


def _public(dataset, args: argparse.Namespace) -> list[str]:
    if args.check:
        return public.check(dataset, args.root)
    return public.prepare(dataset, args.root, args.archives, args.mirror, args.keep_archives)


def _custom(args: argparse.Namespace) -> list[str]:
    options = vars(args)
    if args.group_by_prefix and not args.val_fraction:
        raise UserError("--group-by-prefix says how --val-fraction divides: give that too")
    if len(args.image_size or ()) > 2:
        raise UserError("--image-size takes a longer side, or a height and a width")
    try:
        tiling = None if args.tile is None else Tiling(args.tile, args.tile_overlap)
    except ValueError as error:
        raise UserError(f"--tile: {error}") from error
    asked = CustomDataOptions(
        args.folder,
        args.config,
        args.out,
        annotations={s: options[f"{s}_ann"] for s in ("train", "val") if options[f"{s}_ann"]},
        images={s: options[f"{s}_images"] for s in ("train", "val") if options[f"{s}_images"]},
        division=Division(args.val_fraction, args.group_by_prefix) if args.val_fraction else None,
        image_size=args.image_size and (args.image_size[-1], args.image_size[0]),
        tiling=tiling,
        from_scratch=args.from_scratch,
        force=args.force,
        format=args.format,
        classes=args.classes,
    )
    write_config(asked)
    return []


def run(args: argparse.Namespace) -> int:
    """Prepare or check, and return the exit code."""
    return INCOMPLETE_EXIT if args.work(args) else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, parse_args(argv))
