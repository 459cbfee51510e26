"""Worker processes, as the process sees them that gives them their runs."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from types import TracebackType

from .grid import Run
from .run import TO_CONTINUE
from .worker import SIGNALS, Failure, Progress, Report, work

# Not forked: neither PyTorch's threads nor CUDA survive that.
CONTEXT = multiprocessing.get_context("spawn")
_WAIT_S = 0.2
_GOODBYE_S = 10


class Worker:
    """A process with at most one run in hand.

    Attributes:
        run: in hand; None if there is none.
        connection: to the process.

    Args:
        threads: of PyTorch.
    """

    def __init__(self, threads: int) -> None:
        self.run: Run | None = None
        self._trains = False
        self.connection, other_end = CONTEXT.Pipe()
        # No daemon: those may not have data workers.
        self._process = CONTEXT.Process(target=work, args=(other_end, threads))
        with _signals_held_back():
            self._process.start()
        other_end.close()

    def give(self, run: Run | None) -> None:
        """Have a run trained, when none is in hand; None: have the process end."""
        self.run = run
        # `receive` finds out that the process is dead.
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(run)

    def receive(self) -> Report | None:
        """The next report; None if there is none yet. All but :class:`Progress` end the run in hand."""
        # Asked first: whatever a dead process has sent is there by now.
        alive = self._process.is_alive()
        if self.connection.poll():
            try:
                report = self.connection.recv()
            except (EOFError, OSError):
                self._process.join(_GOODBYE_S)
                report = self._death()
        elif alive:
            return None
        else:
            report = self._death()
        self._trains = isinstance(report, Progress)
        if not self._trains:
            self.run = None
        return report

    def stop(self, number: int) -> None:
        """Have a training save its checkpoint and end, as if this signal had come to it.

        A process that does not train yet is killed: it has nothing to save, and may be importing.
        """
        if not self._trains:
            self.kill()
        elif self._process.is_alive():
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join()
        self.run = None

    def wait(self) -> None:
        """Wait for the end of the process."""
        self._process.join(_GOODBYE_S)
        self.kill()
        self.connection.close()

    def _death(self) -> Failure:
        code = self._process.exitcode
        how = f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += ", most likely as memory ran out (use fewer --jobs or smaller batches)"
        return Failure(f"{self.run.name}: its process {how}{TO_CONTINUE}")


class Team:
    """Workers for a ``with`` block; none of them is left after it.

    Args:
        size: number of workers.
        threads: of PyTorch, for each.
    """

    def __init__(self, size: int, threads: int) -> None:
        self._size, self._threads = size, threads
        self._workers: list[Worker] = []

    def __enter__(self) -> "Team":
        try:
            for _ in range(self._size):
                self._workers.append(Worker(self._threads))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def busy(self) -> bool:
        """Whether a worker has a run in hand."""
        return any(worker.run for worker in self._workers)

    @property
    def idle(self) -> list[Worker]:
        """Those without a run."""
        return [worker for worker in self._workers if not worker.run]

    def reports(self) -> Iterator[tuple[Run, Report]]:
        """New reports with their runs, if any comes within a moment."""
        busy = [worker for worker in self._workers if worker.run]
        wait([worker.connection for worker in busy], _WAIT_S)
        for worker in busy:
            run = worker.run
            if report := worker.receive():
                yield run, report

    def stop(self, number: int) -> None:
        """Have all trainings save their checkpoints; see :meth:`Worker.stop`."""
        for worker in self._workers:
            worker.stop(number)

    def _end(self) -> None:
        for worker in self._workers:
            if worker.run:
                worker.kill()
            worker.give(None)
        for worker in self._workers:
            worker.wait()


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """A process that is started meanwhile has them blocked from its first moment on."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # Else it is started with the first process, which unblocks the signals.
    resource_tracker.ensure_running()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
