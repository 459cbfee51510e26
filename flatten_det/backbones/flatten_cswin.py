"""FLatten-CSwin, and CSwin itself as its softmax baseline."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mmengine.registry import MODELS
from torch import Tensor, nn

from ..attention.layer_norm import layer_norm
from .base import PyramidBackbone
from .options import NUM_STAGES, check_options
from .softmax_attention import CrossShapedAttention


# Both spellings are in use for CSWin.
@MODELS.register_module(name=["FLattenCSwin", "FLattenCSWin"])
class FLattenCSwin(PyramidBackbone):
    """CSwin with focused linear attention in its first stages (arXiv 2308.00442; CSwin: 2107.00652).

    One LayerNorm an output map (``norm1`` … ``norm4``): the last one is the checkpoint's final norm,
    the others start at identity.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, or a dict that changes single fields (``embed_dims``
            of the first stage, ``depths``, ``num_heads``) of ``base`` (default ``'tiny'``). CSwin itself
            has ``depths=(1, 2, 21, 1)`` in its tiny and ``(2, 4, 32, 2)`` in its base model.
        out_indices, attn_types, options: see :class:`.base.DenseBackbone`; the softmax attention is that
            in cross-shaped windows (in the last stage: over the whole map).
        split_size: width of the stripes in the softmax stages, in tokens (the models pretrained at
            384: ``(1, 2, 12, 12)``). The last value is not used.
        la_window_size: windows of the linear stages in tokens; None: the whole map.
        mlp_ratio: hidden channels of the MLP / channels.
    """

    arch_zoo: ClassVar[dict[str, dict]] = {
        "tiny": {"embed_dims": 64, "depths": (2, 4, 18, 1), "num_heads": (2, 4, 8, 16)},
        "small": {"embed_dims": 64, "depths": (2, 4, 32, 2), "num_heads": (2, 4, 8, 16)},
        "base": {"embed_dims": 96, "depths": (3, 6, 29, 2), "num_heads": (4, 8, 16, 32)},
    }
    norm_eps = 1e-5
    patches = ((4, 7, 2), (2, 3, 1))

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "tiny",
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        attn_types: Sequence[str] = ("L", "L", "S", "S"),
        split_size: Sequence[int] = (1, 2, 7, 7),
        la_window_size: int | None = None,
        mlp_ratio: float = 4.0,
        **options: Any,
    ) -> None:
        check_options(locals())
        super().__init__(arch, attn_types, out_indices, **options)
        self.split_size, self.la_window_size = split_size, la_window_size
        self.add_stages([mlp_ratio] * NUM_STAGES)
        for stage in self.out_indices:
            setattr(self, f"norm{stage + 1}", nn.LayerNorm(self.feature_dims[stage]))
        self.finish()

    def make_attention(self, stage: int, index: int) -> nn.Module:
        if self.attn_types[stage] == "L":
            return self.linear_attention(stage, window_size=self.la_window_size, lepe_kernel_size=3)
        heads = self.fields["num_heads"][stage]
        split = None if stage == NUM_STAGES - 1 else self.split_size[stage]
        return CrossShapedAttention(self.feature_dims[stage], heads, split, self.qkv_bias)

    def to_output(self, stage: int, x: Tensor) -> Tensor:
        return layer_norm(x, getattr(self, f"norm{stage + 1}"))

    def own_name(self, name: str) -> str | None:
        """Stages and merges are numbered like PVT's; the final norm becomes ``norm4``."""
        for pattern, replacement in _RENAMES:
            name, found = re.subn(rf"^{pattern}", replacement, name)
            if found:
                break
        # A linear stage has one branch only: no list of convolutions.
        stage = re.match(r"block([1-4])\.", name)
        if stage and self.attn_types[int(stage[1]) - 1] == "L":
            name = name.replace(".lepe.0.", ".lepe.")
        return super().own_name(name)

    def optional_keys(self) -> set[str]:
        own = [stage for stage in self.out_indices if stage < NUM_STAGES - 1]
        return {f"norm{stage + 1}.{part}" for stage in own for part in ("weight", "bias")}


# Official name -> ours, the first that matches. A linear stage has one branch, whose parameters move up.
_RENAMES = (
    (r"stage1_conv_embed\.0\.", "patch_embed1.proj."),
    (r"stage1_conv_embed\.2\.", "patch_embed1.norm."),
    (r"merge(\d)\.conv\.", lambda m: f"patch_embed{int(m[1]) + 1}.proj."),
    (r"merge(\d)\.norm\.", lambda m: f"patch_embed{int(m[1]) + 1}.norm."),
    (r"stage(\d)\.(\d+)\.(qkv|proj)\.", r"block\1.\2.attn.\3."),
    (r"stage(\d)\.(\d+)\.attns\.(\d)\.get_v\.", r"block\1.\2.attn.lepe.\3."),
    (r"stage(\d)\.(\d+)\.attns\.0\.", r"block\1.\2.attn."),
    (r"stage(\d)\.", r"block\1."),
    (r"norm\.", "norm4."),
)
