"""Launching the kernels: forward and backward of one attention."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ..reference import Inputs
from . import kernels_backward, kernels_forward
from .plan import (
    Call,
    Plan,
    Regions,
    ceil_div,
    check_parameters,
    empty,
    head_block,
    make_call,
    strided,
)
from .tuning import Trial, backward_trial, forward_trial, make_key, tuner

# Elements of a program that sums over splits.
SPLIT_BLOCK = 64
OPERANDS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launch a kernel. Everything that is compiled or run passes here."""
    # Multiply and add contracted: Triton is about to stop making this the default.
    kernel[grid](*arguments, **constants, enable_fp_fusion=True)


class Sums(NamedTuple):
    """Sums over splits: how many programs take them, arguments of theirs, and the matrices summed."""

    programs: int
    arguments: tuple[Any, ...]
    matrices: Tensor


@torch.no_grad()
def forward(
    inputs: Inputs, plan: Plan | None = None, for_backward: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Focused linear attention with p = 3, as in :mod:`flatten_det.attention.reference`.

    Args:
        inputs: what :func:`~flatten_det.attention.gpu.supported` takes; views of a fused projection are not
            copied. Sizes are at least 1 and at most H and W, which is not checked: that would wait for the
            device.
        plan: block sizes; None: the fastest known, see :mod:`.tuning`.
        for_backward: False: norms are not kept.

    Returns:
        The result ``(B, N, C)`` in the dtype of v, and for :func:`backward`, in float32,
        ``f(k)^T (v - centre) / N (B, h, d, d)``; ``(B, 2, C)``, the mean of f(k) and the centre of v; and
        ``(B, 2, N, 2)``, norms of queries and keys, see :func:`.tiles.load_norms`. They share no memory.

    Raises:
        ValueError: if H * W is not N, or a parameter has another shape.
    """
    call = make_call(inputs, plan, is_backward=False)
    check_parameters(inputs)
    if plan is None:
        _tune(call, lambda: forward_trial(forward, inputs))
    plan = call.plan
    with torch.cuda.device_of(inputs.q):
        norms = None
        if for_backward or call.groups > 1:
            norms = empty(call.B, 2, call.N, 2, like=inputs.q)
        if call.groups > 1:
            _row_norms(call, norms)
        kv, means = _reduce_keys(call, norms)
        moved_kv, moved_means = empty(*kv.shape, like=kv), empty(*means.shape, like=means)
        out = _tokens(call, inputs.v.dtype)
        regions = call.regions(plan.attend_warps, plan.columns, plan.attend_block, call.groups)
        run(
            kernels_forward.attend, (call.B * call.groups, regions.count),
            *call.q, *call.v, call.scale, norms, means, kv, moved_means, moved_kv,
            call.dwc_weight, inputs.dwc_bias, out, *_map_size(call), regions.rows, inputs.eps,
            **_products(call), **regions.constants, GROUP=plan.group, BLOCK=regions.block,
            K=call.kernel_size if plan.fused_convolution else 0,
            HAS_BIAS=inputs.dwc_bias is not None,
            num_warps=plan.attend_warps, num_stages=plan.stages,
        )  # fmt: skip
        if call.kernel_size and not plan.fused_convolution:
            _convolve(call, call.v, inputs.dwc_bias, out, flip=False)
    return out, moved_kv, moved_means, norms


@torch.no_grad()
def backward(
    grad_out: Tensor,
    inputs: Inputs,
    kv: Tensor,
    means: Tensor,
    norms: Tensor,
    needs: tuple[bool, ...],
    plan: Plan | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of the seven tensors of the inputs of :func:`forward`; None for those without ``needs``.

    They share no memory. ``kv``, ``means`` and ``norms`` are from :func:`forward`; ValueError if H * W is
    not N.
    """
    call = make_call(inputs, plan, is_backward=True)
    if plan is None:
        default = call.plan
        _tune(call, lambda: backward_trial(forward, backward, inputs, needs, default))
    needs_q, needs_k, needs_v, needs_positions, _, needs_weight, needs_bias = needs
    d_q = d_k = d_v = d_scale = d_taps = None
    k_dtype = inputs.k.dtype
    with torch.cuda.device_of(inputs.q):
        grad = strided(grad_out)
        saved = [x.contiguous() for x in (norms, means, kv)]
        queries = _backward_queries(call, grad, saved) if any(needs[:5]) else None
        sums = None if queries is None else queries.sums
        if needs_weight or needs_bias:
            d_taps = _depthwise_gradients(call, grad, sums)
        elif sums is not None:
            _sum_splits(call, sums)
        if queries is not None:
            # Positions are often wider than keys under AMP, and summed over the batch: float16 might not
            # hold the single gradients.
            wide = needs_positions and k_dtype == torch.float16
            d_k, d_v = _backward_keys(
                call, grad, saved, queries, torch.float32 if wide else k_dtype
            )
            d_q, d_scale = queries.d_q, queries.d_scale
        parameters = (inputs.positions, call.scale, call.dwc_weight, inputs.dwc_bias)
        wanted = [x if need else None for x, need in zip(parameters, needs[3:], strict=True)]
        sums = _sum_parameters(call, (d_k, d_scale, d_taps), wanted)
    d_q, d_v = d_q if needs_q else None, d_v if needs_v else None
    return d_q, d_k.to(k_dtype) if needs_k else None, d_v, *sums


def _tune(call: Call, trial: Callable[[], Trial]) -> None:
    """Give the call the fastest plan that is known for its kind."""
    direction = "backward" if call.is_backward else "forward"
    key = make_key(direction, call.B, call.N, call.W, call.C, call.heads, call.operand)
    call.plan = tuner.plan(key, call.plan, call.inputs.q, trial)


def _tokens(call: Call, dtype: torch.dtype) -> Tensor:
    """``(B, N, C)`` for a kernel to write, who leaves out the padding."""
    shape, like = (call.B, call.N, call.C), call.inputs.q
    if call.inputs.sizes is None:
        return empty(*shape, like=like, dtype=dtype)
    return torch.zeros(shape, dtype=dtype, device=like.device)


def _token_count(call: Call) -> tuple[int, Tensor | None, int | None]:
    """For kernels that walk over tokens: how many, sizes of maps with padding, and their width with it."""
    sizes = call.inputs.sizes
    return call.N, sizes, None if sizes is None else call.W


def _map_size(call: Call) -> tuple[int, int, Tensor | None]:
    """For kernels that walk over regions: H and W, and sizes of maps with padding."""
    return call.H, call.W, call.inputs.sizes


def _heads(call: Call) -> dict[str, Any]:
    """Compile-time arguments of all kernels that walk over the tokens."""
    return dict(
        HEADS=call.heads,
        HEAD_DIM=call.head_dim,
        D=head_block(call.head_dim),
        HAS_SIZES=call.inputs.sizes is not None,
    )


def _products(call: Call) -> dict[str, Any]:
    """Those of the kernels with products."""
    return dict(
        C=call.C, **_heads(call), OPERAND=OPERANDS[call.operand], HAS_SCALE=call.scale is not None
    )


def _row_norms(call: Call, norms: Tensor) -> None:
    """Norms of queries and keys, ``(B, 2, N, 2)``, for programs that see one head only."""
    run(
        kernels_forward.row_norms, (call.tiles(call.plan.norm_block), call.B, 2),
        *call.q, *call.k, *call.positions, call.scale, norms, *_token_count(call), call.inputs.eps,
        **_heads(call), HAS_POSITIONS=call.inputs.positions is not None, HAS_SCALE=call.scale is not None,
        BLOCK=call.plan.norm_block, num_warps=call.plan.norm_warps,
    )  # fmt: skip


def _reduce_keys(call: Call, norms: Tensor | None) -> tuple[Tensor, Tensor]:
    """``f(k)^T (v - centre) / N (B, h, d, d)``; mean of f(k) and centre of v ``(B, 2, C)``."""
    splits, tiles_per_split = call.splits(call.plan.block)
    k = call.inputs.k
    means = empty(call.B, 2, call.C, like=k)
    kv = empty(call.B, splits, call.heads, call.head_dim, call.head_dim, like=k)
    k_mean = means if splits == 1 else empty(call.B, splits, call.C, like=k)
    run(
        kernels_forward.reduce_keys, (call.B * call.groups, splits),
        *call.k, *call.v, *call.positions, call.scale, norms, means, kv, k_mean,
        2 * call.C if splits == 1 else call.C, *_token_count(call), tiles_per_split, call.inputs.eps,
        **_products(call), HAS_POSITIONS=call.inputs.positions is not None, GROUP=call.plan.group,
        BLOCK=call.plan.block, SAMPLES=call.plan.samples,
        num_warps=call.plan.warps, num_stages=call.plan.stages,
    )  # fmt: skip
    sums = _splits_to_sum(call, kv, k_mean, means)
    _sum_splits(call, sums)
    return sums.matrices, means


class _Queries(NamedTuple):
    """What :func:`_backward_queries` computed; ``shares``: see ``kernels_backward.backward_queries``.

    The sum of ``d_scale (..., C)`` times a factor is the gradient of the scale. Its rows of the queries, the
    first ones, and ``d_q`` are written later if there are several heads.
    """

    d_q: Tensor
    d_k_mean: Tensor
    d_scale: Tensor
    shares: Tensor | None
    sums: Sums


def _backward_queries(
    call: Call, grad: tuple[Tensor, int, int], saved: Sequence[Tensor]
) -> _Queries:
    """From the gradient of the result, :func:`strided`, and norms, means and kv of :func:`forward`."""
    plan, q = call.plan, call.inputs.q
    splits, tiles_per_split = call.splits(plan.query_block)
    shares = empty(call.B, call.heads, call.N, 4, like=q) if call.heads > 1 else None
    d_q = _tokens(call, q.dtype)
    d_kv = empty(call.B, splits, call.heads, call.head_dim, call.head_dim, like=q)
    d_k_mean = empty(call.B, splits, call.C, like=q)
    d_scale = empty(call.B * (splits + _key_regions(call).count), call.C, like=q)
    run(
        kernels_backward.backward_queries, (call.B * call.heads, splits),
        *call.q, *grad, call.scale, *saved, d_q, d_kv, d_k_mean, d_scale, shares,
        *_token_count(call), tiles_per_split, call.inputs.eps,
        **_products(call), BLOCK=plan.query_block,
        num_warps=plan.query_warps, num_stages=plan.backward_stages,
    )  # fmt: skip
    total = d_k_mean[:, 0] if splits == 1 else empty(call.B, call.C, like=q)
    return _Queries(d_q, total, d_scale, shares, _splits_to_sum(call, d_kv, d_k_mean, total))


def _backward_keys(
    call: Call, grad: tuple[Tensor, int, int], saved: Sequence[Tensor], queries: _Queries,
    k_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of k, in this dtype, and v; and what is missing of those of q and scale."""
    plan, inputs = call.plan, call.inputs
    splits, tiles_per_split = call.splits(plan.query_block)
    has_positions = inputs.positions is not None
    norms, means, _ = saved
    d_q, d_k_mean, d_scale, shares, (_, _, d_kv) = queries
    if call.heads > 1:
        run(
            kernels_backward.join_heads, (call.B * call.heads, splits, 2),
            *call.q, *call.k, *call.v, *call.positions, *grad, call.scale, *saved, d_kv, d_k_mean,
            d_q, d_scale, shares, *_token_count(call), tiles_per_split, inputs.eps,
            **_products(call), HAS_POSITIONS=has_positions, BLOCK=plan.query_block,
            num_warps=plan.query_warps, num_stages=plan.backward_stages,
        )  # fmt: skip
    regions = _key_regions(call)
    d_k, d_v = _tokens(call, k_dtype), _tokens(call, inputs.v.dtype)
    run(
        kernels_backward.backward_keys, (call.B * call.heads, regions.count),
        *call.k, *call.v, *call.positions, *grad, call.scale, norms, means, d_kv, d_k_mean,
        call.dwc_weight, d_k, d_v, d_scale[call.B * splits :], shares,
        *_map_size(call), regions.rows, inputs.eps,
        **_products(call), HAS_POSITIONS=has_positions, **regions.constants, BLOCK=regions.block,
        K=call.kernel_size if plan.fused_convolution else 0,
        num_warps=plan.key_warps, num_stages=plan.backward_stages,
    )  # fmt: skip
    if call.kernel_size and not plan.fused_convolution:
        _convolve(call, grad, None, d_v, flip=True)
    return d_k, d_v


def _key_regions(call: Call) -> Regions:
    plan = call.plan
    return call.regions(plan.key_warps, plan.columns, plan.key_block, call.groups)


def _convolve(
    call: Call, image: tuple[Tensor, int, int], bias: Tensor | None, out: Tensor, flip: bool
) -> None:
    """Add the depthwise convolution of ``image``, :func:`strided`, to ``out``."""
    regions = call.regions(call.plan.depthwise_warps, call.plan.columns, 0, call.heads)
    run(
        kernels_forward.convolve, (call.B * call.heads, regions.count),
        *image, call.dwc_weight, bias, out, *_map_size(call), regions.rows,
        C=call.C, **_heads(call), **regions.constants,
        K=call.kernel_size, HAS_BIAS=bias is not None, FLIP=flip,
        num_warps=call.plan.depthwise_warps,
    )  # fmt: skip


def _splits_to_sum(call: Call, matrices: Tensor, vectors: Tensor, vector_sums: Tensor) -> Sums:
    """Of ``(B, splits, h, d, d)``; and of ``(B, splits, C)`` into ``vector_sums``.

    Those are ``(B, C)``, or ``(B, 2, C)``, of which the first C are theirs. With one split they are there.
    """
    B, splits, heads, d, _ = matrices.shape
    if splits == 1:
        return Sums(0, (None, None, None, None, 0, 1), matrices[:, 0])
    sums = empty(B, heads, d, d, like=matrices)
    programs = B * (ceil_div(call.C * d, SPLIT_BLOCK) + ceil_div(call.C, SPLIT_BLOCK))
    arguments = (matrices, sums, vectors, vector_sums, vector_sums.stride(0), splits)
    return Sums(programs, arguments, sums)


def _sum_splits(call: Call, sums: Sums) -> None:
    if sums.programs:
        run(
            kernels_forward.sum_splits, (sums.programs,), *sums.arguments,
            C=call.C, HEAD_DIM=call.head_dim, SPLIT_BLOCK=SPLIT_BLOCK,
        )  # fmt: skip


def _depthwise_gradients(call: Call, grad: tuple[Tensor, int, int], sums: Sums | None) -> Tensor:
    """Parts of the gradients of weight and bias, ``(splits, K*K + 1, d)``, float32; the sums beside them."""
    K = call.kernel_size
    plan = call.plan
    regions = call.regions(plan.depthwise_warps, plan.depthwise_columns, 0, call.heads)
    items = call.B * call.heads * regions.count
    per_split = ceil_div(items, min(items, call.programs))
    splits = ceil_div(items, per_split)
    d_taps = empty(splits, K * K + 1, call.head_dim, like=call.inputs.v)
    programs, arguments, _ = sums or Sums(0, (None, None, None, None, 0, 1), d_taps)
    run(
        kernels_backward.backward_depthwise, (programs + splits,),
        *call.v, *grad, d_taps, regions.count, items, per_split, *_map_size(call), regions.rows,
        programs, *arguments,
        C=call.C, **_heads(call), **regions.constants, K=K, HAS_SUMS=programs > 0,
        SPLIT_BLOCK=SPLIT_BLOCK, num_warps=plan.depthwise_warps,
    )  # fmt: skip
    return d_taps


def _sum_parameters(
    call: Call, parts: tuple[Tensor | None, ...], wanted: list[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of positions, scale, weight and bias, where wanted.

    ``parts``: gradient of the keys, whose sum is that of the positions, and parts of the others.
    """
    (d_k, scale_parts, d_taps), (positions, scale, weight, bias) = parts, wanted
    gradients = [None if x is None else empty(*x.shape, like=x, dtype=x.dtype) for x in wanted]
    d_positions, d_scale, d_weight, d_bias = gradients
    summands = 1 if positions is None else d_k.shape[0] // positions.shape[0]
    size = 0 if positions is None else positions.numel()
    block, positions_block = 32, 1024
    tap_blocks = 0 if d_taps is None else ceil_div(d_taps[0].numel(), block)
    scale_blocks = 0 if scale is None else ceil_div(call.C, block)
    blocks = tap_blocks + scale_blocks + ceil_div(size, positions_block)
    if blocks:
        run(
            kernels_backward.sum_parameters, (blocks,),
            d_taps, 0 if d_taps is None else d_taps.shape[0], d_weight, d_bias,
            scale_parts, 0 if scale is None else scale_parts.shape[0], scale, d_scale,
            d_k, d_positions, summands, size,
            C=call.C, HEAD_DIM=call.head_dim, K=call.kernel_size,
            HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
            HAS_POSITIONS=positions is not None,
            TAP_BLOCKS=tap_blocks, SCALE_BLOCKS=scale_blocks,
            BLOCK_ROWS=32, BLOCK=block, POSITIONS_BLOCK=positions_block,
        )  # fmt: skip
    return gradients
