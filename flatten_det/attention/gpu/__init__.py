"""Focused linear attention in Triton kernels: fp32, fp16 and bf16, forward and backward, p = 3.

Nothing here imports Triton until a kernel is asked for. An H200 confirmed an earlier version of the kernels
(November 2026), which was slower than its memory allows by ten times and more: instructions and waiting were
what limited it. This version was designed from the machine code, which needs no GPU, and has not run on one:
``tests/attention/gpu/test_machine_code.py`` prints registers, barriers and instructions per element, and
``pytest -m gpu`` checks values and gradients on a card.

**Bytes moved.** U is one tensor ``(B, N, C)``. Eager execution of the equation moves about 50 U forward. Here

==========================  =================================================  =========
kernel                      reads and writes                                   U
==========================  =================================================  =========
``reduce_keys``             k, v, positions                                    2 (+1/B)
``attend``                  q, v; out (twice, the second time from the cache)  3
``backward_queries``        q, grad; d_q                                       3
``backward_keys``           k, v, positions, grad; d_k, d_v (twice)            6 (+1/B)
``backward_depthwise``      v, grad                                            2
``sum_parameters``          d_k; d_positions                                   1 (+1/B)
==========================  =================================================  =========

that is 5-6 U forward and 17-20 U with backward. With many heads ``row_norms``, ``query_norms`` and
``key_norms`` read q and k once, q and grad once, and k and v once more.

**Why like this.**

- Norms span all channels of a row and the sums f(k)^T v are per head. A program that has all heads reads
  each row once, and keeps it in registers. Where the sums of all heads do not fit there, every head has its
  own programs, and what the heads share is computed once by a kernel of its own.
- No norm is needed for the queries: a positive scale of a row of q cancels, but for the eps.
- Splits of the tokens are summed in a second kernel, always in the same order, not by atomics: results are
  the same bit for bit in every run.
- The convolution walks down the rows of the map. Of K rows of outputs all sums are in registers, and so are
  the K*K taps: outputs of 4 columns need K + 3 values of a row, and 25 multiply-adds cost 40 instructions.
  It is the second half of the kernels that attend, which is a launch less and finds their output in the
  cache. Nothing passes through shared memory.
- The gradient of its weight walks alike, with K rows of gradients and all K*K sums in registers.
- Rows that are combined with products come into their registers through a product with the identity: the
  matrix units leave their results in an arrangement of their own, and everything would pass through shared
  memory, with two barriers each time, to get from the one into the other.
- Sums over the tokens of a tile are products with ones, for the same reason.

**Padding.** Maps of several sizes in one batch have their heights and widths as an argument. Kernels that
walk over tokens count those of a map's own rows and columns, kernels that walk over regions cut its own map,
and both step from row to row by the width of the padded one. So padding is neither read nor written; its
zeros are filled in before (one operator forward, three backward, 1 U each). It takes 1-3 % more instructions
per element, for the divisions, and none where there is no padding.

**Numbers.** All arithmetic is float32; products of matrices have operands of 16 bits where the inputs do.

- Rows are divided by their norms before they are cubed, so that no power over- or underflows.
- ``kv`` and the mean of f(k) are sums over the same rounded f(k): weights of the attention sum to one.
- ``kv`` is that of ``v - centre``, the centre being the mean of some tokens, and later of all as the keys
  weigh them. The centre's share of the output is exact, what is rounded is small, and the gradients of q and
  k are no small differences of large numbers: for equal tokens they are of the order of eps.
- float16 has nine decades. Factors of rows, and of matrices, are taken out of operands and come back in
  float32; the largest operand is 16384.

**Considered and dropped.** Products in tf32 (their operands cannot be transposed in shared memory: 51 loads
and 24 stores per tile); all heads in a program backward (spills of 1 KB per thread with two heads); atomics;
specialising on sizes (strides are passed in units of eight elements instead, so that one compilation serves
all images).
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
