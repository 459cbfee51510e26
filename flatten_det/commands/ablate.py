"""Train variants of the attention, and with a sweep of hyper-parameters: ``flatten-det ablate``."""

import argparse
from pathlib import Path

from ..cli import (
    add_common_options,
    command_line,
    make_console,
    progress_bar,
    say,
    use_matplotlib_without_display,
)
from ..config import CONFIGS, CfgOptions
from ..errors import UserError
from ..lab.ablation.engines import ENGINES, make_engine
from ..lab.ablation.grid import DEFAULT_SEEDS, DEFAULT_VARIANTS, known_variants, make_grid
from ..lab.ablation.jobs import finish_all
from ..lab.ablation.report import chance_levels, save
from ..lab.ablation.run import Finished, Run
from . import run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Train the same model with variants of its attention, and other hyper-parameters, each "
        "with several seeds, on a task of long range or as a config says, and compare them. Repeat the "
        "command to go on where it was stopped."
    )
    parser.add_argument(
        "--config",
        type=Path,
        help="train this config, with the attention of its backbone exchanged for each variant's, instead of "
        "the task of long range",
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(known_variants(CONFIGS))}, or config files of your own; with --config softmax or "
        "any p<focusing factor>-k<kernel size of the convolution, 0: none> "
        f"(default: {' '.join(DEFAULT_VARIANTS)}; with --config and --sweep the config as it is)",
    )
    parser.add_argument(
        "--sweep",
        nargs="+",
        action=CfgOptions,
        metavar="KEY=V1,V2",
        help="train each variant with each combination of these values of config fields, e.g. "
        "optim_wrapper.optimizer.lr=1e-4,3e-4 optim_wrapper.optimizer.weight_decay=0.05,0.1",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=list(DEFAULT_SEEDS), help="default: 0 1 2"
    )
    parser.add_argument(
        "--baseline", help="variant that the others are compared with (default: the first)"
    )
    parser.add_argument(
        "--jobs",
        type=_jobs,
        metavar="N",
        help="runs trained at a time, with an equal share of the CPU cores each; they share the GPU, if "
        "there is one (default: 1; of ray and submitit all, as the cluster has room for them)",
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default=ENGINES[0],
        help="what trains the runs: processes of this machine, tasks of Ray (on the cluster of RAY_ADDRESS, "
        "or this machine), or jobs of Slurm by submitit; all machines must see the current folder and --out "
        "(default: local)",
    )
    parser.add_argument(
        "--engine-options",
        nargs="+",
        action=CfgOptions,
        default={},
        metavar="KEY=VALUE",
        help="of each run: for ray those of ray.remote, such as num_gpus=1 num_cpus=8, for submitit those of "
        "its AutoExecutor, such as slurm_partition=gpu gpus_per_node=1 cpus_per_task=8 timeout_min=600, and "
        "cluster=local to try it without Slurm",
    )
    parser.add_argument("--metric", default="mIoU", help="of the validation (default: mIoU)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of runs, ablation.json, ablation.md and ablation.png (default: work_dirs/ablation, with "
        "--config work_dirs/ablation-<name of the config>)",
    )
    add_common_options(parser)
    args = parser.parse_args(argv)
    if args.engine_options and args.engine == ENGINES[0]:
        parser.error(
            "argument --engine-options: give an --engine that has options, ray or submitit"
        )
    if args.variants is None:
        args.variants = [] if args.config and args.sweep else list(DEFAULT_VARIANTS)
    args.sweep = {
        key: values if isinstance(values, list) else [values]
        for key, values in (args.sweep or {}).items()
    }
    if args.out is None:
        args.out = Path("work_dirs", f"ablation-{args.config.stem}" if args.config else "ablation")
    args.command = command_line("ablate", argv)
    return args


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number of runs, at least 1")
    return int(text)


def run(args: argparse.Namespace) -> None:
    """Train what is left to train, and write the comparison after every run."""
    use_matplotlib_without_display()
    runs = make_grid(
        args.variants,
        args.seeds,
        CONFIGS / "ablation",
        args.out,
        args.cfg_options,
        args.config,
        args.sweep,
    )
    engine = make_engine(args.engine, args.engine_options, args.out)
    jobs = args.jobs or (len(runs) if engine else 1)
    names = list(dict.fromkeys(run.variant for run in runs))
    baseline = args.baseline or names[0]
    if baseline not in names:
        raise UserError(f"--baseline {baseline}: not among the variants ({', '.join(names)})")
    levels = chance_levels(runs[0].cfg, args.metric)
    numbers = {run.name: number for number, run in enumerate(runs, start=1)}
    iterations: dict[str, int] = {}
    totals: dict[str, int] = {}
    table = ""
    with progress_bar() as progress:
        task = progress.add_task("", total=None)

        def advance(run: Run, done: int, total: int) -> None:
            iterations[run.name], totals[run.name] = done, total
            description = f"{run.name} ({numbers[run.name]} of {len(runs)})"
            if jobs > 1:
                trained = sum(iterations[name] == totals[name] for name in totals)
                description = f"{trained} of {len(runs)} trained"
            # Runs that have not begun yet are taken to be as long as this one.
            rest = total * (len(runs) - len(totals))
            progress.update(
                task,
                total=sum(totals.values()) + rest,
                completed=sum(iterations.values()),
                description=description,
            )

        def report(outcomes: list[Finished]) -> None:
            nonlocal table
            table = save(outcomes, args.metric, baseline, args.out, args.command, levels)

        finish_all(runs, advance, report, jobs, engine)
    console = make_console()
    chance = (f"{name}: {value:.2f}" for name, value in levels.items())
    say(console, table, *chance, f"written to {args.out}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, parse_args(argv))
