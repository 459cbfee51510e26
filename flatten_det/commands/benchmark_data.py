"""Say whether data or model limit a training: ``flatten-det benchmark --what data CONFIG``."""

import argparse

from ..cli import add_common_options, check_least, command_line
from ..config import load_config
from ..lab.benchmark.data import measure_feeding, report_feeding
from ..lab.benchmark.machine import add_device_options, add_out_option, find_device
from ..lab.benchmark.report import JSON, MARKDOWN
from . import run_command
from .benchmark import add_what_option

WORKERS = [0, 2, 4]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s --what data CONFIG [options]",
        description="Images per second that a config's training data give with several numbers of workers, "
        "and that its training step takes, with random weights: which of them limits, how many workers are "
        "needed, and the time of each transform.",
    )
    add_what_option(parser)
    parser.add_argument("config", help="config file, or the name of one of ours")
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=WORKERS,
        metavar="N",
        help="processes that load data, for each process that trains; 0, in that one, is measured always "
        f"(default: {' '.join(map(str, WORKERS))})",
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="of two batches of each worker (default: 5)"
    )
    add_device_options(parser)
    add_out_option(parser, f"{JSON} and {MARKDOWN}")
    add_common_options(parser)
    args = parser.parse_intermixed_args(argv)
    if min(args.workers) < 0 or not any(args.workers):
        parser.error("argument --workers: must be 0 or more, and one of them more than 0")
    check_least(parser, args, {"rounds": 1, "threads": 1})
    args.command = command_line("benchmark", argv)
    return args


def run(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    device = find_device(args.device, args.threads)
    cfg = load_config(args.config, args.cfg_options)
    feeding = measure_feeding(cfg, args.workers, args.rounds, device)
    report_feeding(feeding, device, args.command, args.out)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, parse_args(argv))
