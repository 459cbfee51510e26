"""Compare implementations of the attention: ``flatten-det benchmark-attention [--shape ...] [--out DIR]``."""

import argparse
from collections.abc import Sequence
from itertools import product

import torch

from ..cli import command_line, say
from ..errors import UserError
from ..lab.benchmark.attention import (
    CASES,
    EAGER,
    LEVELS,
    MODES,
    AttentionBenchmark,
    default_candidates,
    find_case,
    load_peer,
)
from ..lab.benchmark.machine import (
    add_measuring_options,
    add_out_option,
    add_precision_options,
    check_measuring_options,
    device_name,
    find_device,
)
from ..lab.benchmark.report import save_results, show_results
from ..lab.benchmark.run import BenchmarkPlan, Comparison, Result, Setting, benchmark_settings
from ..lab.benchmark.timing import copy_bandwidth
from . import run_command


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
    add_precision_options(parser)
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
    check_measuring_options(parser, args, batch=1)
    args.command = command_line("benchmark-attention", argv)
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
    device = find_device(args.device, args.threads)
    cases = [find_case(text, args.level) for text in args.shape]
    candidates = choose_candidates(args, device)
    settings = [
        Setting(case, mode, dtype, args.amp, args.batch, str(device))
        for case, dtype, mode in product(cases, args.dtype, args.mode)
    ]
    benchmark, memory = AttentionBenchmark(copy_bandwidth(device)), not args.no_memory
    plan = BenchmarkPlan(benchmark, candidates, args.rounds, args.warmup, memory, args.max_seconds)
    how = {"rounds": args.rounds, "warmup": args.warmup}

    def save(results: Sequence[Result]) -> None:
        if args.out is not None:
            comparison = Comparison(results, args.baseline)
            save_results(benchmark, comparison, how, device, args.command, args.out)

    results = benchmark_settings(settings, plan, [], save)
    # Tables by dtype and mode.
    results.sort(key=lambda result: (result.setting.dtype, result.setting.mode))
    remark = f"{device_name(device)}; copy at {benchmark.bandwidth / 1e9:.1f} GB/s"
    comparison = Comparison(results, args.baseline)
    console = show_results(benchmark, comparison, args.command, [remark])
    if args.out is not None:
        say(console, f"written to {args.out}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, parse_args(argv))
