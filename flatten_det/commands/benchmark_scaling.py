"""How training scales with processes: ``flatten-det benchmark --what scaling CONFIG --processes 1 2 4``."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process

from ..cli import RankParser, add_common_options, check_least, command_line, process_count, say
from ..config import blame_config, load_config
from ..distributed import disconnect, launcher, started_by_us
from ..errors import UserError
from ..lab.benchmark.machine import (
    add_out_option,
    busy_remark,
    describe_machine,
    device_name,
    find_device,
)
from ..lab.benchmark.report import CSV, JSON, MARKDOWN, show_tables, write_markdown
from ..lab.benchmark.scaling import World, cells, explain_table, measure
from ..lab.output import write_csv, write_json
from ..train.optimizer import enable_amp
from ..train.processes import run_processes
from . import run_command
from .benchmark import add_what_option


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = RankParser(
        description="Images per second of a training with several processes, efficiency against one, and the "
        "part of a step that the exchange of gradients takes: on GPUs by NCCL, else by gloo. Started by "
        "torchrun, srun or mpirun, it measures with the processes that there are."
    )
    add_what_option(parser)
    parser.add_argument("config", help="config file, whose training data are used")
    parser.add_argument(
        "--processes",
        type=process_count,
        nargs="+",
        default=[1, 2],
        metavar="N",
        help="numbers of processes to start on this machine; all: one for each GPU (default: 1 2)",
    )
    parser.add_argument(
        "--batch", type=int, help="images at once of each process (default: the config's)"
    )
    parser.add_argument("--steps", type=int, default=20, help="that are timed (default: 20)")
    parser.add_argument("--warmup", type=int, default=3, help="before those (default: 3)")
    parser.add_argument("--amp", action="store_true", help="mixed precision, as of train --amp")
    parser.add_argument(
        "--threads",
        type=int,
        help="of each process on a CPU (default: cores / the largest number of processes)",
    )
    add_out_option(parser, f"{JSON}, {CSV}, {MARKDOWN}")
    add_common_options(parser)
    args = parser.parse_args(argv)
    check_least(parser, args, {"batch": 1, "steps": 1, "warmup": 0, "threads": 1})
    args.argv = sys.argv[1:] if argv is None else argv
    args.command = command_line("benchmark", argv)
    return args


def run(args: argparse.Namespace) -> int | None:
    """Measure with each number of processes, show and save."""
    cfg = load_config(args.config, args.cfg_options)
    for key in ("train_dataloader", "optim_wrapper"):
        if not cfg.get(key):
            raise UserError(f"{args.config} has no {key}: give a config that can be trained")
    if launcher() != "none":
        return measure_here(args, cfg)
    counts = sorted(set(args.processes))
    gpus = torch.cuda.device_count()
    if 0 < gpus < counts[-1]:
        raise UserError(f"--processes {counts[-1]}: this machine has {gpus} GPUs: give fewer")
    threads = args.threads or max(1, (os.cpu_count() or 1) // counts[-1])
    busy, worlds = busy_remark(), []
    with TemporaryDirectory(prefix="flatten_det_") as folder:
        for count in counts:
            print(f"{count} of {', '.join(map(str, counts))} processes ...", file=sys.stderr)
            own = ["--threads", str(threads), "--out", f"{folder}/{count}"]
            if code := run_processes("benchmark", [*args.argv, *own], count):
                return code
            worlds.append(World(**json.loads(Path(folder, str(count), JSON).read_text())))
    show(args, worlds, busy)
    return None


def measure_here(args: argparse.Namespace, cfg: Config) -> None:
    """Measure in this process and those beside it; the first one tells."""
    busy = busy_remark()
    if args.threads:
        torch.set_num_threads(args.threads)
    # A training in one process is not wrapped for several.
    cfg.launcher = "none" if os.environ.get("WORLD_SIZE") == "1" else launcher()
    with blame_config(cfg):
        if args.batch:
            cfg.train_dataloader.batch_size = args.batch
        if args.amp:
            enable_amp(cfg)
        world = measure(cfg, args.steps, args.warmup)
    is_first = is_main_process()
    disconnect()
    if is_first and started_by_us():
        write_json(asdict(world), args.out / JSON)
    elif is_first:
        show(args, [world], busy)


def show(args: argparse.Namespace, worlds: Sequence[World], busy: str | None) -> None:
    """Print the table, and write it."""
    device = find_device(None, worlds[0].threads)
    one = next((world for world in worlds if world.processes == 1), None)
    figures = [world.figures(one) for world in worlds]
    rows = [cells(each) for each in figures]
    size = f"{worlds[0].gradient_bytes / 1e6:.4g} MB of gradients"
    title = f"Training of {Path(args.config).stem}{' with --amp' * args.amp}, {size}"
    table = (title, dict.fromkeys(rows[0], "right"), [list(row.values()) for row in rows])
    explanation = explain_table(worlds)
    name = device_name(device)
    console = show_tables(args.command, [name, *filter(None, [busy])], [table])
    console.print(explanation, highlight=False)
    if args.out is not None:
        content = {"command": args.command, "machine": describe_machine(device)}
        content |= {"figures": figures, "worlds": [asdict(world) for world in worlds]}
        write_json(content, args.out / JSON)
        write_csv(figures, args.out / CSV)
        write_markdown(args.command, [name], [table], explanation, args.out)
        say(console, f"written to {args.out}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, parse_args(argv))
