"""Find what is wrong with the data sets of a config: ``flatten-det check CONFIG``."""

import argparse
import os
from pathlib import Path

from rich.console import Console

from ..cli import add_common_options
from ..config import blame_config, load_config
from ..data.doctor.check import check_data, findings_of, print_report, write_json
from ..data.doctor.faults import count_errors
from ..errors import UserError
from ..files.atomic import refuse_overwriting
from . import run_command

FAULTS_EXIT = 1


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Find what is wrong with the images, annotations and label maps of a config's data "
        "sets. Errors stop a training or let it learn what is not so; warnings are left out by the "
        "frameworks or do no harm. Exit code 1: there are errors."
    )
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--show",
        type=_count,
        default=3,
        metavar="N",
        help="list the first N findings of each kind (default: 3)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings to this file")
    parser.add_argument("--strict", action="store_true", help="exit code 1 for warnings too")
    parser.add_argument(
        "--workers",
        type=_count,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that open images; 0: in this one (default: one per CPU)",
    )
    add_common_options(parser)
    return parser.parse_args(argv)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("0 or more")
    return value


def run(args: argparse.Namespace) -> int:
    """Check, report, and return the exit code."""
    cfg = load_config(args.config, args.cfg_options)
    if args.json and args.json.is_dir():
        raise UserError(f"--json {args.json} is a folder: give a file")
    with blame_config(cfg):
        checked = check_data(cfg, args.workers)
    print_report(checked, args.show, Console(highlight=False))
    if args.json:
        inputs = [args.config, *(one.data_set.annotation_file for one in checked)]
        refuse_overwriting(inputs, [args.json], "--json")
        write_json(args.json, args.config, checked)
        print(f"All findings: {args.json}")
    findings = findings_of(checked)
    faults = len(findings) if args.strict else count_errors(findings)
    return FAULTS_EXIT if faults else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, parse_args(argv))
