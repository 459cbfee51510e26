"""Options that all benchmarks have."""

import argparse
from collections.abc import Mapping
from pathlib import Path


def add_measuring_options(
    parser: argparse.ArgumentParser, candidates: str, rounds: int, warmup: int
) -> None:
    """Add ``--rounds``, ``--warmup``, ``--device``, ``--threads``, ``--no-memory`` and ``--debug``.

    Args:
        parser: of the tool.
        candidates: what is compared, in the singular.
        rounds, warmup: the defaults.
    """
    parser.add_argument(
        "--rounds",
        type=int,
        default=rounds,
        help=f"in each, every {candidates} runs once (default: {rounds})",
    )
    parser.add_argument(
        "--warmup",
        type=int,
        default=warmup,
        help=f"calls before the first round (default: {warmup})",
    )
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)"
    )
    parser.add_argument("--threads", type=int, help="threads on the CPU (default: torch's)")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of expected errors too"
    )


def add_out_option(parser: argparse.ArgumentParser, files: str) -> None:
    """Add ``--out``, the folder for the ``files``."""
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder for {files}")


def check_least(
    parser: argparse.ArgumentParser, args: argparse.Namespace, least: Mapping[str, int]
) -> None:
    """Exit with a usage error for a number below its least value; options that are not given pass."""
    for name, bound in least.items():
        value = getattr(args, name)
        if value is not None and value < bound:
            parser.error(
                f"argument --{name.replace('_', '-')}: must be at least {bound}, got {value}"
            )
