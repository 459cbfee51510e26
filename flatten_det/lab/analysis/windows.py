"""Sets of tokens that attend to each other, as queries, keys and values in float64."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Convolution:
    """A depthwise convolution of the values, added to what the attention gives.

    Attributes:
        kernels: ``(h, d, K, K)`` for each head and channel; odd K, zero padding.
        bias: ``(h, d)``.
    """

    kernels: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Windows:
    """G windows of the same shape, in each of which every query may attend to every key.

    Attention over the whole map is one window. c channels are those of the h heads here, d = c / h.

    Attributes:
        heads: the layer's numbers of these heads, which say where in its channels they stand.
        queries: ``(G, n, c)``, before any scale, softmax or feature map.
        keys: ``(G, m, c)``, likewise, with learned positions added; m < n where they are reduced.
        values: ``(G, m, c)``.
        tokens: ``(G, n)``, the index of each query in the map's row-major tokens; -1: padding.
        query_shape: ``(height, width)`` of a window, n = height * width.
        key_shape: the same for keys.
        feature_scale: ``(c,)``, what :math:`softplus(s)` of the focused map divides by; None: nothing.
        score_bias: ``(G or 1, h, n, m)``, added to the scores of softmax attention; -inf: no attention.
        convolutions: of the values.
        power: p, where the layer is linear attention; None: it is softmax attention.
    """

    heads: tuple[int, ...]
    queries: Tensor
    keys: Tensor
    values: Tensor
    tokens: Tensor
    query_shape: tuple[int, int]
    key_shape: tuple[int, int]
    feature_scale: Tensor | None = None
    score_bias: Tensor | None = None
    convolutions: tuple[Convolution, ...] = ()
    power: float | None = None

    @property
    def head_dim(self) -> int:
        """d, the channels of a head."""
        return self.queries.shape[-1] // len(self.heads)

    def of_head(self, x: Tensor, window: int, position: int) -> Tensor:
        """``(G, t, c)`` -> ``(t, d)`` of a window and of the head at a position in ``heads``."""
        d = self.head_dim
        return x[window, :, position * d : (position + 1) * d]
