"""FLatten-Swin, and Swin itself as its softmax baseline."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from mmengine.registry import MODELS
from timm.models._manipulate import MATCH_PREV_GROUP
from torch import Tensor, nn

from ..attention.layer_norm import layer_norm
from ..attention.maps import pad_to_multiple
from .base import DenseBackbone
from .blocks import PatchEmbed, as_contiguous_image, computes_in_place
from .options import check_options
from .softmax_attention import ShiftedWindowAttention


class PatchMerging(nn.Module):
    """Halve the map: the four tokens of each 2x2 patch become one of twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """``(B, H*W, C)`` -> ``(B, H'*W', 2C)`` and ``(H', W')``, sizes rounded up."""
        B, _, C = x.shape
        x = pad_to_multiple(x.view(B, *hw_shape, C), (2, 2))
        height, width = x.shape[1] // 2, x.shape[2] // 2
        # Column-major within the patch, the order of the official weights.
        x = x.view(B, height, 2, width, 2, C).permute(0, 1, 3, 4, 2, 5)
        x = layer_norm(x.reshape(B, height * width, 4 * C), self.norm, for_product=True)
        return self.reduction(x), (height, width)


@MODELS.register_module()
class FLattenSwin(DenseBackbone):
    """Swin Transformer with focused linear attention in its first stages (arXiv 2308.00442; 2103.14030).

    One LayerNorm an output map (``norm0`` … ``norm3``): the last one is the checkpoint's final norm,
    the others start at identity.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, or a dict that changes single fields (``embed_dims``
            of the first stage, ``depths``, ``num_heads``) of ``base`` (default ``'tiny'``).
        out_indices, attn_types, options: see :class:`.base.DenseBackbone`; the softmax attention is that
            in shifted windows.
        window_size: of the softmax stages, in tokens (12 for the model pretrained at 384).
        la_window_size: windows of the linear stages in tokens; None: the whole map (Table 6's best).
        mlp_ratio: hidden channels of the MLP / channels.
    """

    arch_zoo: ClassVar[dict[str, dict]] = {
        "tiny": {"embed_dims": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
        "small": {"embed_dims": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
        "base": {"embed_dims": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    }
    norm_eps = 1e-5

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "tiny",
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        attn_types: Sequence[str] = ("L", "L", "S", "S"),
        window_size: int = 7,
        la_window_size: int | None = None,
        mlp_ratio: float = 4.0,
        **options: Any,
    ) -> None:
        check_options(locals())
        super().__init__(arch, attn_types, out_indices, **options)
        self.window_size, self.la_window_size = window_size, la_window_size
        self.patch_embed = PatchEmbed(self.in_channels, self.feature_dims[0], stride=4)
        self.layers = nn.ModuleList()
        for stage, dim in enumerate(self.feature_dims):
            self.layers.append(nn.ModuleDict({"blocks": self.make_blocks(stage, mlp_ratio)}))
            if stage < self.num_stages - 1:
                self.layers[stage]["downsample"] = PatchMerging(dim)
        for stage in self.out_indices:
            setattr(self, f"norm{stage}", nn.LayerNorm(self.feature_dims[stage]))
        self.finish()

    def make_attention(self, stage: int, index: int) -> nn.Module:
        if self.attn_types[stage] == "L":
            return self.linear_attention(stage, window_size=self.la_window_size)
        dim, heads = self.feature_dims[stage], self.fields["num_heads"][stage]
        shift = self.window_size // 2 if index % 2 else 0
        return ShiftedWindowAttention(dim, heads, self.window_size, shift, self.qkv_bias)

    def forward_images(self, x: Tensor) -> tuple[Tensor, ...]:
        inplace = computes_in_place(self, x)
        x, hw_shape = self.patch_embed(x)
        outs = []
        for stage, layer in enumerate(self.layers):
            for block in layer["blocks"]:
                x = block(x, hw_shape, inplace)
            if stage in self.out_indices:
                out = layer_norm(x, getattr(self, f"norm{stage}"))
                outs.append(as_contiguous_image(out, hw_shape))
            if "downsample" in layer:
                x, hw_shape = layer["downsample"](x, hw_shape)
        return tuple(outs)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        stem = r"^patch_embed"
        if coarse:
            return dict(stem=stem, blocks=[(r"^layers\.(\d)", None), (r"^norm(\d)", None)])
        return dict(
            stem=stem,
            blocks=[
                (r"^layers\.(\d)\.blocks\.(\d+)", None),
                (r"^layers\.(\d)\.downsample", MATCH_PREV_GROUP),
                (r"^norm(\d)", MATCH_PREV_GROUP),
            ],
        )

    def frozen_modules(self) -> Iterable[nn.Module | nn.Parameter]:
        if self.frozen_stages >= 0:
            yield self.patch_embed
        for stage in range(min(self.frozen_stages, self.num_stages)):
            yield self.layers[stage]
            if stage in self.out_indices:
                yield getattr(self, f"norm{stage}")

    def own_name(self, name: str) -> str | None:
        """The final norm becomes ``norm3``; masks and index tables are buffers."""
        if name.startswith("head.") or name.endswith((".relative_position_index", ".attn_mask")):
            return None
        return name.replace("norm.", "norm3.", 1) if name.startswith("norm.") else name

    def optional_keys(self) -> set[str]:
        own = [stage for stage in self.out_indices if stage < 3]
        return {f"norm{stage}.{part}" for stage in own for part in ("weight", "bias")}

    def is_beyond(self, name: str) -> bool:
        parts = name.split(".")
        if parts[0] == "norm3":
            return self.num_stages < 4
        if parts[0] != "layers" or len(parts) < 3 or not parts[1].isdigit():
            return False
        stage = int(parts[1])
        last = self.num_stages - 1
        return stage > last or (stage == last and parts[2] == "downsample")
