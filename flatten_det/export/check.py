"""An exported file beside torch: at other sizes and batches than it was exported with."""

import io
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .exporters import ONNX, example

# Images, height and width: more and fewer than those of the export, and no multiples of a stride.
SHAPES = ((1, 320, 480), (3, 200, 333), (1, 448, 640))
_RUNS = 3


class Agreement(NamedTuple):
    """An exported file and torch on one batch.

    Attributes:
        shape: images, height and width.
        difference: the largest one, as a part of the largest value; of the output in which it is largest.
        equal_labels: the share of pixels or objects with the same label; None: there are no labels.
        is_finite: whether all numbers of the file's are.
        milliseconds: of the file, for the batch.
        torch_milliseconds: of torch.
    """

    shape: tuple[int, int, int]
    difference: float
    equal_labels: float | None
    is_finite: bool
    milliseconds: float
    torch_milliseconds: float

    def line(self, runtime: str) -> str:
        """For people."""
        labels = "" if self.equal_labels is None else f", labels equal {self.equal_labels:.3%}"
        return (
            f"{' x '.join(map(str, self.shape))}: differs by {self.difference:.1e}{labels}; {runtime} "
            f"{self.milliseconds:.1f} ms, torch {self.torch_milliseconds:.1f} ms"
        )


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


def compare(
    graph: nn.Module, run: Callable[[Tensor], list[Tensor]], dtype: torch.dtype
) -> Iterator[Agreement]:
    """Compare a file with the ``graph`` of the model as it is, on noise of each of :data:`SHAPES`.

    Args:
        run: of :func:`runner_of`.
        dtype: of the images.
    """
    for count, *size in SHAPES:
        image = example(dtype, (count, 3, *size))
        with torch.no_grad():
            wanted, torch_milliseconds = _timed(lambda x: _as_list(graph(x)), image)
            found, milliseconds = _timed(run, image)
        numbers = [pair for pair in zip(found, wanted, strict=True) if pair[1].is_floating_point()]
        yield Agreement(
            (count, *size),
            max((relative_difference(*pair) for pair in numbers), default=0.0),
            _equal_labels(graph.output_names, found, wanted),
            all(bool(pair[0].isfinite().all()) for pair in numbers),
            milliseconds,
            torch_milliseconds,
        )


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference as a part of the largest value."""
    largest = wanted.abs().max().clamp_min(torch.finfo(wanted.dtype).tiny)
    return float((found - wanted).abs().max() / largest)


def _equal_labels(names: list[str], found: list[Tensor], wanted: list[Tensor]) -> float | None:
    for name, own, other in zip(names, found, wanted, strict=True):
        if name == "labels":
            return float((own == other).float().mean())
        if name == "logits" and own.shape[1] > 1:
            return float((own.argmax(1) == other.argmax(1)).float().mean())
    return None


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
