"""Compare backbones, detectors and segmentors over image sizes: ``flatten-det benchmark [--models ...]``.

With ``--what`` other things are measured, each by a module of its own.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module
from itertools import product

import torch

from ..cli import command_line, say
from ..errors import UserError
from ..lab.benchmark.growth import Growth
from ..lab.benchmark.machine import (
    add_measuring_options,
    add_out_option,
    add_precision_options,
    busy_remark,
    check_measuring_options,
    device_name,
    find_device,
)
from ..lab.benchmark.models import (
    MODES,
    Candidate,
    ModelBenchmark,
    describe,
    load_results,
    make_candidates,
)
from ..lab.benchmark.report import (
    CSV,
    FIGURE,
    JSON,
    MARKDOWN,
    save_results,
    show_results,
    tables,
    write_markdown,
)
from ..lab.benchmark.run import BenchmarkPlan, Result, Setting, benchmark_settings
from ..lab.benchmark.sources import find_size, find_source
from . import run_command

MODELS = ["flatten-pvt-t", "pvt-t", "flatten-swin-t", "mmdet:swin-t"]
SIZES = ["224", "512", "800x1280", "1024"]
_MODELS = "models"
WHAT = (_MODELS, "data", "scaling")


def add_what_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--what``, which chooses the parser of the other options."""
    parser.add_argument(
        "--what",
        choices=WHAT,
        default=_MODELS,
        help="models: speed and memory over image sizes (default); data: whether the data of a config keep "
        "up with its training; scaling: a config's training with several processes; each with --help tells "
        "of its options",
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Time in alternating rounds, peak memory and multiply-adds of models over the size of "
        "the image: tables, curves, the exponents of their growth, and from where on a FLatten model is "
        "the faster or leaner one. Weights and images are random; training is forward and backward, "
        "without the optimizer; drop path is off."
    )
    add_what_option(parser)
    parser.add_argument(
        "--models",
        nargs="+",
        default=MODELS,
        metavar="MODEL",
        help="backbones: flatten-pvt-t, pvt-t (its softmax twin), ..., mmdet:swin-t, mmdet:pvt-t, "
        "mmdet:resnet-50, ..., timm:convnext_tiny, ..., torchvision:swin_t, ...; a config file: the whole "
        "detector or segmentor, without post-processing, or 'CONFIG KEY=VALUE ...' with fields of it "
        f"overridden (default: {' '.join(MODELS)})",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=SIZES,
        metavar="SIZE",
        help="pixels: 512 for a square, 800x1280 for height x width; one or more, measured from small to "
        f"large (default: {' '.join(SIZES)})",
    )
    parser.add_argument(
        "--mode", nargs="+", choices=MODES, default=["inference"], help="one or both"
    )
    add_precision_options(parser)
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1], help="images at once; one or more (default: 1)"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="each model once more under torch.compile, for each size anew (dynamic=False); of whole "
        "models backbone and neck are compiled",
    )
    parser.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="each model once more, replayed from a CUDA graph (of whole models, the backbone); needs a GPU, "
        "inference alone, and two calls of warm-up, which all get",
    )
    parser.add_argument(
        "--no-fuse",
        action="store_true",
        help="do not call fuse_for_inference() on FLatten backbones at inference",
    )
    parser.add_argument("--baseline", help="of the speed-ups (default: the first of --models)")
    add_measuring_options(parser, "model", rounds=5, warmup=1)
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=120,
        help="leave out what would take longer a call, judged by the next smaller size (default: 120)",
    )
    parser.add_argument(
        "--max-memory",
        type=float,
        metavar="GIB",
        help="leave out what takes more: on a CPU a call beyond weights and images, on a GPU in all "
        "(default: what is free)",
    )
    parser.add_argument(
        "--fit-from",
        default="512",
        metavar="SIZE",
        help="fit exponents from this size on (default: 512)",
    )
    add_out_option(
        parser, f"{JSON}, {CSV}, {MARKDOWN}, {FIGURE}; what it has already is not measured again"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="measure all again, whatever --out has already"
    )
    args = parser.parse_args(argv)
    check_measuring_options(parser, args, max_seconds=0)
    if min(args.batch) < 1:
        parser.error(f"argument --batch: must be at least 1, got {min(args.batch)}")
    if args.max_memory is not None and args.max_memory <= 0:
        parser.error(f"argument --max-memory: must be positive, got {args.max_memory:g}")
    if args.compile and args.warmup < 1:
        parser.error("argument --compile: needs --warmup 1 at least, which compiles")
    if args.cuda_graphs:
        if args.mode != ["inference"]:
            parser.error("argument --cuda-graphs: needs --mode inference, without training")
        args.warmup = max(args.warmup, 2)
    args.command = command_line("benchmark", argv)
    return args


def choose_candidates(args: argparse.Namespace) -> list[Candidate]:
    """The candidates to compare.

    Raises:
        UserError: if there is no such model, two have one name, or the baseline is none of them.
    """
    for model in args.models:
        find_source(model)
    candidates = make_candidates(args.models, args.compile, not args.no_fuse, args.cuda_graphs)
    names = [str(candidate) for candidate in candidates]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"--models: more than one would be called {', '.join(sorted(twice))}")
    if args.baseline not in (None, *names):
        raise UserError(f"--baseline {args.baseline}: not among the models ({', '.join(names)})")
    return candidates


def choose_settings(args: argparse.Namespace, device: torch.device) -> list[Setting]:
    """The settings to measure in; of each kind small images come first.

    Raises:
        UserError: if a size is none.
    """
    sizes = sorted({find_size(text) for text in args.sizes}, key=lambda size: (size.pixels, size))
    return [
        Setting(size, mode, dtype, args.amp, batch, str(device))
        for mode, dtype, batch, size in product(args.mode, args.dtype, args.batch, sizes)
    ]


def run(args: argparse.Namespace) -> None:
    """Measure what is not there yet, show and save."""
    device = find_device(args.device, args.threads)
    if args.cuda_graphs and device.type != "cuda":
        raise UserError(f"--cuda-graphs: needs a GPU, and the device is {device}: leave it out")
    candidates = choose_candidates(args)
    settings = choose_settings(args, device)
    max_memory = None if args.max_memory is None else int(args.max_memory * 2**30)
    if max_memory is not None and args.no_memory and device.type == "cpu":
        raise UserError(
            "--max-memory: on a CPU it is what the measurement of memory may take; drop --no-memory"
        )
    benchmark, memory = ModelBenchmark(), not args.no_memory
    plan = BenchmarkPlan(
        benchmark, candidates, args.rounds, args.warmup, memory, args.max_seconds, max_memory
    )
    how = describe(plan, device)
    baseline, fit_from = args.baseline or str(candidates[0]), find_size(args.fit_from).pixels

    known = []
    if args.out is not None and not args.fresh:
        known = load_results(args.out / JSON, how)
    measured = {result.setting for result in known}
    missing = [setting for setting in settings if setting not in measured]
    busy = busy_remark() if missing else None
    remarks = [device_name(device), *[f"[bold]{busy}[/bold]"] * (busy is not None)]

    def save(results: Sequence[Result]) -> None:
        if args.out is not None:
            growth = Growth(results, baseline, fit_from)
            save_results(benchmark, growth, how, device, args.command, args.out)
            shown = tables(benchmark, growth)
            name = device_name(device)
            write_markdown(args.command, [name], shown, benchmark.explanation, args.out)

    results = benchmark_settings(missing, plan, known, save)
    console = show_results(benchmark, Growth(results, baseline, fit_from), args.command, remarks)
    save(results)
    if args.out is not None:
        there = len(settings) - len(missing)
        again = f"; {there} of {len(settings)} settings were there already" if there else ""
        say(console, f"written to {args.out}{again}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_what_option(parser)
    what = parser.parse_known_args(argv)[0].what
    if what != _MODELS:
        return import_module(f".benchmark_{what}", __package__).main(argv)
    return run_command(run, parse_args(argv))
