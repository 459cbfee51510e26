"""Several processes of one command on this machine: started, stopped and, after a failure, started again."""

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from subprocess import Popen
from typing import Any

import torch

from ..cli import INTERRUPT_EXIT
from ..distributed import OWN_RUN_ID, disconnect, launcher, started_by_us
from ..errors import PEER_LOST, UserError
from .stop import REPEAT_WITH_RESUME, end_undisturbed, take_over_signals

_POLL_S = 0.1
# How long the others may go on after one has failed, to end of it themselves and to say why.
_GRACE_S = 3.0
# And after a signal, when they may be about to save, or be told of one that went with it.
_GRACE_TO_SAVE_S = 60.0
_START = "import sys; from flatten_det.commands import main; sys.exit(main())"


def in_processes(
    command: str,
    work: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
) -> Callable[[argparse.Namespace], int | None]:
    """What a command has to do: its work, or, with ``--processes``, start the processes that do it.

    Args:
        command: its name.
        work: gets the arguments, and may return an exit code; those of
            :func:`~flatten_det.cli.add_launcher_options` are among them.
        argv: the command line; None: this process's.
    """

    def start(args: argparse.Namespace) -> int | None:
        if args.max_restarts and args.processes is None:
            raise UserError(
                "--max-restarts starts the processes of --processes again: add that, or give it to torchrun"
            )
        if started_by_us() or (args.processes in (None, 1) and not args.max_restarts):
            try:
                code = work(args)
            finally:
                if argv is None:
                    end_undisturbed()
            disconnect()
            return code
        if (other := launcher()) != "none":
            raise UserError(
                f"--processes starts processes, but these were started already ({other}): leave it out"
            )
        arguments = sys.argv[1:] if argv is None else argv
        return run_processes(command, arguments, args.processes, args.max_restarts)

    return start


def run_processes(command: str, argv: Sequence[str], count: int, max_restarts: int = 0) -> int:
    """Run a command of ``flatten-det`` in several processes, and say last why one of them failed.

    They find each other as those of torchrun, without its agent, which ends all with SIGKILL 30 seconds after
    SIGTERM, and itself as failed. Signals that stop a training are passed on to all of them. After one has
    failed, all are started again, up to ``max_restarts`` times.

    Returns:
        0 if all have ended with it; else what the first that failed has ended with.
    """
    address = "127.0.0.1"
    # Outlives the processes, so that they can ask each other who says what; on a port that is free.
    store = torch.distributed.TCPStore(
        address, 0, is_master=True, timeout=timedelta(minutes=5), wait_for_workers=False
    )
    environment = {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": OWN_RUN_ID + uuid.uuid4().hex,
    }
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
    command_line = [sys.executable, "-c", _START, command, *argv]
    with tempfile.TemporaryDirectory(prefix="flatten_det_") as folder:
        for start in range(max_restarts + 1):
            environment["TORCHELASTIC_RESTART_COUNT"] = str(start)
            group = _Group(command_line, threads | dict(os.environ) | environment, count, folder)
            failure = group.wait()
            if failure is None or group.stopped_by or start == max_restarts:
                break
            print(
                f"{failure[1]}; starting again ({start + 1} of {max_restarts})",
                file=sys.stderr,
            )
    if failure is None:
        return 0
    code, message = failure
    if not (group.stopped_by and code == INTERRUPT_EXIT):
        print(message, file=sys.stderr)
    return code


class _Group:
    """Processes of one command that need each other.

    Attributes:
        stopped_by: the signal that was passed on to them; 0 if none was.
    """

    def __init__(
        self, command_line: list[str], environment: dict[str, str], count: int, folder: str
    ) -> None:
        self.stopped_by = 0
        self._handlers: dict[int, Any] = take_over_signals(self._pass_on)
        self._files = [Path(folder, f"{rank}.json") for rank in range(count)]
        self._processes: list[Popen] = []
        for rank, file in enumerate(self._files):
            file.unlink(missing_ok=True)
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_ERROR_FILE": str(file)}
            # Out of reach of the terminal, whose Ctrl-C comes through this process alone.
            self._processes.append(
                Popen(command_line, env=environment | own, start_new_session=True)
            )

    def _pass_on(self, number: int, frame: Any) -> None:
        self.stopped_by = number
        for process in self._processes:
            process.send_signal(number)

    def wait(self) -> tuple[int, str] | None:
        """Wait until all have ended; exit code and message of the one that failed first, if one did."""
        failed: list[int] = []
        deadline = float("inf")
        try:
            while time.monotonic() < deadline:
                codes = [process.poll() for process in self._processes]
                failed += [rank for rank, code in enumerate(codes) if code and rank not in failed]
                if None not in codes:
                    break
                if failed:
                    grace = _GRACE_TO_SAVE_S if self.stopped_by else _GRACE_S
                    deadline = min(deadline, time.monotonic() + grace)
                time.sleep(_POLL_S)
        finally:
            for process in self._processes:
                if process.poll() is None:
                    # Its data workers, too.
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            while self._handlers:
                signal.signal(*self._handlers.popitem())
        failures = [self._failure(rank) for rank in failed]
        # Those that lost another one may be seen first.
        return min(failures, key=lambda failure: PEER_LOST in failure[1], default=None)

    def _failure(self, rank: int) -> tuple[int, str]:
        code, count = self._processes[rank].returncode, len(self._processes)
        with contextlib.suppress(OSError, ValueError):
            return code, json.loads(self._files[rank].read_text())["message"]["message"]
        if code < 0:
            why = f"killed by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                why += ", perhaps as memory ran out"
            return (
                128 - code,
                f"error (rank {rank} of {count}): {why}; to go on, {REPEAT_WITH_RESUME}",
            )
        return code, f"error (rank {rank} of {count}): it ended with exit code {code}"
