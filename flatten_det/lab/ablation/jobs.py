"""Train all runs of a grid, one after the other, or several at a time in processes of their own."""

import signal
from collections import deque
from collections.abc import Callable, Sequence

import torch

from ...errors import UserError
from ...train.stop import SIGNAL_NAMES, TrainingInterrupted, TrainingPreempted
from .grid import Run
from .run import TO_CONTINUE, Advance, Finished, finish, read_finished
from .stop_signals import StopSignals
from .team import Team
from .worker import Failure, Progress, Report

Each = Callable[[list[Finished]], object]


class WorkerTraceback(Exception):
    """The cause of an exception from another process, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def finish_all(
    runs: Sequence[Run],
    advance: Advance = lambda run, done, total: None,
    each: Each = lambda outcomes: None,
    jobs: int = 1,
) -> list[Finished]:
    """The outcomes of all runs, in their order.

    Args:
        runs: of the grid.
        advance: see :func:`~.run.finish`.
        each: called with the outcomes so far, in the order of ``runs``, after every run.
        jobs: runs trained at a time. With 1, in this process; else each in a process of its own, with
            an equal share of PyTorch's threads.

    Raises:
        UserError: See :func:`~.run.finish`; or the process of a run died. Folders of other configs are
            found before the first training. The other trainings are stopped with checkpoints.
        TrainingInterrupted: by Ctrl-C, SIGTERM or SIGHUP; its message says how to go on.
    """
    for run in runs:
        read_finished(run)
    jobs = min(jobs, len(runs))
    if jobs > 1:
        return _finish_side_by_side(runs, advance, each, jobs)
    outcomes = []
    for run in runs:
        outcomes.append(finish(run, advance))
        each(outcomes)
    return outcomes


def _finish_side_by_side(
    runs: Sequence[Run], advance: Advance, each: Each, jobs: int
) -> list[Finished]:
    outcomes = {run.name: finish(run, advance) for run in runs if read_finished(run)}

    def in_order() -> list[Finished]:
        return [outcomes[run.name] for run in runs if run.name in outcomes]

    if outcomes:
        each(in_order())
    waiting = deque(run for run in runs if run.name not in outcomes)
    threads = max(1, torch.get_num_threads() // jobs)
    last: list[Report] = []
    with StopSignals() as signals, Team(min(jobs, len(waiting)), threads) as team:
        try:
            while (waiting or team.busy) and not signals.number:
                for worker, run in zip(team.idle, list(waiting), strict=False):
                    worker.give(run)
                    waiting.popleft()
                for run, report in team.reports():
                    if isinstance(report, Progress):
                        advance(run, report.done, report.total)
                    elif isinstance(report, Finished):
                        outcomes[run.name] = report
                        each(in_order())
                    elif isinstance(report, TrainingInterrupted):
                        # The signal came to that process alone.
                        last.append(report)
                        preempted = isinstance(report, TrainingPreempted)
                        signals.stop(signal.SIGTERM if preempted else signal.SIGINT)
                    else:
                        raise _error(run, report) from _cause(report)
        except BaseException:
            signals.stop()
            _stop(team, signals)
            raise
        if len(outcomes) < len(runs):
            raise _interruption(signals, last + _stop(team, signals))
    return in_order()


def _stop(team: Team, signals: StopSignals) -> list[Report]:
    """Stop all trainings; returns what they said at last."""
    team.stop(signals.number)
    last: list[Report] = []
    while team.busy and not signals.at_once:
        last += [report for _, report in team.reports() if not isinstance(report, Progress)]
    return last


def _interruption(signals: StopSignals, last: Sequence[Report]) -> TrainingInterrupted:
    if signals.at_once:
        return TrainingInterrupted(f"interrupted at once, without new checkpoints{TO_CONTINUE}")
    lines = [str(report) for report in last if isinstance(report, TrainingInterrupted)]
    lines += [report.summary for report in last if isinstance(report, Failure)]
    lines = [line.removesuffix(TO_CONTINUE) for line in lines]
    kind = TrainingPreempted if signals.number == signal.SIGTERM else TrainingInterrupted
    return kind("\n".join(lines or [SIGNAL_NAMES[signals.number]]) + TO_CONTINUE)


def _error(run: Run, failure: Failure) -> Exception:
    if failure.message is not None:
        return UserError(failure.message)
    return RuntimeError(f"{run.name}: {failure.summary}")


def _cause(failure: Failure) -> WorkerTraceback | None:
    return WorkerTraceback(failure.traceback) if failure.traceback else None
