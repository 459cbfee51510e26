"""Launching the kernels: forward and backward of one attention."""

from typing import Any

import torch
import triton
from torch import Tensor

from ..reference import depthwise_values
from . import kernels_backward, kernels_forward
from .call import Call, ceil_div, check_parameters, make_call, strided
from .plan import Plan
from .scratch import empty

# Output channels of a program of the depthwise weight's gradient: what the registers have room for.
DEPTHWISE_CHANNELS = 16


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
        plan: block sizes; None: the table's.

    Returns:
        The result ``(B, N, C)`` in the dtype of v, and for :func:`backward`, in float32,
        ``phi(k)^T (v - centre) / N (B, h, d, d)``, with a centre of v that it finds again, and the
        mean of ``phi(k)``, ``(B, h, d)``.

    Raises:
        ValueError: if H * W is not N, or a parameter has another shape.
    """
    call = make_call(q, k, v, num_heads, hw_shape, plan)
    check_parameters(call, positions, scale, dwc_weight, dwc_bias)
    with torch.cuda.device_of(q):
        centre, inverse_scale, taps = _prepare(call, v, scale, dwc_weight)
        kv, k_mean = _reduce_keys(call, k, v, positions, inverse_scale, centre, eps)
        fused = call.plan.fused_convolution
        out = empty(call.B, call.N, call.C, like=v, dtype=v.dtype)
        run(
            kernels_forward.attend,
            (
                call.B * ceil_div(call.heads, call.heads_per_program(call.plan.rows)),
                call.band_tiles(call.plan.rows),
            ),
            *strided(q),
            *strided(v),
            inverse_scale,
            centre,
            kv,
            k_mean,
            taps,
            dwc_bias,
            out,
            call.H,
            call.W,
            call.heads_per_program(call.plan.rows),
            eps,
            **call.constants,
            BLOCK=call.plan.columns,
            ROWS=call.plan.rows,
            K=_kernel_size(dwc_weight) if fused else 0,
            HAS_BIAS=fused and dwc_weight is not None and dwc_bias is not None,
            HAS_SCALE=scale is not None,
            num_warps=call.plan.band_warps,
        )
        if dwc_weight is not None and not fused:
            weight = dwc_weight.to(v.dtype)
            bias = None if dwc_bias is None else dwc_bias.to(v.dtype)
            out += depthwise_values(v, weight, bias, num_heads, hw_shape)
    return out, kv, k_mean


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
    k_mean: Tensor,
    num_heads: int,
    hw_shape: tuple[int, int],
    eps: float,
    needs: tuple[bool, ...],
    plan: Plan | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of :func:`forward`.

    Args:
        grad_out: gradient of the result, ``(B, N, C)``.
        kv, k_mean: from :func:`forward`; the other arguments are its own.
        needs: which of q, k, v, positions, scale, dwc_weight and dwc_bias need a gradient.

    Returns:
        Their gradients, each in the shape and dtype of its tensor, None where not needed.

    Raises:
        ValueError: if H * W is not N.
    """
    call = make_call(q, k, v, num_heads, hw_shape, plan)
    needs_q, needs_k, needs_v, needs_positions, needs_scale, needs_weight, needs_bias = needs
    gradients: list[Tensor | None] = [None] * 7
    with torch.cuda.device_of(q):
        if any(needs[:5]):
            centre, inverse_scale, taps = _prepare(call, v, scale, dwc_weight)
            # Positions are often wider than keys under AMP, and summed over the batch: float16 might not
            # hold the single gradients.
            k_dtype = torch.float32 if needs_positions and k.dtype == torch.float16 else k.dtype
            d_q, d_k, d_v, d_scale = _attention_gradients(
                call, grad_out, q, k, v, positions, inverse_scale, centre, taps, dwc_weight, kv, k_mean,
                eps, k_dtype,
            )  # fmt: skip
            gradients[0] = d_q if needs_q else None
            gradients[1] = d_k.to(k.dtype) if needs_k else None
            gradients[2] = d_v if needs_v else None
            if needs_positions:
                gradients[3] = _sum_to(d_k, positions)
            if needs_scale:
                slope = torch.sigmoid(scale.flatten().float()) * inverse_scale
                gradients[4] = (d_scale.sum(dim=0) * -slope).to(scale.dtype).view_as(scale)
        if dwc_weight is not None and (needs_weight or needs_bias):
            d_weight, d_bias = _depthwise_gradients(call, grad_out, v, dwc_weight)
            gradients[5] = d_weight.to(dwc_weight.dtype) if needs_weight else None
            gradients[6] = d_bias.to(dwc_bias.dtype) if needs_bias else None
    return tuple(gradients)


def _kernel_size(dwc_weight: Tensor | None) -> int:
    return 0 if dwc_weight is None else dwc_weight.shape[-1]


def _prepare(
    call: Call, v: Tensor, scale: Tensor | None, dwc_weight: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Centre of the values ``(B, C)``, 1 / softplus(scale) ``(C,)``, taps of the convolution ``(K*K, d)``."""
    K = _kernel_size(dwc_weight)
    centre = empty(call.B, call.C, like=v)
    inverse_scale = None if scale is None else empty(call.C, like=v)
    taps = None if dwc_weight is None else empty(K * K, call.head_dim, like=v)
    block = 32
    run(
        kernels_forward.prepare,
        (call.B + 1, ceil_div(call.C, block)),
        *strided(v),
        centre,
        None if scale is None else scale.contiguous(),
        inverse_scale,
        None if dwc_weight is None else dwc_weight.contiguous(),
        taps,
        call.B,
        call.N,
        C=call.C,
        HEAD_DIM=call.head_dim,
        K=K,
        HAS_SCALE=scale is not None,
        SAMPLES=call.plan.samples,
        PRECISION=call.plan.precision,
        BLOCK=block,
    )
    return centre, inverse_scale, taps


def _reduce_keys(
    call: Call,
    k: Tensor,
    v: Tensor,
    positions: Tensor | None,
    inverse_scale: Tensor | None,
    centre: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    splits, tiles_per_split = call.splits(call.plan.block)
    keys = (*strided(k), *strided(v), *strided(k if positions is None else positions))
    flags = dict(HAS_POSITIONS=positions is not None, HAS_SCALE=inverse_scale is not None)
    norms = None
    if call.groups > 1:
        norms = empty(call.B, 3, call.N, like=k)
        run(
            kernels_forward.key_norms,
            (call.B, call.tiles(call.plan.block)),
            *keys[:3],
            *keys[6:],
            inverse_scale,
            norms,
            call.N,
            eps,
            C=call.C,
            CHUNK=call.plan.chunk,
            BLOCK=call.plan.block,
            **flags,
            num_warps=call.plan.warps,
        )
    kv = empty(call.B, splits, call.heads, call.head_dim, call.head_dim, like=k)
    k_mean = empty(call.B, splits, call.heads, call.head_dim, like=k)
    run(
        kernels_forward.reduce_keys,
        (call.B * call.groups, splits),
        *keys,
        inverse_scale,
        norms,
        centre,
        kv,
        k_mean,
        call.N,
        tiles_per_split,
        eps,
        **call.constants,
        **flags,
        GROUP=call.plan.group,
        BLOCK=call.plan.block,
        num_warps=call.plan.warps,
        num_stages=call.plan.stages,
    )
    return _sum_splits(kv, k_mean)


def _attention_gradients(
    call: Call,
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor | None,
    inverse_scale: Tensor | None,
    centre: Tensor,
    taps: Tensor | None,
    dwc_weight: Tensor | None,
    kv: Tensor,
    k_mean: Tensor,
    eps: float,
    k_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, and the rows ``(..., C)`` whose sum times a factor is that of the scale."""
    splits, tiles_per_split = call.splits(call.plan.backward_block)
    queries = (*strided(q), *strided(grad_out))
    saved = (centre, kv.contiguous(), k_mean.contiguous())
    has_scale = inverse_scale is not None
    norms = None
    if call.groups > 1:
        norms = empty(call.B, 4, call.N, like=q)
        run(
            kernels_backward.query_norms,
            (call.B, call.tiles(call.plan.backward_block)),
            *queries,
            inverse_scale,
            *saved,
            norms,
            call.N,
            eps,
            **call.constants,
            BLOCK=call.plan.backward_block,
            HAS_SCALE=has_scale,
            num_warps=call.plan.warps,
        )
    shape = (call.B, call.N, call.C)
    d_q = empty(*shape, like=q, dtype=q.dtype)
    d_k = empty(*shape, like=k, dtype=k_dtype)
    d_v = empty(*shape, like=v, dtype=v.dtype)
    d_kv = empty(call.B, splits, call.heads, call.head_dim, call.head_dim, like=q)
    d_k_mean = empty(call.B, splits, call.heads, call.head_dim, like=q)
    d_scale = empty(call.B * (splits + call.band_tiles(call.plan.backward_rows)), call.C, like=q)
    run(
        kernels_backward.backward_queries,
        (call.B * call.groups, splits),
        *queries,
        inverse_scale,
        norms,
        *saved,
        d_q,
        d_kv,
        d_k_mean,
        d_scale[: call.B * splits],
        call.N,
        tiles_per_split,
        eps,
        **call.constants,
        GROUP=call.plan.group,
        BLOCK=call.plan.backward_block,
        HAS_SCALE=has_scale,
        num_warps=call.plan.warps,
        num_stages=call.plan.stages,
    )
    d_kv, d_k_mean = _sum_splits(d_kv, d_k_mean)
    run(
        kernels_backward.backward_keys,
        (
            call.B * ceil_div(call.heads, call.heads_per_program(call.plan.backward_rows)),
            call.band_tiles(call.plan.backward_rows),
        ),
        *strided(k),
        *strided(v),
        *strided(k if positions is None else positions),
        *strided(grad_out),
        inverse_scale,
        centre,
        d_kv,
        d_k_mean,
        taps,
        d_k,
        d_v,
        d_scale[call.B * splits :],
        call.H,
        call.W,
        call.heads_per_program(call.plan.backward_rows),
        eps,
        **call.constants,
        BLOCK=call.plan.columns,
        ROWS=call.plan.backward_rows,
        K=_kernel_size(dwc_weight),
        HAS_POSITIONS=positions is not None,
        HAS_SCALE=has_scale,
        num_warps=call.plan.band_warps,
    )
    return d_q, d_k, d_v, d_scale


def _sum_splits(matrices: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """``(B, splits, h, d, d)`` and ``(B, splits, h, d)`` without their splits."""
    B, splits, heads, d = vectors.shape
    if splits == 1:
        return matrices[:, 0], vectors[:, 0]
    matrix_sums = empty(B, heads, d, d, like=matrices)
    vector_sums = empty(B, heads, d, like=vectors)
    block = 64
    run(
        kernels_forward.sum_splits,
        (B, ceil_div(heads * d * d, block) + ceil_div(heads * d, block)),
        matrices,
        matrix_sums,
        vectors,
        vector_sums,
        splits,
        MATRIX_SIZE=heads * d * d,
        VECTOR_SIZE=heads * d,
        BLOCK_SPLITS=32,
        BLOCK=block,
    )
    return matrix_sums, vector_sums


def _depthwise_gradients(
    call: Call, grad_out: Tensor, v: Tensor, dwc_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the weight ``(d, 1, K, K)`` and the bias ``(d,)``, float32."""
    K = _kernel_size(dwc_weight)
    blocks = ceil_div(call.head_dim, DEPTHWISE_CHANNELS)
    items = call.B * call.heads * call.band_tiles(call.plan.backward_rows)
    per_split = ceil_div(items, min(items, ceil_div(call.programs, blocks)))
    splits = ceil_div(items, per_split)
    d_taps = empty(splits, K * K + 1, call.head_dim, like=v)
    run(
        kernels_backward.backward_depthwise,
        (splits, blocks),
        *strided(v),
        *strided(grad_out),
        d_taps,
        call.band_tiles(call.plan.backward_rows),
        items,
        per_split,
        call.H,
        call.W,
        HEADS=call.heads,
        HEAD_DIM=call.head_dim,
        BLOCK=call.plan.columns,
        ROWS=call.plan.backward_rows,
        CHANNELS=DEPTHWISE_CHANNELS,
        K=K,
        num_warps=call.plan.band_warps,
    )
    total = d_taps.sum(dim=0)
    weight = total[:-1].view(K, K, call.head_dim).permute(2, 1, 0).unsqueeze(1)
    return weight.contiguous(), total[-1]


def _sum_to(gradient: Tensor, positions: Tensor) -> Tensor:
    if positions.shape[0] == 1:
        gradient = gradient.sum(dim=0, keepdim=True, dtype=torch.float32)
    return gradient.to(positions.dtype)
