"""Command-line habits that all tools share: options, clear errors, exit codes."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from mmengine.logging import MMLogger

from ..data_doctor.findings import printable
from .atomic_files import atomic_local_files
from .cfg_options import CfgOptions
from .errors import explain
from .standard_streams import check_output

USER_ERROR_EXIT = 2  # as argparse does
INTERRUPT_EXIT = 130  # 128 + SIGINT


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options`` and ``--debug``, which every tool has."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=CfgOptions,
        metavar="KEY=VALUE",
        help="override config fields, e.g. train_cfg.max_epochs=3 model.neck.type=FPN "
        'img_scale="(512,512)"',
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of expected errors too"
    )


def cfg_option_texts(argv: Sequence[str] | None = None) -> list[str]:
    """The ``KEY=VALUE`` pairs of a command line as they were written."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--cfg-options", nargs="+", action="extend", default=[])
    return parser.parse_known_args(argv)[0].cfg_options


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint``, for :func:`~flatten_det.checkpoints.trusted_checkpoints`."""
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="unpickle local checkpoints that hold more than data, which runs any code in them: only for "
        "old files that you made yourself",
    )


def add_cuda_graphs_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--cuda-graphs``, for :func:`~.building.replay_cuda_graphs`."""
    parser.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="on a GPU, replay the backbone from a CUDA graph where an image size comes again: takes the "
        "host's time off batches of a fixed size, for memory of each size (up to 8)",
    )


def add_launcher_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of distributed runs, as in mmdet and mmseg."""
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="job launcher of a distributed run",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def set_local_rank(args: argparse.Namespace) -> None:
    """Give the rank that ``torch.distributed.launch`` passes as an option to mmengine."""
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))


def use_matplotlib_without_display() -> None:
    """Draw into files only, so that neither a display nor a window system is needed."""
    matplotlib.use("Agg")


def run_tool(work: Callable[[], Any], debug: bool = False) -> int:
    """Do a tool's work and turn what goes wrong into a message and an exit code.

    Files that mmengine writes are whole or not there, as ours.

    Args:
        work: The work, without arguments.
        debug: Print the traceback of expected errors as well.

    Returns:
        0 on success, 2 for a mistake of the user (one line on stderr), 130 after Ctrl-C;
        an interruption may name another one (``exit_code``), as SIGTERM's does: 0.
        Unexpected exceptions are passed on.
    """
    # A log on a full disk is no reason for a traceback with each line of it.
    logging.raiseExceptions = False
    try:
        with atomic_local_files():
            work()
        check_output()
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        return getattr(interrupt, "exit_code", INTERRUPT_EXIT)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        if debug:
            traceback.print_exc()
        _remove_empty_logs()
        # It may quote a stranger's file: nothing that a terminal would obey.
        lines = map(printable, message.split("\n"))
        print("error: " + "\n".join(lines), file=sys.stderr)
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
