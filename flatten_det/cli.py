"""Command-line habits that all tools share: options, streams, clear errors, exit codes."""

import argparse
import contextlib
import errno
import io
import logging
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import matplotlib
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from .config import IN_CHECKOUT, CfgOptions
from .distributed import (
    BACKENDS,
    LAUNCHERS,
    is_first_to_say,
    launcher,
    leave_for_launcher,
    of_rank,
)
from .errors import UserError, explain, in_one_line, lost_a_peer, printable

# A pipe without a reader, as after ``| head``, and a terminal that was closed.
_NOBODY_READS = (errno.EPIPE, errno.EIO)
# Why standard output was not written, if it was not for want of a reader.
_lost: list[OSError] = []


class _Stream(io.FileIO):
    """A descriptor that becomes the null device when it cannot be written to any more."""

    def write(self, content) -> int | None:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in _NOBODY_READS and self.fileno() == 1:
                _lost.append(error)
            # What C code prints, and what is flushed when Python ends, goes there as well.
            _to_devnull(self.fileno())
            return len(content)


def _to_devnull(descriptor: int) -> None:
    devnull = os.open(os.devnull, os.O_RDWR)
    if devnull != descriptor:
        os.dup2(devnull, descriptor)
        os.close(devnull)


def outlive_readers() -> None:
    """Let standard output and error be dropped when nobody reads them, instead of ending the work.

    Where they are closed from the start, the next file that is opened would get what is printed. A
    standard output that cannot be written for another reason is told by :func:`check_output`.
    """
    if os.name != "posix":
        return
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream, original = getattr(sys, name), getattr(sys, f"__{name}__")
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
            try:
                os.fstat(descriptor)
            except OSError:
                _to_devnull(descriptor)
        elif stream is original:  # Else someone captures it.
            with contextlib.suppress(OSError):
                stream.flush()
            raw = _Stream(descriptor, "wb", closefd=False)
            replaced = io.TextIOWrapper(
                raw if stream.write_through else io.BufferedWriter(raw),
                stream.encoding,
                stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, replaced)
            setattr(sys, f"__{name}__", replaced)


def check_output() -> None:
    """A UserError unless standard output has been written, or nobody reads it, as on a full disk."""
    sys.stdout.flush()
    if _lost:
        raise UserError(
            f"standard output cannot be written: {_lost.pop().strerror}: what was printed is not "
            "complete; make room, or send it elsewhere"
        )


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options`` and ``--debug``."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=CfgOptions,
        metavar="KEY=VALUE",
        help="override config fields, e.g. train_cfg.max_epochs=3 model.neck.type=FPN "
        'img_scale="(512,512)"',
    )
    add_debug_option(parser)


def add_debug_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--debug``, which every tool has."""
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of expected errors too"
    )


def check_least(
    parser: argparse.ArgumentParser, args: argparse.Namespace, least: Mapping[str, float]
) -> None:
    """A usage error for an option below its least value; None, of one that was not given, is none."""
    for name, bound in least.items():
        value = getattr(args, name)
        if value is not None and value < bound:
            option = name.replace("_", "-")
            parser.error(f"argument --{option}: must be at least {bound}, got {value}")


def cfg_option_texts(argv: Sequence[str] | None = None) -> list[str]:
    """The ``KEY=VALUE`` pairs of a command line as they were written."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--cfg-options", nargs="+", action="extend", default=[])
    return parser.parse_known_args(argv)[0].cfg_options


# By which a checkpoint is told from the images after it.
CHECKPOINT_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")


def split_off_checkpoint(
    parser: argparse.ArgumentParser, args: argparse.Namespace, purpose: str
) -> None:
    """Take ``args.checkpoint``, a path or None, from ``args.inputs``; a usage error if no images are left.

    ``purpose`` says in it what the images are for.
    """
    args.checkpoint = args.inputs.pop(0) if args.inputs[0].endswith(CHECKPOINT_SUFFIXES) else None
    if not args.inputs:
        parser.error(f"give the images to {purpose}, after {args.checkpoint}")


def add_verbose_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--verbose``, without which the console is short."""
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="print all that goes to the log file, as MMEngine does",
    )


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint``, for :func:`~flatten_det.files.checkpoints.trusted_checkpoints`."""
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="unpickle local checkpoints that hold more than data, which runs any code in them: only for "
        "old files that you made yourself",
    )


def add_cuda_graphs_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--cuda-graphs``, for :func:`~flatten_det.predict.engine.replay_cuda_graphs`."""
    parser.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="on a GPU, replay the backbone from a CUDA graph where an image size comes again: takes the "
        "host's time off batches of a fixed size, for memory of each size (up to 8)",
    )


class RankParser(argparse.ArgumentParser):
    """A parser for commands of distributed runs, whose usage errors one of the processes prints."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2, after usage and message unless another process has said so."""
        leave_for_launcher(f"{self.prog}: error: {message}")
        if is_first_to_say(message):
            super().error(message)
        self.exit(USER_ERROR_EXIT)


def process_count(text: str) -> int:
    """A number of processes, for an option; ``all`` is one for each GPU."""
    count = torch.cuda.device_count() if text == "all" else int(text)
    if text == "all" and not count:
        raise argparse.ArgumentTypeError("all is one process for each GPU, but there is none")
    if count < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count


def _restart_count(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return int(text)


def add_launcher_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of distributed runs; ``--launcher`` as in mmdet and mmseg."""
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--processes",
        type=process_count,
        metavar="N",
        help="start so many processes on this machine, which share the work; all: one for each GPU",
    )
    group.add_argument(
        "--max-restarts",
        type=_restart_count,
        default=0,
        metavar="N",
        help="with --processes: start them again up to so many times after one has failed; a training goes "
        "on from the last checkpoint that it wrote (default: 0)",
    )
    group.add_argument(
        "--dist-backend",
        choices=BACKENDS,
        help="what the processes talk by (default: nccl on GPUs, gloo without)",
    )
    group.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        default="auto",
        help="what started the processes of a distributed run: torchrun (pytorch), srun (slurm), mpirun "
        "(mpi); default: what the environment says",
    )
    # torch.distributed.launch passes it on.
    group.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)


def set_launcher(cfg: Config, args: argparse.Namespace) -> None:
    """Tell a config what started this process beside others."""
    if args.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", args.local_rank)
    cfg.launcher = launcher() if args.launcher == "auto" else args.launcher
    if args.dist_backend == "nccl" and not torch.cuda.is_available():
        raise UserError(
            "--dist-backend nccl needs GPUs, and there is none: leave it out, or take gloo"
        )
    if args.dist_backend:
        cfg.merge_from_dict({"env_cfg.dist_cfg.backend": args.dist_backend})


def command_line(command: str, argv: Sequence[str] | None = None) -> str:
    """How to run a command of ``flatten-det``, with its arguments, by default this process's."""
    start = "uv run flatten-det" if IN_CHECKOUT else "flatten-det"
    return f"{start} {command} {shlex.join(sys.argv[1:] if argv is None else argv)}".strip()


_LEAST_WIDTH = 130  # of tables, in characters, where no terminal says how wide it is


def make_console() -> Console:
    """A console for tables that are not folded where the output is a file."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _LEAST_WIDTH)
    return console


def say(console: Console, *lines: str) -> None:
    """Print lines as they are."""
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def as_shown(path: str | Path) -> str:
    """A path for messages: relative to the current folder if it lies there."""
    path, here = Path(path), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def progress_bar() -> Progress:
    """A bar on standard error with counts and times, gone when the work is done."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def use_matplotlib_without_display() -> None:
    """Draw into files only, so that neither a display nor a window system is needed."""
    matplotlib.use("Agg")


USER_ERROR_EXIT = 2  # as argparse does
INTERRUPT_EXIT = 130  # 128 + SIGINT
# Launchers blame the process that they first see failed: not the one that lost it.
_BEHIND_PEER_S = 1.0


def run_tool(work: Callable[[], Any], debug: bool = False) -> int:
    """Do a tool's work and turn what goes wrong into a message and an exit code.

    It is 0 on success, 2 for a mistake of the user (one line on stderr, with ``debug`` the traceback before
    it), 130 after Ctrl-C; an interruption may name another one (``exit_code``), as SIGTERM's does: 0.
    Unexpected exceptions are passed on.
    """
    # A log on a full disk is no reason for a traceback with each line of it.
    logging.raiseExceptions = False
    try:
        work()
        check_output()
    except KeyboardInterrupt as interrupt:
        message = str(interrupt) or "interrupted"
        if is_first_to_say(message):
            print(message, file=sys.stderr)
        return getattr(interrupt, "exit_code", INTERRUPT_EXIT)
    except Exception as error:
        message = explain(error)
        if message is None:
            leave_for_launcher(f"error{of_rank()}: {in_one_line(error)}")
            raise
        if debug:
            traceback.print_exc()
        _remove_empty_logs()
        # It may quote a stranger's file: nothing that a terminal would obey.
        lines = map(printable, message.split("\n"))
        text = f"error{of_rank()}: " + "\n".join(lines)
        is_told = leave_for_launcher(text)
        if not is_told and is_first_to_say(message):
            print(text, file=sys.stderr)
        if lost_a_peer(error):
            time.sleep(_BEHIND_PEER_S)
        return USER_ERROR_EXIT
    return 0


def _remove_empty_logs() -> None:
    """Logs that nothing was written to, on a full disk."""
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                path = Path(handler.baseFilename)
                if path.is_file() and not path.stat().st_size:
                    path.unlink()
