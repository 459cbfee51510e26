"""Focused linear attention in Triton kernels: fp32, fp16 and bf16, forward and backward, p = 3.

Nothing here imports Triton until a kernel is asked for. No time or bandwidth was measured: there was no GPU.
What was checked without one: values and gradients through Triton's interpreter, with the operands of products
cut to tf32 as the matrix units cut them; and that Triton 3.6 and 3.9 compile the kernels for an H200 (sm_90),
where the default plans were chosen by the registers that its assembler reports (at 16 bits at most 224 bytes
spilt per thread, mostly none).

**Bytes moved.** U is one tensor ``(B, N, C)``. Eager execution of the equation moves about 50 U forward. Here

==========================  =================================================  =========
kernel                      reads and writes                                   U
==========================  =================================================  =========
``reduce_keys``             k, v, positions                                    2 (+1/B)
``attend``                  q, v; out                                          3
``backward_queries``        q, grad; d_q                                       3
``backward_keys``           k, v, positions, grad; d_k, d_v                    6 (+1/B)
``backward_depthwise``      v, grad                                            2
sum of d_k over the batch   d_k; d_positions                                   1 (+1/B)
==========================  =================================================  =========

that is 5-6 U forward and 17-20 U with backward. With more than three heads, or more than 8192 elements in
their d x d sums, ``key_norms`` and ``query_norms`` read k once and q and grad once more (+1 and +2 U).

**Why these fusions.**

- Norms span all channels of a row and the sums k'^T v are per head. A program that holds the sums of all
  heads reads each row once. Where they do not fit into registers, every head has its own programs, and what
  the heads share is computed once by a kernel of its own: computing it again in each head's programs costs
  more arithmetic than the memory could hide (about 20 operations per element are the break-even).
- No norm is stored for the queries: a positive scale of a row of q cancels, but for the eps.
- Splits of the tokens are summed in a second kernel, always in the same order, not by atomics: results are
  the same bit for bit in every run.
- The depthwise convolution is added before the only write of the output. K*K reads per value from the caches
  would make it arithmetic-bound; a tile of several rows reads each value once per column of the kernel for
  all of its rows. ``Plan.fused_convolution=False`` is the comparison with torch's convolution.
- The weight gradient of the convolution keeps all K*K sums of 16 channels in registers, so that both of its
  inputs are read once. torch's ``convolution_backward`` would need the weight repeated over the heads, has
  other memory formats in mind and need not be deterministic.

**Numbers.** All arithmetic is float32; products of matrices are ``ieee`` for float32 inputs and tf32 for
16-bit inputs: float16 would overflow on k' of large rows, bfloat16 would round it to three digits.

- Rows are scaled by their largest entry before they are cubed, so that no power over- or underflows; the sums
  of squares and of sixth powers are rescaled on the way when a larger entry comes.
- ``kv`` is that of ``v - centre``, the centre being the mean of up to 256 tokens. The centre's share of the
  output is exact, and the gradients of q and k are no longer small differences of large numbers: for one
  token, or for equal tokens, they are of the order of eps, and were noise without this.
- Operands are rounded to tf32. Left to the matrix units, which cut, the output for 4097 random tokens was
  1.2 % off, because what attention averages over them is small and the cut does not average out. For the same
  reason the centre is a multiple of the last digit that tf32 has for the largest value.

**Considered and dropped.** Heads x splits programs that recompute all norms (h times the arithmetic); norms
first for all layers (one more read of k where it is not needed); an accumulator of C x C with the other heads
masked (h times the matrix work, 64 registers more at C = 128); several heads per program beyond the limit
above (spills: 1.6 KB per thread with 12 heads); attention first and convolution added into its accumulators
(the layout of the matrix units would spread over all loads of v); specialising on sizes (strides are passed
in units of eight elements instead, so that one compilation serves all images).
"""

from importlib import import_module
from typing import Any

from .support import available, failure, give_up, supported, unavailable_reason, warn

__all__ = [
    "available",
    "backward",
    "failure",
    "forward",
    "give_up",
    "supported",
    "unavailable_reason",
    "warn",
]


def __getattr__(name: str) -> Any:
    if name not in ("forward", "backward"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Kept, so that calls find it at once.
    globals()[name] = function = getattr(import_module(".launch", __name__), name)
    return function
