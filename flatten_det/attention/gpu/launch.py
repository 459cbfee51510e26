"""Launching the kernels: forward and backward of one attention."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import kernels_backward, kernels_forward
from .call import Call, Regions, ceil_div, check_parameters, head_block, make_call, strided
from .plan import Plan
from .scratch import empty
from .tuning import Trial, backward_trial, forward_trial, make_key, tuner

OPERANDS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launch a kernel. Everything that is compiled or run passes here."""
    # Multiply and add contracted: Triton is about to stop making this the default.
    kernel[grid](*arguments, **constants, enable_fp_fusion=True)


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, on tensors of the CPU (``TRITON_INTERPRET=1``)."""
    return not isinstance(kernels_forward.attend, triton.JITFunction)


@torch.no_grad()
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor | None,
    scale: Tensor | None,
    dwc_weight: Tensor | None,
    dwc_bias: Tensor | None,
    num_heads: int,
    hw_shape: tuple[int, int],
    eps: float,
    plan: Plan | None = None,
    sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Focused linear attention with p = 3, as in :mod:`flatten_det.attention.reference`.

    Args:
        q, k, v: ``(B, N, C)``, float32, float16 or bfloat16; views of a fused projection are not copied.
        positions: ``(1, N, C)`` or ``(B, N, C)``, added to k, or None.
        scale: ``(1, 1, C)`` before its softplus, or None.
        dwc_weight: ``(d, 1, K, K)``, K odd, or None.
        dwc_bias: ``(d,)`` or None.
        num_heads: h.
        hw_shape: ``(H, W)``, H * W = N.
        eps: as in the reference.
        plan: block sizes; None: the fastest known, see :mod:`.tuning`.
        sizes: ``(B, 2)`` int32, height and width of each map without its padding, which is to the right of
            it and below: the result is that of the map alone, and zero in the padding. At least 1, at most
            H and W, which is not checked: that would wait for the device. None: there is no padding.

    Returns:
        The result ``(B, N, C)`` in the dtype of v, and for :func:`backward`, in float32,
        ``f(k)^T (v - centre) / N (B, h, d, d)``, and ``(B, 2, C)``, the mean of f(k) and the centre of v.
        They share no memory.

    Raises:
        ValueError: if H * W is not N, or a parameter has another shape.
    """
    call = make_call(q, k, v, num_heads, hw_shape, plan, is_backward=False)
    check_parameters(call, positions, scale, dwc_weight, dwc_bias, sizes)
    if plan is None:
        tensors = q, k, v, positions, scale, dwc_weight, dwc_bias
        call = _tuned(call, q, lambda: forward_trial(forward, tensors, num_heads, hw_shape, eps))
    scale, dwc_weight = _contiguous(scale), _contiguous(dwc_weight)
    with torch.cuda.device_of(q):
        norms = _row_norms(call, q, k, positions, scale, eps, sizes)
        kv, means = _reduce_keys(call, k, v, positions, scale, norms, eps, sizes)
        moved_kv, moved_means = empty(*kv.shape, like=kv), empty(*means.shape, like=means)
        out = _tokens(call, v.dtype, v, sizes)
        plan = call.plan
        regions = call.regions(plan.attend_warps, plan.columns, plan.attend_block, call.groups)
        run(
            kernels_forward.attend,
            (call.B * call.groups, regions.count),
            *strided(q),
            *strided(v),
            scale,
            norms,
            means,
            kv,
            moved_means,
            moved_kv,
            dwc_weight,
            dwc_bias,
            out,
            call.H,
            call.W,
            sizes,
            regions.rows,
            eps,
            **_constants(call),
            **_products(call),
            **regions.constants,
            BLOCK=regions.block,
            K=_kernel_size(dwc_weight) if plan.fused_convolution else 0,
            HAS_BIAS=dwc_bias is not None,
            HAS_SCALE=scale is not None,
            HAS_SIZES=sizes is not None,
            num_warps=plan.attend_warps,
            num_stages=plan.stages,
        )
        if dwc_weight is not None and not plan.fused_convolution:
            _convolve(call, v, dwc_weight, dwc_bias, out, sizes, flip=False)
    return out, moved_kv, moved_means


@torch.no_grad()
def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor | None,
    scale: Tensor | None,
    dwc_weight: Tensor | None,
    dwc_bias: Tensor | None,
    kv: Tensor,
    means: Tensor,
    num_heads: int,
    hw_shape: tuple[int, int],
    eps: float,
    needs: tuple[bool, ...],
    plan: Plan | None = None,
    sizes: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of :func:`forward`.

    Args:
        grad_out: gradient of the result, ``(B, N, C)``.
        kv, means: from :func:`forward`; the other arguments are its own.
        needs: which of q, k, v, positions, scale, dwc_weight and dwc_bias need a gradient.
        sizes: those of :func:`forward`.

    Returns:
        Their gradients, each in the shape and dtype of its tensor, None where not needed. They share no
        memory.

    Raises:
        ValueError: if H * W is not N.
    """
    call = make_call(q, k, v, num_heads, hw_shape, plan, is_backward=True)
    if plan is None:
        default, tensors = call.plan, (q, k, v, positions, scale, dwc_weight, dwc_bias)
        call = _tuned(
            call,
            q,
            lambda: backward_trial(
                forward, backward, tensors, num_heads, hw_shape, eps, needs, default
            ),
        )
    needs_q, needs_k, needs_v, needs_positions, needs_scale, needs_weight, needs_bias = needs
    scale, dwc_weight = _contiguous(scale), _contiguous(dwc_weight)
    d_q = d_k = d_v = d_scale = d_taps = None
    with torch.cuda.device_of(q):
        if any(needs[:5]):
            # Positions are often wider than keys under AMP, and summed over the batch: float16 might not
            # hold the single gradients.
            k_dtype = torch.float32 if needs_positions and k.dtype == torch.float16 else k.dtype
            d_q, d_k, d_v, d_scale = _attention_gradients(
                call, grad_out, q, k, v, positions, scale, dwc_weight, kv.contiguous(),
                means.contiguous(), eps, sizes, k_dtype,
            )  # fmt: skip
        if needs_weight or needs_bias:
            d_taps = _depthwise_gradients(call, grad_out, v, dwc_weight, sizes)
        sums = _sum_parameters(
            call,
            (d_taps, dwc_weight if needs_weight else None, dwc_bias if needs_bias else None),
            (d_scale, scale if needs_scale else None),
            (d_k, positions if needs_positions else None),
        )
    return (
        d_q if needs_q else None,
        d_k.to(k.dtype) if needs_k else None,
        d_v if needs_v else None,
        *sums,
    )


def _tokens(call: Call, dtype: torch.dtype, like: Tensor, sizes: Tensor | None) -> Tensor:
    """``(B, N, C)`` for a kernel to write, who leaves out the padding."""
    shape = (call.B, call.N, call.C)
    if sizes is None:
        return empty(*shape, like=like, dtype=dtype)
    return torch.zeros(shape, dtype=dtype, device=like.device)


def _pitch(call: Call, sizes: Tensor | None) -> int | None:
    """Width of a map with padding, for kernels that need none else."""
    return None if sizes is None else call.W


def _tuned(call: Call, q: Tensor, trial: Callable[[], Trial]) -> Call:
    """The call with the fastest plan that is known for its kind."""
    direction = "backward" if call.is_backward else "forward"
    key = make_key(direction, call.B, call.N, call.W, call.C, call.heads, call.operand)
    plan = tuner.plan(key, call.plan, q, trial)
    return call if plan is call.plan else replace(call, plan=plan)


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _kernel_size(dwc_weight: Tensor | None) -> int:
    return 0 if dwc_weight is None else dwc_weight.shape[-1]


def _heads(call: Call) -> dict[str, Any]:
    """Compile-time arguments of all kernels that walk over the tokens."""
    return dict(HEADS=call.heads, HEAD_DIM=call.head_dim, D=head_block(call.head_dim))


def _constants(call: Call) -> dict[str, Any]:
    """Those of the kernels that need C too."""
    return dict(C=call.C, **_heads(call))


def _products(call: Call) -> dict[str, Any]:
    """Compile-time arguments of the kernels with products, for some of the heads each."""
    return dict(GROUP=call.group, OPERAND=OPERANDS[call.operand])


def _row_norms(
    call: Call,
    q: Tensor,
    k: Tensor,
    positions: Tensor | None,
    scale: Tensor | None,
    eps: float,
    sizes: Tensor | None,
) -> Tensor | None:
    """Norms of queries and keys, ``(B, 2, N, 2)``, for programs that see one head only."""
    if call.groups == 1:
        return None
    norms = empty(call.B, 2, call.N, 2, like=q)
    run(
        kernels_forward.row_norms,
        (call.tiles(call.plan.norm_block), call.B, 2),
        *strided(q),
        *strided(k),
        *strided(k if positions is None else positions),
        scale,
        norms,
        call.N,
        sizes,
        _pitch(call, sizes),
        eps,
        **_heads(call),
        BLOCK=call.plan.norm_block,
        HAS_POSITIONS=positions is not None,
        HAS_SCALE=scale is not None,
        HAS_SIZES=sizes is not None,
        num_warps=call.plan.norm_warps,
    )
    return norms


def _reduce_keys(
    call: Call,
    k: Tensor,
    v: Tensor,
    positions: Tensor | None,
    scale: Tensor | None,
    norms: Tensor | None,
    eps: float,
    sizes: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``f(k)^T (v - centre) / N (B, h, d, d)``; mean of f(k) and centre of v ``(B, 2, C)``."""
    splits, tiles_per_split = call.splits(call.plan.block)
    means = empty(call.B, 2, call.C, like=k)
    kv = empty(call.B, splits, call.heads, call.head_dim, call.head_dim, like=k)
    k_mean = means if splits == 1 else empty(call.B, splits, call.C, like=k)
    run(
        kernels_forward.reduce_keys,
        (call.B * call.groups, splits),
        *strided(k),
        *strided(v),
        *strided(k if positions is None else positions),
        scale,
        norms,
        means,
        kv,
        k_mean,
        2 * call.C if splits == 1 else call.C,
        call.N,
        sizes,
        _pitch(call, sizes),
        tiles_per_split,
        eps,
        **_constants(call),
        **_products(call),
        BLOCK=call.plan.block,
        SAMPLES=call.plan.samples,
        HAS_POSITIONS=positions is not None,
        HAS_SCALE=scale is not None,
        HAS_SIZES=sizes is not None,
        num_warps=call.plan.warps,
        num_stages=call.plan.stages,
    )
    return _sum_splits(kv, k_mean, means), means


def _attention_gradients(
    call: Call,
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor | None,
    scale: Tensor | None,
    dwc_weight: Tensor | None,
    kv: Tensor,
    means: Tensor,
    eps: float,
    sizes: Tensor | None,
    k_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, and the rows ``(..., C)`` whose sum times a factor is that of the scale."""
    plan = call.plan
    splits, tiles_per_split = call.splits(plan.query_block)
    queries = (*strided(q), *strided(grad_out), scale)
    saved = (means, kv)
    has_scale = scale is not None
    norms = None
    if call.groups > 1:
        norms = empty(call.B, call.N, 3, like=q)
        run(
            kernels_backward.query_norms,
            (call.tiles(plan.norm_block), call.B),
            *queries,
            *saved,
            norms,
            call.N,
            sizes,
            _pitch(call, sizes),
            eps,
            **_constants(call),
            BLOCK=plan.norm_block,
            HAS_SCALE=has_scale,
            HAS_SIZES=sizes is not None,
            OPERAND=OPERANDS[call.operand],
            num_warps=plan.norm_warps,
        )
    d_q = _tokens(call, q.dtype, q, sizes)
    d_kv = empty(call.B, splits, call.heads, call.head_dim, call.head_dim, like=q)
    d_k_mean = empty(call.B, splits, call.C, like=q)
    regions = call.regions(plan.key_warps, plan.columns, plan.key_block, call.groups)
    d_scale = empty(call.B * (splits + regions.count), call.C, like=q)
    run(
        kernels_backward.backward_queries,
        (call.B * call.groups, splits),
        *queries,
        norms,
        *saved,
        d_q,
        d_kv,
        d_k_mean,
        d_scale,
        call.N,
        sizes,
        _pitch(call, sizes),
        tiles_per_split,
        eps,
        **_constants(call),
        **_products(call),
        BLOCK=plan.query_block,
        HAS_SCALE=has_scale,
        HAS_SIZES=sizes is not None,
        num_warps=plan.query_warps,
        num_stages=plan.backward_stages,
    )
    total = d_k_mean[:, 0] if splits == 1 else empty(call.B, call.C, like=q)
    d_kv, d_k_mean = _sum_splits(d_kv, d_k_mean, total), total
    keys = (
        *strided(k),
        *strided(v),
        *strided(k if positions is None else positions),
    )
    if call.groups > 1:
        run(
            kernels_backward.key_norms,
            (call.tiles(plan.norm_block), call.B),
            *keys,
            scale,
            means,
            d_kv,
            d_k_mean,
            norms,
            call.N,
            sizes,
            _pitch(call, sizes),
            eps,
            **_constants(call),
            BLOCK=plan.norm_block,
            HAS_POSITIONS=positions is not None,
            HAS_SCALE=has_scale,
            HAS_SIZES=sizes is not None,
            OPERAND=OPERANDS[call.operand],
            num_warps=plan.norm_warps,
        )
    d_k = _tokens(call, k_dtype, k, sizes)
    d_v = _tokens(call, v.dtype, v, sizes)
    run(
        kernels_backward.backward_keys,
        (call.B * call.groups, regions.count),
        *keys,
        *strided(grad_out),
        scale,
        norms,
        means,
        d_kv,
        d_k_mean,
        dwc_weight,
        d_k,
        d_v,
        d_scale[call.B * splits :],
        call.H,
        call.W,
        sizes,
        regions.rows,
        eps,
        **_constants(call),
        **_products(call),
        **regions.constants,
        BLOCK=regions.block,
        K=_kernel_size(dwc_weight) if plan.fused_convolution else 0,
        HAS_POSITIONS=positions is not None,
        HAS_SCALE=has_scale,
        HAS_SIZES=sizes is not None,
        num_warps=plan.key_warps,
        num_stages=plan.backward_stages,
    )
    if dwc_weight is not None and not plan.fused_convolution:
        _convolve(call, grad_out, dwc_weight, None, d_v, sizes, flip=True)
    return d_q, d_k, d_v, d_scale


def _convolution_regions(call: Call, columns: int) -> Regions:
    return call.regions(call.plan.depthwise_warps, columns, 0, call.heads)


def _convolve(
    call: Call,
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    sizes: Tensor | None,
    flip: bool,
) -> None:
    """Add the depthwise convolution of ``image`` to ``out``."""
    regions = _convolution_regions(call, call.plan.columns)
    run(
        kernels_forward.convolve,
        (call.B * call.heads, regions.count),
        *strided(image),
        weight,
        bias,
        out,
        call.H,
        call.W,
        sizes,
        regions.rows,
        **_constants(call),
        **regions.constants,
        K=_kernel_size(weight),
        HAS_BIAS=bias is not None,
        FLIP=flip,
        HAS_SIZES=sizes is not None,
        num_warps=call.plan.depthwise_warps,
    )


def _sum_splits(matrices: Tensor, vectors: Tensor, vector_sums: Tensor) -> Tensor:
    """``(B, splits, h, d, d)`` without the splits; ``vectors (B, splits, C)`` go into ``vector_sums``.

    Those are ``(B, C)``, or ``(B, 2, C)``, of which the first C are theirs. With one split they are there.
    """
    B, splits, heads, d, _ = matrices.shape
    if splits == 1:
        return matrices[:, 0]
    matrix_sums = empty(B, heads, d, d, like=matrices)
    block = 64
    run(
        kernels_forward.sum_splits,
        (B, ceil_div(heads * d * d, block) + ceil_div(heads * d, block)),
        matrices,
        matrix_sums,
        vectors,
        vector_sums,
        vector_sums.stride(0),
        splits,
        MATRIX_SIZE=heads * d * d,
        VECTOR_SIZE=heads * d,
        BLOCK_SPLITS=32,
        BLOCK=block,
    )
    return matrix_sums


def _depthwise_gradients(
    call: Call, grad_out: Tensor, v: Tensor, dwc_weight: Tensor, sizes: Tensor | None
) -> Tensor:
    """Parts of the gradients of weight and bias, ``(splits, K*K + 1, d)``, float32."""
    K = _kernel_size(dwc_weight)
    regions = _convolution_regions(call, call.plan.depthwise_columns)
    items = call.B * call.heads * regions.count
    per_split = ceil_div(items, min(items, call.programs))
    splits = ceil_div(items, per_split)
    d_taps = empty(splits, K * K + 1, call.head_dim, like=v)
    run(
        kernels_backward.backward_depthwise,
        (splits,),
        *strided(v),
        *strided(grad_out),
        d_taps,
        regions.count,
        items,
        per_split,
        call.H,
        call.W,
        sizes,
        regions.rows,
        **_heads(call),
        **regions.constants,
        K=K,
        HAS_SIZES=sizes is not None,
        num_warps=call.plan.depthwise_warps,
    )
    return d_taps


def _sum_parameters(
    call: Call,
    taps: tuple[Tensor | None, Tensor | None, Tensor | None],
    scales: tuple[Tensor | None, Tensor | None],
    keys: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of positions, scale, weight and bias, each from its parts.

    Args:
        taps: parts of weight and bias, and both; a parameter that needs no gradient is None.
        scales: parts of the scale, and the scale.
        keys: gradient of the keys, and the positions.
    """
    d_taps, weight, bias = taps
    scale_parts, scale = scales
    d_k, positions = keys
    d_positions, d_scale, d_weight, d_bias = (
        None if x is None else empty(*x.shape, like=x, dtype=x.dtype)
        for x in (positions, scale, weight, bias)
    )
    summands = 1 if positions is None else d_k.shape[0] // positions.shape[0]
    size = 0 if positions is None else positions.numel()
    K = 0 if d_taps is None else int((d_taps.shape[1] - 1) ** 0.5)
    block, positions_block = 32, 1024
    tap_blocks = 0 if d_taps is None else ceil_div(d_taps[0].numel(), block)
    scale_blocks = 0 if scale is None else ceil_div(call.C, block)
    blocks = tap_blocks + scale_blocks + ceil_div(size, positions_block)
    if blocks:
        run(
            kernels_backward.sum_parameters,
            (blocks,),
            d_taps,
            0 if d_taps is None else d_taps.shape[0],
            d_weight,
            d_bias,
            scale_parts,
            0 if scale is None else scale_parts.shape[0],
            scale,
            d_scale,
            d_k,
            d_positions,
            summands,
            size,
            C=call.C,
            HEAD_DIM=call.head_dim,
            K=K,
            HAS_WEIGHT=weight is not None,
            HAS_BIAS=bias is not None,
            HAS_POSITIONS=positions is not None,
            TAP_BLOCKS=tap_blocks,
            SCALE_BLOCKS=scale_blocks,
            BLOCK_ROWS=32,
            BLOCK=block,
            POSITIONS_BLOCK=positions_block,
        )
    return d_positions, d_scale, d_weight, d_bias
