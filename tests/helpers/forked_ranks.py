"""Ranks, and commands of ``flatten-det``, in processes that need not import the frameworks anew.

``--processes`` starts its ranks with an import of ten seconds each. Here one process imports all and forks:
itself for each command, and that for each rank.
"""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

HELPERS = Path(__file__).parent


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def in_ranks(folder: Path, count: int, work: Callable[[int], Any]) -> list[Any]:
    """What ``work`` gives, or raises, in each of several connected processes; None for one that died.

    They are forks of this one, and meet in the folder.
    """
    context, ranks = multiprocessing.get_context("fork"), []
    store = folder / f"store-{len(os.listdir(folder))}"

    def rank_of(rank: int, pipe: Any) -> None:
        os.environ["RANK"] = str(rank)  # Where warnings look.
        try:
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=count
            )
            pipe.send_bytes(pickle.dumps(work(rank)))
            torch.distributed.destroy_process_group()
        except Exception as error:
            pipe.send_bytes(pickle.dumps(error))
        os._exit(0)

    for rank in range(count):
        receiver, sender = context.Pipe(duplex=False)
        ranks.append((context.Process(target=rank_of, args=(rank, sender)), receiver))
        ranks[-1][0].start()
        sender.close()
    results = []
    for _, pipe in ranks:
        try:
            results.append(pickle.loads(pipe.recv_bytes()))
        except EOFError:
            results.append(None)
    for process, _ in ranks:
        process.join()
    return results


class Command(NamedTuple):
    """A command that was started."""

    pid: int
    folder: Path

    @property
    def output(self) -> str:
        return (self.folder / "stdout.txt").read_text()

    @property
    def errors(self) -> str:
        return (self.folder / "stderr.txt").read_text()


class Forker:
    """The process that imported all, to be asked for commands; a context manager."""

    def __enter__(self) -> "Forker":
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HELPERS)},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _ask(self, **question: Any) -> int:
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def start(self, folder: Path, *argv: object, **environment: str) -> Command:
        """Start a command in a folder, where its output goes."""
        folder.mkdir(exist_ok=True)
        argv = [str(argument) for argument in argv]
        return Command(self._ask(folder=str(folder), argv=argv, environment=environment), folder)

    def wait(self, command: Command) -> int:
        """The exit code of a command."""
        return self._ask(pid=command.pid)

    def run(self, folder: Path, *argv: object, **environment: str) -> Command:
        """A command that ends well."""
        command = self.start(folder, *argv, **environment)
        code = self.wait(command)
        assert code == 0, command.output + command.errors
        return command


class _ForkedRank:
    """What stands in for the Popen of a rank."""

    def __init__(self, command_line: list[str], env: dict[str, str], start_new_session: bool):
        self.returncode: int | None = None
        argv = command_line[command_line.index("-c") + 2 :]
        self.pid = os.fork()
        if self.pid == 0:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler if number == 2 else signal.SIG_DFL)
            os.setsid()
            _become(argv, env)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _become(argv: list[str], environment: dict[str, str]) -> None:
    """Be a process that runs a command, and end with its exit code."""
    from flatten_det.commands import main

    os.environ.clear()
    os.environ.update(environment)
    code = 1
    try:
        code = main(argv)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _answer() -> None:
    import rank_hooks  # noqa: F401  registers what configs of tests name
    import toy_training  # noqa: F401

    import flatten_det.commands.test
    import flatten_det.commands.train  # noqa: F401
    from flatten_det.train import processes

    processes.Popen = _ForkedRank
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        question = json.loads(line)
        if "pid" in question:
            answer = os.waitstatus_to_exitcode(os.waitpid(question["pid"], 0)[1])
        elif not (answer := os.fork()):
            answers.close()
            os.chdir(question["folder"])
            for descriptor, name in ((0, os.devnull), (1, "stdout.txt"), (2, "stderr.txt")):
                os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), descriptor)
            os.setsid()
            _become(question["argv"], dict(os.environ) | question["environment"])
        print(answer, file=answers, flush=True)
    os._exit(0)  # What is imported takes seconds to go.


if __name__ == "__main__":
    _answer()
