"""What the networks are made of: patch embedding, MLPs, and the pre-norm block around an attention.

At inference on the CPU they compute in place (:func:`computes_in_place`) and in tiles of whole rows of the
map, because the first touch of fresh memory costs more than arithmetic: the hidden activations of an MLP are
four to eight times as large as its tokens, and as a whole they would be fresh memory in every call.

In training, blocks can compute activations again in the backward pass instead of keeping them:

==============  ====================================================  =====================================
policy          computed again                                        kept in each block, in tensors (B, N, C)
==============  ====================================================  =====================================
``block``       the whole block                                       1: its input
``mlp``         the MLP and its norm                                  the attention's, and 1
``elementwise`` norms, activations, sums: all but matrix products,    what the products return
                attention and convolutions
==============  ====================================================  =====================================
"""

from collections.abc import Mapping
from functools import partial
from itertools import starmap
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.layers import Mlp as TimmMlp
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from ..attention import FocusedLinearAttention
from ..attention.eager import (
    has_hooks_or_own_forward,
    is_from_known_library,
    is_plain,
    is_plain_depthwise,
    is_plain_eager,
)
from ..attention.layer_norm import add_layer_norm, layer_norm, product_dtype
from ..attention.maps import Padding, are_numbers, as_image, as_tokens, strided_convolution
from ..attention.tiles import tiles
from .options import BLOCK, ELEMENTWISE, MLP

# A stage's blocks share their code: four stages with two kinds of blocks, in training and evaluation, with
# and without gradients. Torch's own limit of 8 would leave the rest uncompiled.
_COMPILED_VARIANTS = 64

# What selective checkpointing keeps.
_PRODUCTS = {
    "addmm",
    "mm",
    "bmm",
    "baddbmm",
    "convolution",
    "focused_linear_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
}


def computes_in_place(module: nn.Module, x: Tensor) -> bool:
    """Whether the tensors between the parts of ``module``, called with ``x``, are nobody else's.

    Autograd needs them as they were, so may hooks and strangers' modules that were given one, and a compiler
    plans the memory itself. Other devices than the CPU keep freed memory at hand: nothing to gain, and
    looking for hooks takes a millisecond in a large backbone.
    """
    if not _is_cpu_inference(x):
        return False
    parts = list(module.modules())[1:]  # Its own hooks are given its inputs and outputs alone.
    return all(map(is_from_known_library, map(type, parts))) and not any(
        map(has_hooks_or_own_forward, parts)
    )


def _is_cpu_inference(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.is_grad_enabled() and is_plain_eager()


def as_contiguous_image(tokens: Tensor, hw_shape: tuple[int, int]) -> Tensor:
    """``(B, H*W, C)`` -> ``(B, C, H, W)``, contiguous.

    The layout that everybody takes: compiled operators of mmcv read memory as if it had it.
    """
    image = as_image(tokens, hw_shape)
    if image.is_contiguous() or not _is_cpu_inference(tokens):
        return image.contiguous()
    # Tiles that stay in the cache transpose twice as fast.
    out = torch.empty(image.shape, dtype=tokens.dtype)
    for tile in list(tiles(len(tokens), hw_shape, tokens.shape[-1])):
        out[tile.batch, :, tile.rows] = image[tile.batch, :, tile.rows]
    return out


class PatchEmbed(nn.Module):
    """Project patches linearly, and normalise them: one token for every ``stride`` x ``stride`` pixels.

    Maps that the stride does not divide are padded with zeros at the bottom and right, so that the
    token map's size is rounded up.

    Args:
        patch_size: side of a patch; larger than the stride, patches overlap. None: the stride.
        padding: zeros around the map.
        norm: normalise the tokens; a plain ViT does not.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        stride: int,
        patch_size: int | None = None,
        padding: int = 0,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.geometry = (patch_size or stride, stride, padding)
        self.proj = nn.Conv2d(in_channels, embed_dims, *self.geometry)
        self.norm = nn.LayerNorm(embed_dims) if norm else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """``(B, C_in, H, W)`` -> tokens ``(B, H'*W', C)`` and ``(H', W')``, sizes rounded up."""
        patch, stride, padding = self.geometry
        if are_numbers(x.shape[2:]):
            missing = [
                max(0, (-(-size // stride) - 1) * stride + patch - 2 * padding - size)
                for size in x.shape[2:]
            ]
        else:
            # As much as any size may miss: of zeros beyond the last patch nothing is read.
            missing = [patch - 1 - 2 * padding] * 2
        # ONNX's older exporter takes the size of a convolution's result for fixed, unless its map was padded.
        if any(missing) or torch.jit.is_tracing():
            x = F.pad(x, (0, missing[1], 0, missing[0]))
        # The layout of tokens: maps of tokens have it already, and the result is tokens without a copy.
        layout = torch.channels_last
        if x.is_cuda and x.dtype == torch.float32 != product_dtype(x):
            x = x.to(product_dtype(x), memory_format=layout)  # Autocast's cast and ours.
        x = strided_convolution(self.proj, x.contiguous(memory_format=layout))
        tokens, hw_shape = as_tokens(x), tuple(x.shape[2:])
        if not self._overwrites(tokens):
            return layer_norm(tokens, self.norm), hw_shape
        for tile in list(tiles(len(tokens), hw_shape, tokens.shape[-1])):
            part = tokens[tile.batch, tile.tokens]
            part.copy_(self.norm(part))
        # No view of the map any more: the compiler tells views from what other blocks are given.
        return tokens.data, hw_shape

    def _overwrites(self, tokens: Tensor) -> bool:
        """Whether the norm can take the place of ``tokens``: the convolution's, and of the same dtype."""
        return (
            _is_cpu_inference(tokens)
            and tokens.is_contiguous()
            and all(map(is_plain, (self.proj, self.norm), (nn.Conv2d, nn.LayerNorm)))
            and self.norm.weight is not None
            and self.norm.weight.dtype == tokens.dtype
        )


class TokenMlp(TimmMlp):
    """Two linear layers with a GELU in between, for each token by itself; arguments are timm's."""

    def forward(self, x: Tensor, *maps: Any) -> Tensor:
        """``(B, N, C)`` -> ``(B, N, C)``; where the tokens lie on the map does not matter."""
        return super().forward(x)

    def adds_in_tiles(self, x: Tensor, norm: nn.Module) -> bool:
        """Whether :meth:`add_in_tiles` can be called; parts that are not plain may see all tokens at once."""
        drops = (self.drop1, self.drop2)
        more = ((self.norm, nn.Identity), *((drop, nn.Dropout) for drop in drops))
        is_usual = _is_plain_mlp(self, x, norm, *more)
        return is_usual and not any(drop.training and drop.p for drop in drops)

    def add_in_tiles(self, x: Tensor, hw_shape: tuple[int, int], norm: nn.LayerNorm) -> None:
        """Add the MLP of ``norm(x)`` to ``x (B, N, C)``, in place."""
        fc1, fc2, hidden = self.fc1, self.fc2, None
        is_exact = (
            not torch.is_autocast_enabled("cpu")
            and fc1.bias is not None is not fc2.bias
            and {x.dtype, fc1.weight.dtype, fc2.weight.dtype} == {torch.float32}
        )
        for tile in list(tiles(len(x), hw_shape, fc1.out_features)):
            part = x[tile.batch, tile.tokens].flatten(0, 1)
            if not is_exact:
                part += self(norm(part))
                continue
            # In one piece of memory for all tiles, of which the first is the largest.
            hidden = torch.empty(len(part), fc1.out_features) if hidden is None else hidden
            own = torch.addmm(fc1.bias, norm(part), fc1.weight.t(), out=hidden[: len(part)])
            torch.ops.aten.gelu_(own, approximate=self.act.approximate)
            part.add_(fc2.bias).addmm_(own, fc2.weight.t())


class DepthwiseMlp(nn.Module):
    """PVTv2's MLP with a 3x3 depthwise convolution before the activation (arXiv 2106.13797, Sec. 3.2)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(
        self,
        x: Tensor,
        hw_shape: tuple[int, int],
        padding: Padding | None = None,
        rows: slice = slice(None),
    ) -> Tensor:
        """``(B, N, C)`` with N = H*W of ``hw_shape`` -> ``(B, N, C)``, or its ``rows`` of the map alone.

        With ``padding``, each map is computed as alone, and what the result has in the padding is of no use.
        """
        hidden = self.fc1(x)
        if padding is not None:
            hidden = hidden.masked_fill(padding.mask, 0)
        image = self.dwconv(as_image(hidden, hw_shape))
        return self.fc2(self.act(as_tokens(image[:, :, rows])))

    def adds_in_tiles(self, x: Tensor, norm: nn.Module) -> bool:
        """As :meth:`TokenMlp.adds_in_tiles`."""
        is_usual = is_plain_depthwise(self.dwconv) and self.dwconv.kernel_size == (3, 3)
        return is_usual and _is_plain_mlp(self, x, norm)

    def add_in_tiles(self, x: Tensor, hw_shape: tuple[int, int], norm: nn.LayerNorm) -> None:
        """As :meth:`TokenMlp.add_in_tiles`."""
        width, above = hw_shape[1], x[:, :0]
        # Twice as large as usual: two rows of every tile are computed once more by its neighbours.
        for tile in list(tiles(len(x), hw_shape, max(self.fc1.out_features // 2, 1))):
            maps, own = x[tile.batch], tile.tokens
            # One row more on either side, which the convolution sees; that above as before its own sum.
            above = above if own.start else maps[:, :0]
            part, below = maps[:, own], maps[:, own.stop : own.stop + width]
            tokens = torch.cat([above, part, below], dim=1)
            above, first = part[:, -width:].clone(), 1 if own.start else 0
            rows = slice(first, first + tile.rows.stop - tile.rows.start)
            part += self(norm(tokens), (tokens.shape[1] // width, width), rows=rows)


def _is_plain_mlp(
    mlp: nn.Module, x: Tensor, norm: nn.Module, *more: tuple[nn.Module, type]
) -> bool:
    """Whether ``mlp(norm(x))`` is what its parts, and ``more``, say, for all tokens by themselves."""
    parts = ((norm, nn.LayerNorm), (mlp.fc1, nn.Linear), (mlp.act, nn.GELU), (mlp.fc2, nn.Linear))
    are_plain = x.is_contiguous() and all(starmap(is_plain, (*parts, *more)))
    return are_plain and norm.normalized_shape == x.shape[-1:]


class TransformerBlock(nn.Module):
    """``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``, with stochastic depth on both branches.

    Args:
        attn: layer called as ``attn(x, hw_shape)``, with the padding as a third argument if there is some.
        mlp_ratio: hidden channels of the MLP / C.
        drop_path: probability to drop a branch for a sample in training.
        cp_policy: what is computed again in the backward pass; None: nothing.
        mlp_conv: a depthwise convolution inside the MLP (PVTv2).
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float,
        drop_path: float,
        norm_eps: float,
        cp_policy: str | None,
        mlp_conv: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attn
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        hidden = int(dim * mlp_ratio)
        self.mlp = DepthwiseMlp(dim, hidden) if mlp_conv else TokenMlp(dim, hidden)
        self.cp_policy = cp_policy

    def forward(
        self,
        x: Tensor,
        hw_shape: tuple[int, int],
        inplace: bool = False,
        padding: Padding | None = None,
    ) -> Tensor:
        """``(B, N, C)`` with N = H*W of ``hw_shape`` -> ``(B, N, C)``.

        ``inplace``: x may be overwritten, as the backbone :func:`computes_in_place`. With ``padding``, for an
        ``attn`` that takes it, each map is computed as alone; what the result has there is of no use.
        """
        maps = (hw_shape,) if padding is None else (hw_shape, padding)
        policy = self.cp_policy if torch.is_grad_enabled() else None
        if policy == BLOCK:
            return checkpoint(self._forward, x, *maps, use_reentrant=False)
        if policy == ELEMENTWISE:
            contexts = partial(create_selective_checkpoint_contexts, _keep_products)
            return checkpoint(self._forward, x, *maps, use_reentrant=False, context_fn=contexts)
        if policy == MLP:
            x, normed = add_layer_norm(x, None, self.norm1)
            x = x + self.drop_path(self.attn(normed, *maps))
            return checkpoint(self._add_mlp, x, *maps, use_reentrant=False)
        # A compiled block is called from a backbone that is not, and plans its memory itself.
        is_alone = inplace and not torch.compiler.is_compiling()
        drops = self.drop_path.training and not isinstance(self.drop_path, nn.Identity)
        if padding is None and not drops and (is_alone or computes_in_place(self, x)):
            return self._forward_in_place(x, hw_shape, inplace and x.is_contiguous())
        return self._forward(x, *maps)

    def _forward(self, x: Tensor, *maps: Any) -> Tensor:
        """``maps``: their size and, if there is some, their padding."""
        x, normed = add_layer_norm(x, None, self.norm1)
        branch = self.attn(normed, *maps)
        x, normed = add_layer_norm(x, branch, self.norm2, self.drop_path)
        return x + self.drop_path(self.mlp(normed, *maps))

    def _add_mlp(self, x: Tensor, *maps: Any) -> Tensor:
        x, normed = add_layer_norm(x, None, self.norm2)
        return x + self.drop_path(self.mlp(normed, *maps))

    def _forward_in_place(self, x: Tensor, hw_shape: tuple[int, int], inplace: bool) -> Tensor:
        """The same in one tensor of x's size, or, if ``inplace``, in x itself."""
        attn, mlp = self.attn, self.mlp
        if isinstance(attn, FocusedLinearAttention) and attn.adds_in_tiles(x, self.norm1):
            x = attn.add_in_tiles(x, hw_shape, self.norm1, inplace)
        else:
            attended = attn(self.norm1(x), hw_shape)
            x = attended.add_(x) if attended.dtype == x.dtype else attended + x
        if isinstance(mlp, TokenMlp | DepthwiseMlp) and mlp.adds_in_tiles(x, self.norm2):
            mlp.add_in_tiles(x, hw_shape, self.norm2)
            return x
        return self._add_mlp(x, hw_shape)


def _keep_products(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if operator.overloadpacket.__name__ in _PRODUCTS:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def compile_blocks(backbone: nn.Module, options: bool | Mapping[str, Any]) -> None:
    """Run every block through ``torch.compile``.

    The blocks, not the whole: they are all but a few percent of the time, equal blocks compile once, and
    sizes that vary stay simple expressions, while those of a whole pyramid (padded, halved, padded, ...)
    keep the compiler busy for minutes. State dict, copies and pickles are those of the plain module.
    ``options`` are those of ``torch.compile``; True: ``dynamic=True``; False: nothing is compiled.
    """
    if options is False:
        return
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _COMPILED_VARIANTS)
    for module in backbone.modules():
        if isinstance(module, TransformerBlock):
            module.compile(**({"dynamic": True} if options is True else options))
