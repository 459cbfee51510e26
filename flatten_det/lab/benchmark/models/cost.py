"""Multiply-adds and parameters of a model, which need no run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from ....errors import describe_failure
from ...complexity import count_backbone, count_model
from ...complexity.counter import SAMPLING
from .settings import Size
from .sources import find_source


@dataclass(frozen=True)
class Cost:
    """What can be counted.

    Attributes:
        macs: multiply-adds for one image, as :class:`~flatten_det.lab.complexity.Complexity` counts them;
            None where that is not possible.
        parameters: of the model; None like ``macs``.
        note: then the reason, in a line; or which operators are not in the multiply-adds.
    """

    macs: int | None
    parameters: int | None
    note: str | None = None


@cache
def count_cost(model: str, size: Size) -> Cost:
    """Count a model; see :func:`~.sources.find_source` for its name."""
    source = find_source(model)
    count: Callable = count_model if source.whole else count_backbone
    try:
        # MMDetection's backbones cannot be built on the meta device.
        counted = count(source.build(size).to("meta"), size.hw)
    except Exception as error:
        return Cost(None, None, f"not counted: {describe_failure(error)}")
    missing = ", ".join(sorted(set(counted.uncounted) - SAMPLING))
    note = f"multiply-adds lack those of {missing}" if missing else None
    return Cost(counted.macs, counted.parameters, note)
