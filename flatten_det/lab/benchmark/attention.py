"""Implementations of focused linear attention as candidates: ours, plain, compiled, of others; and softmax.

Each must compute the right function: no speed-up without it. Outputs, and in training all gradients, are
compared with the equation in float64 on the same numbers, by the relative error of the norm. The whole shape
is checked up to ``MAX_ELEMENTS``; of larger ones a part of the batch, then a part of the map's rows, with the
same channels, heads and width.
"""

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod, sqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...attention import FocusedLinearAttention, focused_linear_attention
from ...errors import UserError, describe_failure
from ..output import number
from .figures import draw_bars
from .machine import DTYPES
from .report import time_cells
from .run import Benchmark, Check, Comparison, Result, Setting, Work
from .timing import clock_of

Core = Callable[..., Tensor]
CORE, MODULE = LEVELS = ("core", "module")
MODES = ("forward", "forward+backward")
FLATTEN_DET, TILED, TRITON, REFERENCE = "flatten_det", "tiled", "triton", "reference"
EAGER, COMPILED, SDPA = _PEERS = ("eager", "compiled", "sdpa")
# 512x512 tokens of 64 channels: some 3 GB in float64 with the backward pass.
MAX_ELEMENTS = 2**24
TOLERANCES = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 2e-3}
_KERNEL_SIZE = 5
_SEED = 0
_FACTORS = {"scale": 0.5, "positions": 0.2, "positional_encoding": 0.2, "bias": 0.1}
_TRIAL_TOKENS = 4096
_OTHER_FUNCTION = "other function"
# Of softmax attention. Without a fused kernel the matrix of all pairs of tokens would fit into no memory.
_FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]


@dataclass(frozen=True)
class Case:
    """One layer of C channels, h heads and a map of N = height * width tokens."""

    name: str  # of the shape
    channels: int
    heads: int
    height: int
    width: int
    fused_qkv: bool = True  # one projection (Swin), or one for q and one for k and v (PVT)
    level: str = MODULE  # "core": q, k and v are given; "module": with the projections

    def __str__(self) -> str:
        return self.name

    @property
    def hw_shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def tokens(self) -> int:
        return self.height * self.width

    def kind_of(self, setting: Setting, words: str) -> str:
        """See :attr:`~.run.Setting.kind`."""
        return f"{self.level}, {words}"


# Of images of 800x1280 px, but for the last of PVT: 512x512 tokens.
CASES = {
    case.name: case
    for case in (
        Case("pvt-s1", 64, 1, 200, 320, fused_qkv=False),
        Case("pvt-s2", 128, 2, 100, 160, fused_qkv=False),
        Case("pvt-s3", 320, 5, 50, 80, fused_qkv=False),
        Case("pvt-s4", 512, 8, 25, 40, fused_qkv=False),
        Case("pvt-s1-262144", 64, 1, 512, 512, fused_qkv=False),
        Case("swin-s1", 96, 3, 200, 320),
        Case("swin-s2", 192, 6, 100, 160),
    )
}


def find_case(text: str, level: str = MODULE) -> Case:
    """The case of a name, or of ``C,heads,H,W``; UserError if the text is neither."""
    if text in CASES:
        return replace(CASES[text], level=level)
    try:
        channels, heads, height, width = (int(part) for part in text.split(","))
    except ValueError:
        names = ", ".join(CASES)
        raise UserError(f"--shape {text}: give C,heads,H,W or one of {names}") from None
    if min(channels, heads, height, width) < 1 or channels % heads:
        raise UserError(f"--shape {text}: sizes are positive, and C is a multiple of the heads")
    name = f"c{channels}-h{heads}-{height}x{width}"
    return Case(name, channels, heads, height, width, level=level)


def unit_bytes(setting: Setting) -> int:
    """Of one tensor (B, N, C)."""
    case = setting.case
    return setting.batch * case.tokens * case.channels * DTYPES[setting.dtype].itemsize


def floor_bytes(setting: Setting) -> int | None:
    """What must move between memory and chip; None with projections, which may compute instead.

    Forward 6 units: k, v and positions are read for the sums over the keys, then q and v, and the
    output is written. With the backward pass 16.
    """
    if setting.case.level != CORE:
        return None
    return (16 if setting.training else 6) * unit_bytes(setting)


@dataclass(frozen=True)
class LayerInputs:
    """Tensors that all candidates of a setting share."""

    setting: Setting
    # What is differentiated, by name: q, k, v and the core's parameters, or x and the layer's.
    tensors: dict[str, Tensor]
    grad: Tensor  # of the output, (B, N, C)

    def exact(self) -> "LayerInputs":
        """The same numbers in float64, without autocast."""
        return LayerInputs(
            replace(self.setting, amp=False),
            {name: x.double() for name, x in self.tensors.items()},
            self.grad.double(),
        )


def make_inputs(setting: Setting) -> LayerInputs:
    """Random inputs, the same for the same setting.

    At the core level q, k and v are views of one tensor, as a projection returns them. Under AMP they are
    in the low precision, as it returns them there; the parameters, and x at the module level, are not.
    """
    case, dtype = setting.case, DTYPES[setting.dtype]
    generator = torch.Generator(setting.device).manual_seed(_SEED)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=setting.device)

    tokens, channels = case.tokens, case.channels
    if case.level == CORE:
        projected = normal(setting.batch, tokens, 3 * channels).to(dtype)
        values = dict(zip("qkv", projected.chunk(3, dim=-1), strict=True))
        shapes = {
            "positions": (1, tokens, channels),
            "scale": (1, 1, channels),
            "dwc_weight": (channels // case.heads, 1, _KERNEL_SIZE, _KERNEL_SIZE),
            "dwc_bias": (channels // case.heads,),
        }
    else:
        values = {"x": normal(setting.batch, tokens, channels).to(setting.parameter_dtype)}
        shapes = {name: tuple(p.shape) for name, p in _meta_layer(case).named_parameters()}
    for name, shape in shapes.items():
        # Standard deviation as of trained weights: a projection neither shrinks nor stretches.
        kind = name.replace("dwc_", "").rsplit(".", 1)[-1]
        factor = _FACTORS.get(kind, 1 / sqrt(prod(shape[1:])))
        values[name] = (normal(*shape) * factor).to(setting.parameter_dtype)
    grad = normal(setting.batch, tokens, channels).to(dtype)
    return LayerInputs(setting, values, grad)


def default_candidates(level: str, device: torch.device) -> tuple[str, ...]:
    """Names of all that there are for the level and the device."""
    ours = FLATTEN_DET
    if level == CORE:
        ours = TRITON if device.type == "cuda" else TILED
    return (ours, REFERENCE, *_PEERS)


def prepare(inputs: LayerInputs, candidate: str) -> Work:
    """A candidate of :func:`default_candidates` or :func:`load_peer` with its inputs, ready to be called."""
    setting = inputs.setting
    case, training = setting.case, setting.training
    if case.level == CORE:
        leaves = {name: x.detach().requires_grad_(training) for name, x in inputs.tensors.items()}
        core = _compiled(eager_attention) if candidate == COMPILED else _core(candidate)
        call = partial(core, num_heads=case.heads, hw_shape=case.hw_shape, **leaves)
    else:
        layer = _meta_layer(case, None if candidate == FLATTEN_DET else _core(candidate))
        layer.train(training)
        weights = {name: nn.Parameter(w) for name, w in inputs.tensors.items() if name != "x"}
        layer.load_state_dict(weights, assign=True)
        x = inputs.tensors["x"].detach().requires_grad_(training)
        leaves = {"x": x, **weights}
        if candidate == FLATTEN_DET and not training:
            layer.fuse_for_inference()
        function = _compiled(layer) if candidate == COMPILED else layer
        call = partial(function, x, hw_shape=case.hw_shape)
    return Work(setting, call, list(leaves.values()), [inputs.grad])


def compute(inputs: LayerInputs, candidate: str) -> dict[str, Tensor | None]:
    """``output``, and in training the gradients by name; None for what it does not depend on."""
    (output,), gradients = prepare(inputs, candidate).compute()
    return {"output": output.detach(), **dict(zip(inputs.tensors, gradients, strict=False))}


def load_peer(text: str) -> Core:
    """Import ``module:function``, from the working directory too; UserError if that fails."""
    module_name, _, function_name = text.partition(":")
    if not module_name or not function_name:
        raise UserError(
            f"--peer {text}: give module:function, such as my_package.attention:forward"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--peer {text}: importing {module_name} fails: {type(error).__name__}: {reason}; install "
            "it, or start where it lies"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"--peer {text}: {module_name} has no function {function_name}")
    return function


def _core(candidate: str) -> Core:
    if candidate in (EAGER, COMPILED):
        return eager_attention
    if candidate == SDPA:
        return softmax_attention
    if candidate in (REFERENCE, TILED, TRITON):
        return partial(focused_linear_attention, implementation=candidate)
    return load_peer(candidate)


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # For these sizes only, and without falling back to eager: at its best, or not at all.
    return torch.compile(function, dynamic=False, fullgraph=True)


def _meta_layer(case: Case, core: Core | None = None) -> FocusedLinearAttention:
    """The layer of a case, without values; with ``core`` in place of its own attention.

    Its learned grid has the size of the map, so that no candidate spends time on resizing it.
    """
    make = FocusedLinearAttention if core is None else partial(_Layer, core)
    with torch.device("meta"):
        return make(case.channels, case.heads, case.hw_shape, fused_qkv=case.fused_qkv)


class _Layer(FocusedLinearAttention):
    """The same parameters, used plainly around another core."""

    def __init__(self, core: Core, *args, **options) -> None:
        super().__init__(*args, **options)
        self.core = core

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        if self.fused_qkv:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            q, (k, v) = self.q(x), self.kv(x).chunk(2, dim=-1)
        out = self.core(
            q,
            k,
            v,
            num_heads=self.num_heads,
            hw_shape=hw_shape,
            positions=self.positional_encoding,
            scale=self.scale,
            dwc_weight=self.dwc.weight,
            dwc_bias=self.dwc.bias,
        )
        return self.proj(out)


def eager_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    hw_shape: tuple[int, int],
    positions: Tensor,
    scale: Tensor,
    dwc_weight: Tensor,
    dwc_bias: Tensor,
) -> Tensor:
    """Focused linear attention in plain PyTorch, as published code computes it.

    Our own transcription of the original semantics, operation by operation and in the precision of its
    inputs, so that it costs what they cost. It is a baseline, not for use. Arguments and result are those
    of :func:`flatten_det.attention.reference.focused_linear_attention`.
    """
    eps, focusing_factor = 1e-6, 3

    def focus(x: Tensor) -> Tensor:
        norm = x.norm(dim=-1, keepdim=True)
        x = x**focusing_factor
        return x / x.norm(dim=-1, keepdim=True) * norm

    def split_heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (num_heads, -1)).transpose(1, 2).flatten(0, 1)

    def merge_heads(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, num_heads)).transpose(1, 2).flatten(2)

    B, N, C = q.shape
    k = k + positions
    q, k = F.relu(q) + eps, F.relu(k) + eps
    scale = F.softplus(scale)
    q, k = focus(q / scale), focus(k / scale)
    q, k, v = split_heads(q), split_heads(k), split_heads(v)  # [B*h, N, d]
    z = 1 / (q @ k.mean(dim=-2, keepdim=True).transpose(-2, -1) + eps)
    kv = (k.transpose(-2, -1) * N**-0.5) @ (v * N**-0.5)
    out = merge_heads(q @ kv * z)

    image = v.transpose(1, 2).reshape(B * num_heads, C // num_heads, *hw_shape)
    image = F.conv2d(
        image, dwc_weight, dwc_bias, padding=dwc_weight.shape[-1] // 2, groups=C // num_heads
    )
    return out + merge_heads(image.flatten(2).transpose(1, 2))


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int, **_: object) -> Tensor:
    """PyTorch's fused softmax attention of q, k and v, each ``(B, N, C)``: another function.

    Its cost is what the linear one is to beat; the other arguments of the core have no effect. RuntimeError
    if there is no fused kernel for the device, the dtype and the shape.
    """
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel(_FUSED):
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)


class Checker:
    """Compares candidates of one setting with the equation."""

    def __init__(self, setting: Setting) -> None:
        self._inputs = make_inputs(part_to_check(setting))
        self._exact = compute(self._inputs.exact(), REFERENCE)
        self._allowed = dict.fromkeys(self._exact, TOLERANCES[setting.dtype])
        if setting.case.level == MODULE and setting.dtype != "fp32":
            # The projections round to low precision for everybody, more than the tolerance of the core.
            for name, error in self._errors(REFERENCE).items():
                self._allowed[name] += error

    def __call__(self, candidate: str) -> Check:
        """Run a candidate and compare."""
        try:
            errors = self._errors(candidate)
        except Exception as error:
            return Check(None, None, False, describe_failure(error))
        worst = max(errors, key=lambda name: errors[name] / self._allowed[name])
        return Check(errors[worst], worst, errors[worst] <= self._allowed[worst])

    def _errors(self, candidate: str) -> dict[str, float]:
        found = compute(self._inputs, candidate)
        return {name: _relative_error(found[name], exact) for name, exact in self._exact.items()}


def part_to_check(setting: Setting) -> Setting:
    """The setting itself, or a smaller one of the same kind."""
    case = setting.case
    row = case.width * case.channels
    batch = max(min(setting.batch, MAX_ELEMENTS // (row * case.height)), 1)
    height = max(min(case.height, MAX_ELEMENTS // row), 1)
    return replace(setting, batch=batch, case=replace(case, height=height))


def _relative_error(found: Tensor | None, exact: Tensor) -> float:
    """Of the norm. Infinite where there is nothing, or something that is not finite."""
    if found is None or found.shape != exact.shape:
        return float("inf")
    norm = torch.linalg.vector_norm
    error = (norm(found.double() - exact) / norm(exact).clamp_min(1e-300)).item()
    return error if error < float("inf") else float("inf")


@dataclass(frozen=True)
class AttentionBenchmark(Benchmark):
    """Implementations of the attention; a candidate is its name. ``bandwidth`` of a copy is in bytes/s."""

    bandwidth: float
    explanation = (
        "Times: median and quartiles of a call. Speed-up: median of the ratios of pairs in one round. "
        "Error: the largest relative one of output and gradients, against the equation in float64. "
        "Unit: a tensor of batch x tokens x channels. Of copy: bytes that must move / time / bandwidth "
        "of a copy."
    )

    def builder(self, setting: Setting) -> Callable[[str], Work]:
        """See :func:`prepare`; all get the same inputs."""
        return partial(prepare, make_inputs(setting))

    def start(self, setting: Setting, candidate: str) -> Result:
        """Whether it is meant to be another function."""
        return Result(setting, candidate, remark=_OTHER_FUNCTION if candidate == SDPA else None)

    def reason_to_skip(
        self, result: Result, earlier: Sequence[Result], max_seconds: float | None
    ) -> str | None:
        """Softmax attention, quadratic in the tokens, may not be worth the wait."""
        if result.name != SDPA:
            return None
        setting, case = result.setting, result.setting.case
        height = min(max(_TRIAL_TOKENS // case.width, 1), case.height)
        clock = clock_of(torch.device(setting.device))
        try:
            call = self.build(replace(setting, case=replace(case, height=height)), SDPA)
            clock(call)
            seconds = clock(call) * (case.height / height) ** 2
        except Exception as error:
            return describe_failure(error)
        if seconds <= max_seconds:
            return None
        return f"about {seconds:.0f} s per call, more than --max-seconds {max_seconds:g}"

    def checker(self, setting: Setting) -> Callable[[str], Check | None]:
        """See :class:`Checker`; of softmax attention there is nothing to check."""
        try:
            check = Checker(setting)
        except Exception as error:
            # Nothing to compare with: then nothing has passed.
            reason = f"the reference failed: {describe_failure(error)}"
            return lambda name: None if name == SDPA else Check(None, None, False, reason)
        return lambda name: None if name == SDPA else check(name)

    def cells(self, comparison: Comparison, result: Result) -> dict[str, str]:
        peak = result.peak_bytes
        return {
            "shape": _shape_of(result),
            "candidate": result.name,
            **time_cells(result),
            "speed-up": number(comparison.speedup(result), ".2f", "x"),
            "error": number(result.check and result.check.error, ".1e"),
            "peak MiB": number(peak and peak / 2**20, ".1f"),
            "in units": number(peak_units(result), ".1f"),
            "of copy": number(self.floor_fraction(result), ".0%"),
            "note": result.note,
        }

    def row(self, comparison: Comparison, result: Result) -> dict[str, object]:
        setting, case, check = result.setting, result.setting.case, result.check
        first, third = result.quartiles
        return {
            "level": case.level,
            "shape": case.name,
            **{key: getattr(case, key) for key in ("channels", "heads", "height", "width")},
            **{key: getattr(setting, key) for key in ("batch", "dtype", "amp", "mode")},
            "candidate": result.name,
            "median_s": result.seconds,
            "first_quartile_s": first,
            "third_quartile_s": third,
            "speedup": comparison.speedup(result),
            "check": verdict(result),
            "relative_error": check.error if check else None,
            "worst_tensor": check.worst if check else None,
            "peak_bytes": result.peak_bytes,
            "peak_units": peak_units(result),
            "floor_fraction": self.floor_fraction(result),
            "note": result.note,
        }

    def content(self, comparison: Comparison, how: Mapping[str, object]) -> dict[str, object]:
        cells = [self.row(comparison, r) | {"seconds": r.times or ()} for r in comparison.results]
        copy = {"copy_bandwidth": self.bandwidth}
        return {"baseline": comparison.baseline, **how, **copy, "cells": cells}

    def draw(self, comparison: Comparison, title: str, path: Path) -> None:
        draw_bars(comparison, title, path, _shape_of, peak_units)

    def floor_fraction(self, result: Result) -> float | None:
        """Bytes that must move / time / copy bandwidth.

        Above 1 where the tensors fit into a cache, which a large copy does not.
        """
        floor = floor_bytes(result.setting)
        if floor is None or result.times is None or not (result.check and result.check.passed):
            return None
        return floor / result.seconds / self.bandwidth


def peak_units(result: Result) -> float | None:
    """Peak memory in tensors (B, N, C) of the setting's dtype."""
    return result.peak_bytes and result.peak_bytes / unit_bytes(result.setting)


def verdict(result: Result) -> str:
    """Of the check, in a word or two."""
    if result.remark is not None:
        return result.remark
    if result.check is None or result.check.failure is not None:
        return "not checked"
    return "passed" if result.check.passed else "failed"


def _shape_of(result: Result) -> str:
    return f"{result.setting.case} x{result.setting.batch}"
