"""Focused linear attention on the CPU, in tiles that stay in the cache.

What the plain version costs on a CPU is not arithmetic but fresh memory: each of its some twenty
operations writes a tensor of all tokens, and the first touch of every page of it is a fault. Here a few
thousand tokens at a time go through all operations in buffers that are used again, so that only the
results are written to fresh memory:

- ``forward``: two passes, keys and values, then queries (the sums over the keys must be complete before
  the first query); the depthwise convolution is added tile by tile, while the output is in the cache;
- ``backward``: written by hand. It keeps q, k, v and the sums over the keys, nothing of the feature
  map, and recomputes that per tile. The gradient of a row's norm needs sums over the row only;
- ``layer``: at inference the projections are part of the tiles too: neither q nor k ever exists as a
  whole.

A positive factor per row of q cancels but for the eps of the normaliser, so q is never brought back to
its norm: with u the cube of any multiple of q, ``out = u·KV / (u·mean(K) + eps·|u|/|q|)``.

Tried and dropped: cubing without bringing the rows to one length saves one of some twelve passes, but
rows of 1e-7 or 1e6 leave the range of float32 in the sixth powers; dividing by the largest entry costs
one pass more. ``einsum`` for row sums is three times slower than a product and a sum.
"""
