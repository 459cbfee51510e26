"""The layer around any implementation of the core."""

from collections.abc import Callable

from torch import Tensor

from ....attention import FocusedLinearAttention
from .cases import Case

Core = Callable[..., Tensor]


def build_layer(case: Case, core: Core | None = None) -> FocusedLinearAttention:
    """The layer of a case; with ``core`` in place of its own attention.

    Its learned grid has the size of the map, so that no candidate spends time on resizing it.
    """
    arguments = dict(
        dim=case.channels,
        num_heads=case.heads,
        grid_size=case.hw_shape,
        fused_qkv=case.fused_qkv,
    )
    return FocusedLinearAttention(**arguments) if core is None else _Layer(core, **arguments)


class _Layer(FocusedLinearAttention):
    """The same parameters, used plainly."""

    def __init__(self, core: Core, **arguments) -> None:
        super().__init__(**arguments)
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
