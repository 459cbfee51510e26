"""Whether a candidate computes focused linear attention at all: no speed-up without it.

Outputs, and in training all gradients, are compared with the equation in float64 on the same numbers, by
the relative error of the norm. The whole shape is checked up to ``MAX_ELEMENTS``; of larger ones a part of
the batch, then a part of the map's rows, with the same channels, heads and width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ....errors import describe_failure
from .candidates import REFERENCE, prepare
from .cases import MODULE, Setting
from .inputs import make_inputs

# 512x512 tokens of 64 channels: some 3 GB in float64 with the backward pass.
MAX_ELEMENTS = 2**24
TOLERANCES = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 2e-3}


@dataclass(frozen=True)
class Check:
    """What came of the comparison.

    Attributes:
        error: the relative error that is the largest for its tolerance; infinite for what is missing or
            not finite; None if the candidate failed to run.
        worst: the tensor that has it: ``output``, or the one whose gradient it is.
        passed: whether all errors are within their tolerances.
        failure: why it failed to run.
    """

    error: float | None
    worst: str | None
    passed: bool
    failure: str | None = None


class Checker:
    """Compares candidates of one setting with the equation."""

    def __init__(self, setting: Setting) -> None:
        self._inputs = make_inputs(part_to_check(setting))
        self._exact = prepare(self._inputs.exact(), REFERENCE)()
        self._allowed = dict.fromkeys(self._exact, TOLERANCES[setting.dtype])
        if setting.level == MODULE and setting.dtype != "fp32":
            # The projections round to low precision for everybody, more than the tolerance of the core.
            rounding = self._errors(prepare(self._inputs, REFERENCE)())
            for name, error in rounding.items():
                self._allowed[name] += error

    def __call__(self, candidate: str) -> Check:
        """Run a candidate and compare."""
        try:
            errors = self._errors(prepare(self._inputs, candidate)())
        except Exception as error:
            return Check(None, None, False, describe_failure(error))
        worst = max(errors, key=lambda name: errors[name] / self._allowed[name])
        return Check(errors[worst], worst, errors[worst] <= self._allowed[worst])

    def _errors(self, found: dict[str, Tensor | None]) -> dict[str, float]:
        return {name: relative_error(found[name], exact) for name, exact in self._exact.items()}


def part_to_check(setting: Setting) -> Setting:
    """The setting itself, or a smaller one of the same kind."""
    case = setting.case
    row = case.width * case.channels
    batch = max(min(setting.batch, MAX_ELEMENTS // (row * case.height)), 1)
    height = max(min(case.height, MAX_ELEMENTS // row), 1)
    return replace(setting, batch=batch, case=replace(case, height=height))


def relative_error(found: Tensor | None, exact: Tensor) -> float:
    """Of the norm. Infinite where there is nothing, or something that is not finite."""
    if found is None or found.shape != exact.shape:
        return float("inf")
    norm = torch.linalg.vector_norm
    error = (norm(found.double() - exact) / norm(exact).clamp_min(1e-300)).item()
    return error if error < float("inf") else float("inf")
