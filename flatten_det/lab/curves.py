"""Training curves of several runs in one figure, from the logs that a training writes as JSON lines."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..errors import UserError, listed
from ..files.user_files import read_text
from .output import line_style

_LOGS = "*/vis_data/scalars.json"
_MARKERS = 10  # on a line, about
# No curves of a training.
_NOT_DRAWN = {"iter", "step", "epoch", "time", "data_time", "memory", "base_lr"}

Curves = dict[str, tuple[list[int], list[float]]]


def read_curves(run: Path) -> Curves:
    """Iterations and values by key of a run; of one that was resumed, the later log counts.

    Args:
        run: a work dir, a folder of one start in it, or a ``scalars.json``.

    Raises:
        UserError: There is no log, or it holds no JSON lines.
    """
    logs = (
        [run]
        if run.is_file()
        else sorted(run.glob(_LOGS)) or sorted(run.glob("vis_data/scalars.json"))
    )
    if not logs:
        raise UserError(f"{run}: no {_LOGS} in it: give the work dir of a training")
    points: dict[str, dict[int, float]] = {}
    for log in logs:
        iteration, begin = 0, None
        for number, line in enumerate(read_text(log).splitlines(), start=1):
            try:
                entry = json.loads(line)
                # Validations are numbered by epochs, or not at all.
                iteration = entry.get("iter", iteration)
            except (ValueError, AttributeError) as error:
                raise UserError(f"{log}, line {number}: no JSON object: {error}") from error
            if begin is None:
                begin = iteration
                for of_key in points.values():
                    for later in [i for i in of_key if i >= begin]:
                        del of_key[later]
            for key, value in entry.items():
                if (
                    isinstance(value, int | float)
                    and key not in _NOT_DRAWN
                    and math.isfinite(value)
                ):
                    points.setdefault(key, {})[iteration] = value
    return {key: (list(of_key), list(of_key.values())) for key, of_key in points.items() if of_key}


def choose_keys(runs: dict[str, Curves], wanted: Sequence[str] = ()) -> list[str]:
    """What to draw: what is asked for, else the loss and the first metrics of the validations.

    Raises:
        UserError: No run has one of the keys, or any value.
    """
    there = list(dict.fromkeys(key for curves in runs.values() for key in curves))
    if not there:
        raise UserError(f"the logs of {listed(runs)} hold no values yet: there is nothing to draw")
    for key in wanted:
        if key not in there:
            raise UserError(f"no run has {key}; there are {listed(there, 30)}")
    if wanted:
        return list(wanted)
    measured = [k for k in there if k.endswith(("mAP", "PQ", "mIoU"))]
    return [key for key in ("loss", *measured) if key in there] or there[:1]


def draw_curves(runs: dict[str, Curves], keys: Sequence[str]) -> Figure:
    """A panel for each key, with a line for each run that has it."""
    columns = min(len(keys), 3)
    rows = -(-len(keys) // columns)
    figure = Figure((4.2 * columns, 3.0 * rows), layout="constrained")
    for index, key in enumerate(keys):
        axes = figure.add_subplot(rows, columns, index + 1)
        for number, (name, curves) in enumerate(runs.items()):
            if key not in curves:
                continue
            iterations, values = curves[key]
            every = max(1, len(values) // _MARKERS)
            axes.plot(iterations, values, label=name, markevery=every, **line_style(number))
        axes.set_title(key, fontsize=9)
        axes.set_xlabel("iteration", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3, linewidth=0.5)
    # Not every run is in every panel.
    handles = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    names = [name for name in runs if name in handles]
    lines = [handles[name] for name in names]
    figure.legend(lines, names, loc="outside lower center", ncols=3, fontsize=8)
    return figure
