"""An exported file beside torch: at other sizes and batches than it was exported with."""

import io
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .exporters import ONNX, example
from .graphs import FULL, HALF, LABELS

# Images, height and width: more and fewer than those of the export, and no multiples of a stride.
SHAPES = ((1, 320, 480), (3, 200, 333), (1, 448, 640))
_RUNS = 3
# Differences that rounding explains, as parts of the largest value.
_TOLERANCES = {FULL: 1e-3, HALF: 2e-2}
# The least share of pixels, if labels are all there is.
_LEAST_EQUAL = {FULL: 0.999, HALF: 0.99}


def runner_of(content: bytes, kind: str) -> Callable[[Tensor], list[Tensor]]:
    """A function that runs a file's content on the CPU, on as many threads as torch does."""
    if kind == ONNX:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # No remarks on sizes that are symbols.
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return lambda image: [
            torch.from_numpy(out) for out in session.run(None, {"image": image.numpy()})
        ]
    program = torch.export.load(io.BytesIO(content)).module()
    return lambda image: _as_list(program(image))


def check(
    graph: nn.Module,
    run: Callable[[Tensor], list[Tensor]],
    dtype: torch.dtype,
    settings: Any,
    tell: Callable[[str], object],
) -> None:
    """Compare a file with the ``graph`` of the model as it is, on noise of each of :data:`SHAPES`; tell it.

    Args:
        run: of :func:`runner_of`.
        dtype: of the images.
        settings: those of :class:`.run.Settings`.
        tell: takes a line for each shape.

    Raises:
        UserError: the file computes what rounding does not explain.
    """
    names, runtime = graph.output_names, "onnxruntime" if settings.kind == ONNX else "exported"
    for count, *size in SHAPES:
        image = example(dtype, (count, 3, *size))
        with torch.no_grad():
            wanted, torch_milliseconds = _timed(lambda x: _as_list(graph(x)), image)
            found, milliseconds = _timed(run, image)
        numbers = [
            (own, other)
            for name, own, other in zip(names, found, wanted, strict=True)
            # Of detectors the scores: where two are equal but for rounding, all else changes places.
            if other.is_floating_point() and ("scores" not in names or name == "scores")
        ]
        difference = max((relative_difference(*pair) for pair in numbers), default=0.0)
        equal_labels = _equal_labels(names, found, wanted)
        labels = "" if equal_labels is None else f", labels equal {equal_labels:.3%}"
        tell(
            f"{' x '.join(map(str, (count, *size)))}: differs by {difference:.1e}{labels}; {runtime} "
            f"{milliseconds:.1f} ms, torch {torch_milliseconds:.1f} ms"
        )
        is_rounding = difference <= _TOLERANCES[settings.precision] and (
            settings.output != LABELS or equal_labels >= _LEAST_EQUAL[settings.precision]
        )
        is_finite = all(bool(own.isfinite().all()) for own, _ in numbers)
        if not (is_finite and (is_rounding or settings.calibration)):
            raise UserError(
                "the exported model differs from torch by more than rounding: nothing was written; report "
                "this model"
            )


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference as a part of the largest value."""
    largest = wanted.abs().max().clamp_min(torch.finfo(wanted.dtype).tiny)
    return float((found - wanted).abs().max() / largest)


def _equal_labels(names: list[str], found: list[Tensor], wanted: list[Tensor]) -> float | None:
    own, other = (dict(zip(names, outputs, strict=True)) for outputs in (found, wanted))
    if "labels" in own:
        equal = own["labels"] == other["labels"]
        if "scores" in own:  # The rows of a detector that are objects.
            equal = equal[other["scores"] > 0]
    elif "logits" in own and own["logits"].shape[1] > 1:
        equal = own["logits"].argmax(1) == other["logits"].argmax(1)
    else:
        return None
    return float(equal.float().mean()) if equal.numel() else 1.0


def _as_list(outputs: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _timed(run: Callable[[Tensor], list[Tensor]], image: Tensor) -> tuple[list[Tensor], float]:
    """The result, and the milliseconds of the quickest run but the first."""
    outputs, times = run(image), []
    for _ in range(_RUNS):
        begin = time.perf_counter()
        run(image)
        times.append(time.perf_counter() - begin)
    return outputs, min(times) * 1e3
