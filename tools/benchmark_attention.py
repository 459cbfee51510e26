"""Compare implementations of the attention: ``tools/benchmark_attention.py [--shape ...] [--out DIR]``."""

import argparse
import shlex
import sys
from itertools import product

import _tool
import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from flatten_det.errors import UserError
from flatten_det.lab.benchmark.attention.candidates import EAGER, default_candidates, load_peer
from flatten_det.lab.benchmark.attention.cases import CASES, LEVELS, MODES, Setting, find_case
from flatten_det.lab.benchmark.attention.report import save_results
from flatten_det.lab.benchmark.attention.run import Plan, benchmark_setting
from flatten_det.lab.benchmark.attention.table import explanation, make_tables
from flatten_det.lab.benchmark.bandwidth import copy_bandwidth
from flatten_det.lab.benchmark.device import find_device
from flatten_det.lab.benchmark.dtypes import DTYPES
from flatten_det.lab.benchmark.machine import device_name
from flatten_det.lab.benchmark.options import add_measuring_options, add_out_option, check_least
from flatten_det.lab.benchmark.tables import make_console

COMMAND = "uv run tools/benchmark_attention.py"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Time, peak memory and numerical error of implementations of focused linear attention, "
        "taken in turns. An implementation that computes something else gets no speed-up."
    )
    parser.add_argument(
        "--level",
        choices=LEVELS,
        default="module",
        help="core: q, k and v are given; module: with all projections (default)",
    )
    parser.add_argument(
        "--shape",
        nargs="+",
        default=list(CASES),
        metavar="SHAPE",
        help=f"{', '.join(CASES)}, or C,heads,H,W (default: all of these names)",
    )
    parser.add_argument("--batch", type=int, default=1, help="images at once (default: 1)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["fp32"], help="one or more")
    parser.add_argument(
        "--amp",
        action="store_true",
        help="bf16 and fp16 under autocast with parameters in fp32 (default: all in the dtype)",
    )
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES), help="one or more")
    parser.add_argument(
        "--candidates",
        nargs="+",
        metavar="NAME",
        help="default: all. module: flatten_det (as it dispatches, fused for inference), reference, eager, "
        "compiled, sdpa; core: tiled (CPU) or triton (CUDA) instead of flatten_det",
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        help="compare with an outside implementation too: a function (q, k, v, num_heads, hw_shape, "
        "positions, scale, dwc_weight, dwc_bias); may be given several times",
    )
    parser.add_argument("--baseline", default=EAGER, help="of the speed-ups (default: %(default)s)")
    add_measuring_options(parser, "candidate", rounds=10, warmup=3)
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=5,
        help="leave out softmax attention where a call takes longer (default: 5)",
    )
    add_out_option(parser, "results.json, results.csv, figure.png")
    args = parser.parse_args(argv)
    check_least(parser, args, {"batch": 1, "rounds": 1, "warmup": 0, "threads": 1})
    if args.amp and "fp32" in args.dtype:
        parser.error("argument --amp: needs --dtype bf16 or fp16, or both")
    args.command = f"{COMMAND} {shlex.join(sys.argv[1:] if argv is None else argv)}".strip()
    return args


def choose_candidates(args: argparse.Namespace, device: torch.device) -> list[str]:
    """The candidates to compare.

    Raises:
        UserError: if there is no such candidate, or the baseline is none of them.
    """
    known = default_candidates(args.level, device)
    chosen = list(dict.fromkeys([*(args.candidates or known), *args.peer]))
    for name in set(chosen) - set(args.peer) - set(known):
        names = ", ".join(known)
        raise UserError(f"--candidates {name}: at this level on {device.type} there are {names}")
    for peer in args.peer:
        load_peer(peer)
    if args.baseline not in chosen:
        raise UserError(
            f"--baseline {args.baseline}: not among the candidates ({', '.join(chosen)})"
        )
    return chosen


def run(args: argparse.Namespace) -> None:
    """Measure, show and save."""
    device = find_device(args.device)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    cases = [find_case(text) for text in args.shape]
    candidates = choose_candidates(args, device)
    settings = [
        Setting(case, args.level, mode, dtype, args.batch, args.amp, str(device))
        for case, dtype, mode in product(cases, args.dtype, args.mode)
    ]
    plan = Plan(
        candidates,
        args.baseline,
        args.rounds,
        args.warmup,
        not args.no_memory,
        args.max_seconds,
        copy_bandwidth(device),
    )
    results = []
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=plan.steps * len(settings))
        for setting in settings:

            def advance(done: str, about: str = f"{setting.case.name} {setting.mode}") -> None:
                progress.update(task, advance=1, description=f"{about} {done}")

            results += benchmark_setting(setting, plan, advance)
            if args.out is not None:
                save_results(results, plan, device, args.command, args.out)
    console = make_console()
    console.print(args.command, highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{device_name(device)}; copy at {plan.bandwidth / 1e9:.1f} GB/s", highlight=False
    )
    for table in make_tables(results, plan.baseline):
        console.print(table)
    console.print(explanation(), highlight=False)
    if args.out is not None:
        console.print(f"written to {args.out}", highlight=False, markup=False, soft_wrap=True)


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    return _tool.run(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
