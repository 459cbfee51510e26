"""Plans by measurement: at the first call of a kind on a GPU, kept on disk for the next processes.

A plan that is wrong for random inputs, does not compile or cannot be launched is never chosen. The table's
plans are used instead with ``FLATTEN_DET_AUTOTUNE=0``, under ``torch.use_deterministic_algorithms``, in
Triton's interpreter, for tensors that are not plain CUDA tensors, and for calls so small that launching them
is what takes time. While a CUDA graph is captured nothing is measured, but what is on disk is used.

Processes that measure at the same time (ranks of a training) may choose different plans, whose results differ
by rounding alone. Distributed training averages the gradients, so its ranks stay equal. From then on the
choice is that of the disk.
"""

import contextlib
import json
import logging
import math
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from ..reference import Inputs, focused_linear_attention
from .plan import WIDE, Plan, bucket

VARIABLE = "FLATTEN_DET_AUTOTUNE"
CACHE_VARIABLE = "FLATTEN_DET_CACHE"
# For a kind of call; one candidate may pass it.
BUDGET_SECONDS = 5.0
# Of q. Below, the device waits for the host whatever the plan.
LEAST_ELEMENTS = 1 << 20
# Relative error of the norm of each output by the coarsest dtype among them: more than rounding and products
# of 16 bits make, less than any mistake.
TOLERANCES = {torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}

# Direction -> changes to the table's plan, the most promising first: each compiles one or two kernels anew.
_CHANGES: dict[str, list[dict[str, Any]]] = {
    "forward": [
        dict(block=32),
        dict(fused_convolution=False),
        dict(attend_block=128),
        dict(columns=2),
        dict(stages=3),
        dict(attend_warps=8),
        dict(warps=8),
    ],
    "backward": [
        dict(fused_convolution=False),
        dict(backward_stages=2),
        dict(query_block=32),
        dict(depthwise_columns=4),
        dict(columns=2, depthwise_columns=1),
        dict(key_warps=8),
        dict(query_warps=8),
    ],
}

_logger = logging.getLogger(__name__)


class Key(NamedTuple):
    """A kind of call: buckets of N (``tokens``) and of B * N (``size``), and the dtype of the products."""

    direction: str
    dim: int
    num_heads: int
    dtype: torch.dtype
    tokens: int
    is_wide: bool
    size: int


@lru_cache(maxsize=4096)
def make_key(
    direction: str, B: int, N: int, W: int, dim: int, num_heads: int, dtype: torch.dtype
) -> Key:
    """The kind of a call with q of ``(B, N, dim)`` and products of this dtype, on a map of W columns."""
    return Key(direction, dim, num_heads, dtype, bucket(N), W >= WIDE, size_bucket(B * N))


class Trial(NamedTuple):
    """One call with a plan, on random inputs, and what it must return, at least in float32."""

    run: Callable[[Plan], Sequence[Tensor | None]]
    expected: Sequence[Tensor | None]


def candidates(plan: Plan, direction: str) -> list[Plan]:
    """Plans to try, the most promising first; the given one leads."""
    found = [plan]
    for changes in _CHANGES[direction]:
        # Tiles are no larger than a map of few tokens.
        if all(getattr(plan, x) >= 32 for x in changes if x.endswith("block")):
            found.append(replace(plan, **changes))
    return list(dict.fromkeys(found))


def size_bucket(tokens: int) -> int:
    """Tokens of a batch, rounded up to a power of four."""
    bits = max(tokens - 1, 0).bit_length()
    return 1 << (bits + bits % 2)


def random_like(x: Tensor | None) -> Tensor | None:
    """Normal numbers in the shape and dtype of x, without touching the user's generators."""
    if x is None:
        return None
    generator = torch.Generator(x.device).manual_seed(0)
    return torch.empty_like(x).normal_(generator=generator)


def forward_trial(forward: Callable[..., tuple[Tensor, ...]], inputs: Inputs) -> Trial:
    """Plans for :func:`.launch.forward` are tried on its output."""
    inputs = _random_inputs(inputs)
    expected = focused_linear_attention(_exact(inputs))
    return Trial(lambda plan: forward(inputs, plan)[:1], [expected])


def backward_trial(
    forward: Callable[..., tuple[Tensor, ...]],
    backward: Callable[..., tuple[Tensor | None, ...]],
    inputs: Inputs,
    needs: tuple[bool, ...],
    default: Plan,
) -> Trial:
    """Plans for :func:`.launch.backward` are tried on all gradients, after a forward with the default one."""
    inputs = _random_inputs(inputs)
    out, *saved = forward(inputs, default)
    grad_out = random_like(out)
    with torch.enable_grad():
        exact = _exact(inputs)
        wanted = [x.requires_grad_() for x, need in zip(exact.tensors, needs, strict=True) if need]
        result = focused_linear_attention(exact)
        gradients = iter(torch.autograd.grad(result, wanted, grad_out.to(result.dtype)))
    return Trial(
        lambda plan: backward(grad_out, inputs, *saved, needs, plan),
        [next(gradients) if need else None for need in needs],
    )


def _random_inputs(inputs: Inputs) -> Inputs:
    """Random ones of the same kind, without padding."""
    return inputs.with_tensors(map(random_like, inputs.tensors))._replace(sizes=None)


def _exact(inputs: Inputs) -> Inputs:
    """Copies with more digits: float64 where all is float32."""
    is_single = all(x is None or x.dtype == torch.float32 for x in inputs.tensors)
    dtype = torch.float64 if is_single else torch.float32
    return inputs.with_tensors(
        None if x is None else x.detach().to(dtype, copy=True) for x in inputs.tensors
    )


def seconds_on_device(run: Callable[[], Any]) -> float:
    """Median time of a call on the current CUDA device, warm."""
    for _ in range(2):
        run()
    events = []
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return median(start.elapsed_time(end) for start, end in events) / 1e3


def worth_tuning(q: Tensor) -> bool:
    """Whether a call with this q may have another plan than the table's."""
    return (
        q.device.type == "cuda"
        and q.numel() >= LEAST_ELEMENTS
        and type(q) in (Tensor, Parameter)
        and os.environ.get(VARIABLE) != "0"
        and not torch.are_deterministic_algorithms_enabled()
        and not import_module(".tiles", __package__).interpreted()
    )


def cache_folder() -> Path:
    """``$FLATTEN_DET_CACHE``, or ``flatten_det`` in the user's folder for caches."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "flatten_det"


@cache
def environment(device: torch.device) -> dict[str, str]:
    """What a measurement is good for: device, torch, Triton, and a digest of the kernels' sources."""
    digest = sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return dict(
        device=torch.cuda.get_device_name(device),
        torch=torch.__version__,
        triton=import_module("triton").__version__,
        kernels=digest.hexdigest(),
    )


@dataclass
class Tuner:
    """Chosen plans of this process, with all that measuring needs: tests have other clocks and cards."""

    measure: Callable[[Callable[[], Any]], float] = seconds_on_device
    clock: Callable[[], float] = time.monotonic
    worth_tuning: Callable[[Tensor], bool] = worth_tuning
    capturing: Callable[[], bool] = torch.cuda.is_current_stream_capturing
    environment: Callable[[torch.device], dict[str, str]] = environment

    def __post_init__(self) -> None:
        self._chosen: dict[tuple[Key, torch.device], Plan] = {}
        self._lock = threading.Lock()

    def plan(self, key: Key, default: Plan, q: Tensor, trial: Callable[[], Trial]) -> Plan:
        """The plan for a call of this kind: the table's ``default``, or the fastest in a ``trial``."""
        # Every call passes here: a look-up, and nothing else.
        chosen = self._chosen.get((key, q.device))
        if chosen is not None:
            return chosen
        if not self.worth_tuning(q):
            return default
        with self._lock:
            return self._chosen.get((key, q.device)) or self._choose(key, default, q, trial)

    def _choose(self, key: Key, default: Plan, q: Tensor, trial: Callable[[], Trial]) -> Plan:
        plans = candidates(default, key.direction)
        entry = _Entry(self.environment(q.device), key)
        chosen = entry.read(plans)
        if chosen is None:
            if self.capturing():
                return default
            chosen = self._fastest(key, plans, q, trial)
            # Another process may have been quicker, and two plans are worse than one.
            chosen = entry.read(plans) or entry.write(chosen) if chosen else default
        self._chosen[key, q.device] = chosen
        return chosen

    def _fastest(
        self, key: Key, plans: Sequence[Plan], q: Tensor, trial: Callable[[], Trial]
    ) -> Plan | None:
        start = self.clock()
        times: dict[Plan, float] = {}
        with torch.cuda.device_of(q), torch.autocast(q.device.type, enabled=False):
            try:
                run, expected = trial()
            except Exception as failure:
                # The call itself may well have the memory, or say better what is wrong.
                is_full = isinstance(failure, torch.OutOfMemoryError)
                level = logging.DEBUG if is_full else logging.WARNING
                _logger.log(level, "%s: no plans compared: %s", key, failure)
                return None
            for plan in plans:
                if self.clock() - start > BUDGET_SECONDS:
                    break
                try:
                    if is_right(run(plan), expected):
                        times[plan] = self.measure(lambda plan=plan: run(plan))
                    else:
                        _logger.debug("%s: wrong results with %s", key, plan)
                except Exception as failure:
                    # Compilers, launchers and drivers fail in many ways; none of them is the user's.
                    _logger.debug("%s: %s: %s with %s", key, type(failure).__name__, failure, plan)
        if not times:
            _logger.warning("%s: no plan passed its check; the default one is used", key)
            return None
        best = min(times, key=times.__getitem__)
        _logger.debug(
            "%s: %.3f ms with %s, the best of %d in %.1f s (default: %.3f ms)",
            key, times[best] * 1e3, best, len(times), self.clock() - start,
            times.get(plans[0], math.nan) * 1e3,
        )  # fmt: skip
        return best


def is_right(found: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> bool:
    """Whether all outputs are near what is expected, and finite."""
    tolerance = max(TOLERANCES[x.dtype] for x in found if x is not None)
    # NaN is not less than anything.
    return all(
        ours is None or (ours.to(exact.dtype) - exact).norm() <= tolerance * exact.norm()
        for ours, exact in zip(found, expected, strict=True)
    )


class _Entry:
    """A choice on disk, in a file of its own: processes that write at once cannot lose another's.

    Folders that cannot be read or written are no errors: there is nothing, and nothing is kept.
    """

    def __init__(self, environment: dict[str, str], key: Key) -> None:
        fields = [str(x).removeprefix("torch.") for x in key]
        self._header = {"environment": environment, "key": fields}
        digest = sha256(repr(sorted(environment.items())).encode()).hexdigest()[:12]
        name = re.sub(r"[^\w.-]+", "-", environment["device"])
        self._ignored = False
        self._path = Path("tuning", f"{name}-{digest}", f"{'-'.join(fields)}.json")

    def read(self, plans: Sequence[Plan]) -> Plan | None:
        """The plan kept, if it is one of these."""
        try:
            content = json.loads((cache_folder() / self._path).read_bytes())
            header = {name: content[name] for name in self._header}
            kept = next((x for x in plans if asdict(x) == content["plan"]), None)
            if header == self._header and kept is not None:
                return kept
            obstacle = "it is about something else"
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
            obstacle = f"{type(error).__name__}: {error}"
        if not self._ignored:
            _logger.debug("%s is ignored: %s", self._path, obstacle)
        self._ignored = True
        return None

    def write(self, plan: Plan) -> Plan:
        """Keep a plan; returns it."""
        partial = None
        try:
            path = cache_folder() / self._path
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=path.parent, suffix=".partial", delete=False
            ) as file:
                partial = file.name
                json.dump({**self._header, "plan": asdict(plan)}, file, indent=1)
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:
            _logger.debug("the choice of plans is not kept: %s", error)
            if partial is not None:
                with contextlib.suppress(OSError):
                    os.unlink(partial)
        return plan


tuner = Tuner()
