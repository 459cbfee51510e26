"""The base of the backbones, and how they see a padded batch.

Frameworks pad the images of a batch to the largest one. Attention over the whole map would mix the padding
into every token, and the prediction for an image would depend on its batch mates. So padding has no part in
keys, queries, norms or convolutions, and learned grids fit each image's own map. There are two ways, between
which :meth:`DenseBackbone.computes_padded` decides:

- Images go through the backbone without their padding, those of one size together (:func:`apply_to_valid`).
  Nothing is computed that nobody needs.
- All go through it at once, and every layer that looks beyond a token knows what is padding
  (:func:`fill_padding`). On a GPU, launches cost more than padding does.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from inspect import Parameter, signature
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models import group_parameters
from timm.models._manipulate import MATCH_PREV_GROUP
from torch import Tensor, nn

from ..attention import FocusedLinearAttention
from ..attention.maps import Padding, as_image, is_padding, shares_of_grid
from .blocks import (
    PatchEmbed,
    TransformerBlock,
    as_contiguous_image,
    compile_blocks,
    computes_in_place,
)
from .cuda import AutocastWeights, replay_forward
from .options import (
    check_attn_types,
    check_options,
    check_out_indices,
    checkpoint_policies,
    drop_path_rates,
    is_count,
    map_sizes,
    resolve_arch,
    stage_dims,
)
from .weights import ExplainedModule

NORM_LAYERS = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
_NOT_DECAYING = (".scale", ".relative_position_bias_table")


Sizes = tuple[tuple[int, int], ...]
# Of the model that is being called: images ``(B, 3, H, W)``, and ``(h, w)`` of what is valid in each.
_current: ContextVar[tuple[tuple[Tensor, Sizes], ...]] = ContextVar(
    "flatten_det_batches", default=()
)


@contextmanager
def valid_regions(images: object, data_samples: object) -> Iterator[None]:
    """For the time of a model's call, what its data samples say about its images.

    Images are ``(B, 3, H, W)``, or a dict of such, as the branches of semi-supervised detectors are. Samples
    have an ``img_shape``, one for each image, in a dict with the same keys. Anything else says nothing.
    """
    token = _current.set(tuple(_read(images, data_samples)))
    try:
        yield
    finally:
        _current.reset(token)


def _read(images: object, data_samples: object) -> Iterator[tuple[Tensor, Sizes]]:
    if isinstance(images, Mapping) and isinstance(data_samples, Mapping):
        for key in images.keys() & data_samples.keys():
            yield from _read(images[key], data_samples[key])
        return
    if not isinstance(images, Tensor) or images.dim() != 4:
        return
    valid = sizes_within(images, data_samples, "img_shape")
    if valid is not None:
        yield images, valid


def sizes_within(images: Tensor, data_samples: object, name: str) -> Sizes | None:
    """``(h, w)`` under a name in each data sample; None unless each image has one, not larger than itself."""
    if not isinstance(data_samples, Sequence) or len(data_samples) != len(images):
        return None
    shapes = [getattr(sample, name, None) for sample in data_samples]
    height, width = images.shape[2:]
    for shape in shapes:
        if shape is None or not (0 < shape[0] <= height and 0 < shape[1] <= width):
            return None
    return tuple((int(h), int(w)) for h, w, *_ in shapes)


def valid_sizes(images: Tensor) -> Sizes | None:
    """``(h, w)`` of the image in each of ``images (B, C, H, W)``; None where nothing is padded or known.

    Inputs of another size than the model's own, such as the crops of sliding windows, are not known.
    """
    batches = _current.get()
    if not batches:
        return None
    count, hw_shape = len(images), images.shape[2:]
    found = [valid for x, valid in batches if x is images]
    if not found:  # The same under another type or layout, for instance.
        found = [valid for x, valid in batches if (len(x), x.shape[2:]) == (count, hw_shape)]
    is_padded = len(found) == 1 and any(size != tuple(hw_shape) for size in found[0])
    return found[0] if is_padded else None


def of_equal_size(sizes: Sequence[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    """The indices of each size, in the order of the first ones."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    return groups


def apply_to_valid(
    backbone: Callable[[Tensor], tuple[Tensor, ...]],
    images: Tensor,
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
) -> tuple[Tensor, ...]:
    """Feature maps of padded images, computed without the padding and zero there.

    Args:
        backbone: from images to one map for each of ``strides``.
        images: ``(B, C, H, W)``.
        sizes: ``(h, w)`` of the image in each.

    Returns:
        ``(B, C_i, ceil(H/s), ceil(W/s))`` for each stride s, zero beyond ``ceil(h/s)`` and ``ceil(w/s)``.
    """
    groups = of_equal_size(sizes)
    of_groups = []
    for (height, width), members in groups.items():
        own = images[:, :, :height, :width]
        of_groups.append(backbone(own if len(groups) == 1 else own[members]))
    places, order = [index for members in groups.values() for index in members], None
    if places != sorted(places):
        order = torch.tensor(places).argsort().to(images.device)
    outs = []
    for stride, *parts in zip(strides, *of_groups, strict=True):
        height, width = (-(-size // stride) for size in images.shape[2:])
        padded = [
            F.pad(part, (0, width - part.shape[3], 0, height - part.shape[2])) for part in parts
        ]
        out = padded[0] if len(padded) == 1 else torch.cat(padded)
        outs.append(out if order is None else out[order])
    return tuple(outs)


def fill_padding(
    images: Tensor,
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    grid_sizes: Sequence[tuple[int, int]],
) -> tuple[Tensor, list[Padding]]:
    """Images with zeros in their padding, and what is padding of their feature maps.

    Arguments as for :func:`apply_to_valid`; ``grid_sizes`` are those of the learned grids on the maps.
    """
    device, hw_shape = images.device, tuple(images.shape[2:])
    # One transfer, which waits for nothing, and few operations: launches are what is to be saved.
    of_maps = [[[-(-x // s) for x in size] for size in sizes] for s in strides]
    grids = [[size] * len(sizes) for size in grid_sizes]
    values = torch.tensor([sizes, *of_maps, *grids], dtype=torch.int32)
    values = values.to(device, non_blocking=True)
    size_of_images, size_of_maps, grids = values.split((1, len(strides), len(strides)))
    of_images = is_padding(size_of_images[0], hw_shape)
    longest = -(-max(hw_shape) // min(strides))
    shares = shares_of_grid(size_of_maps, grids, longest, max(max(x) for x in grid_sizes))
    paddings = []
    for own, (h, w), s, size in zip(shares, grid_sizes, strides, size_of_maps, strict=True):
        # A token with a valid pixel at its top left has one at all.
        mask = of_images[:, ::s, ::s]
        _, height, width = mask.shape
        rows, columns = own[:, 0, :height, :h], own[:, 1, :width, :w].contiguous()
        paddings.append(Padding(size, mask.flatten(1).unsqueeze(-1), rows, columns))
    return images.masked_fill(of_images.unsqueeze(1), 0), paddings


class DenseBackbone(ExplainedModule):
    """Base of all families: one feature map for each stage that is returned.

    A family's constructor takes what differs, and hands on the options that mean the same in all of them:
    those by keyword.

    Attributes:
        arch_zoo: architectures by name, the smallest first.
        feature_dims, stage_strides: channels of the stages' maps, and pixels to their tokens.
        in_one_pass: have images of several sizes go through at once on CPUs, too, if the layers can.

    Args:
        arch: a name in ``arch_zoo``, or a dict that changes single fields of ``base`` (default: the
            smallest). One number a stage in tuples.
        attn_types: per stage ``'L'``: focused linear attention, ``'S'``: the original's softmax attention.
        out_indices: stages to return, ascending, or one. Later stages are not built.
        in_channels: of the image.
        focusing_factor: the power p of the focused map.
        kernel_size: of the depthwise convolution of V; 0: none.
        qkv_bias: bias of the query, key and value projections.
        drop_path_rate: stochastic depth, growing linearly from 0 to this over the blocks.
        pretrain_img_size: pixels, an int or ``(H, W)``: the learned grids live on its maps and are
            resized to the map at hand.
        frozen_stages: -1: nothing is frozen; 0: the embedding of patches and positions; n: it and the
            first n stages.
        norm_eval: keep the norm layers in evaluation mode during training.
        mask_padding: in a detector or segmentor, compute images without the padding of their batch, so
            that what is predicted for one does not depend on the others; False: padding is taken for image.
        with_cp: activation checkpointing: compute each block again in the backward pass to save memory, or
            ``dict(policy='mlp', stages=(0, 1))``; see :mod:`.blocks` for the policies.
        compile: run the blocks through ``torch.compile``: True, or its options; see
            :func:`.blocks.compile_blocks`.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads a classification checkpoint of the
            original release as it was downloaded, or one saved from this class; or any other of
            mmengine's, or a list of them.
        pretrained: such a checkpoint, instead of ``init_cfg``, as MMSegmentation's segmentors pass it on.
        convert_weights: as of MMDetection's backbones; official files are converted in any case.

    Raises:
        ValueError: for arguments that describe no network, for both ``init_cfg`` and ``pretrained``, or
            one that names no file.
    """

    arch_zoo: ClassVar[dict[str, dict]]
    stage_strides: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)
    norm_eps: ClassVar[float] = 1e-6
    mlp_conv: ClassVar[bool] = False
    in_one_pass = False
    feature_dims: tuple[int, ...]
    out_indices: tuple[int, ...]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Put the common options into the family's signature, in place of ``**options``."""
        super().__init_subclass__(**kwargs)
        own = list(signature(cls.__init__).parameters.values())[1:]
        own = [p for p in own if p.kind is not Parameter.VAR_KEYWORD]
        common = signature(DenseBackbone.__init__).parameters.values()
        names = {p.name for p in own}
        common = [p for p in common if p.kind is Parameter.KEYWORD_ONLY and p.name not in names]
        cls.__signature__ = signature(cls.__init__).replace(parameters=[*own, *common])

    def __init__(
        self,
        arch: str | Mapping[str, Any],
        attn_types: Sequence[str],
        out_indices: int | Sequence[int],
        *,
        in_channels: int = 3,
        focusing_factor: float = 3,
        kernel_size: int = 5,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        pretrain_img_size: int | Sequence[int] = 224,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        mask_padding: bool = True,
        with_cp: bool | Mapping[str, Any] = False,
        compile: bool | Mapping[str, Any] = False,
        init_cfg: Mapping | Sequence[Mapping] | None = None,
        pretrained: str | None = None,
        convert_weights: bool = True,
    ) -> None:
        if pretrained is not None:
            if init_cfg or not isinstance(pretrained, str):
                raise ValueError(
                    f"pretrained must be a file or URL, and the only one; got {pretrained!r} and "
                    f"init_cfg={init_cfg!r}"
                )
            init_cfg = dict(type="Pretrained", checkpoint=pretrained)
        super().__init__(init_cfg)
        check_options(locals())
        total = len(self.stage_strides)
        self.arch = arch
        self.fields = resolve_arch(arch, self.arch_zoo)
        self.attn_types = check_attn_types(attn_types, total)
        self.out_indices = check_out_indices(out_indices)
        self.num_stages = self.out_indices[-1] + 1
        self.feature_dims = stage_dims(self.fields)[: self.num_stages]
        self.grid_sizes = map_sizes(pretrain_img_size, self.stage_strides)
        self.in_channels, self.qkv_bias = in_channels, qkv_bias
        if not is_count(frozen_stages, total, -1):
            raise ValueError(f"frozen_stages must be from -1 to {total}; got {frozen_stages!r}")
        self.frozen_stages = frozen_stages
        self.norm_eval, self.mask_padding = norm_eval, mask_padding
        self._linear_options = dict(focusing_factor=focusing_factor, kernel_size=kernel_size)
        self._cp_policies = checkpoint_policies(with_cp, total)
        self._drop_paths = drop_path_rates(drop_path_rate, self.fields["depths"])
        self._compile_options = compile
        self._autocast_weights = AutocastWeights()

    def make_attention(self, stage: int, index: int) -> nn.Module:
        """The attention of a stage's block: by ``attn_types``, linear or the original's."""
        raise NotImplementedError

    def linear_attention(self, stage: int, **own: Any) -> FocusedLinearAttention:
        """A stage's focused linear attention, with arguments that the family has of its own."""
        return FocusedLinearAttention(
            self.feature_dims[stage],
            self.fields["num_heads"][stage],
            grid_size=self.grid_sizes[stage],
            qkv_bias=self.qkv_bias,
            **self._linear_options,
            **own,
        )

    def make_blocks(self, stage: int, mlp_ratio: float) -> nn.ModuleList:
        """The blocks of a stage; ``mlp_ratio`` is hidden channels / channels."""
        return nn.ModuleList(
            TransformerBlock(
                self.feature_dims[stage],
                self.make_attention(stage, index),
                mlp_ratio,
                drop_path=rate,
                norm_eps=self.norm_eps,
                cp_policy=self._cp_policies[stage],
                mlp_conv=self.mlp_conv,
            )
            for index, rate in enumerate(self._drop_paths[stage])
        )

    def finish(self) -> None:
        """What a constructor ends with: random weights, frozen stages, compiled blocks."""
        for name, parameter in self.named_parameters():
            # Tables of positions; `scale` and `positional_encoding` start at zero as in the original.
            if "pos_embed" in name or "relative_position_bias_table" in name:
                trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.freeze()
        compile_blocks(self, self._compile_options)

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of each map that is returned."""
        return tuple(self.feature_dims[index] for index in self.out_indices)

    @property
    def strides(self) -> tuple[int, ...]:
        """Of each map that is returned, in pixels."""
        return tuple(self.stage_strides[index] for index in self.out_indices)

    @property
    def num_features(self) -> tuple[int, ...]:
        """Channels of each stage, as MMDetection's and MMSegmentation's Swin has them."""
        return self.feature_dims

    def __call__(
        self, x: Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> tuple[Tensor, ...]:
        """:meth:`forward`, told what the call of the detector or segmentor around says about ``x``."""
        if sizes is None and self.mask_padding:
            sizes = valid_sizes(x)
        # An argument, so that activation checkpointing of the whole backbone repeats what was computed.
        return super().__call__(x) if sizes is None else super().__call__(x, sizes)

    def forward(
        self, x: Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> tuple[Tensor, ...]:
        """``(B, in_channels, H, W)`` -> one ``(B, C_i, ceil(H/s), ceil(W/s))`` for each stage returned.

        With ``sizes``, the ``(h, w)`` of the image in each of ``x``, the rest of ``x`` is left out and its
        maps are zero. Within the call of a detector or segmentor they are known, with ``mask_padding``.
        """
        with self._autocast_weights.used_by(self, x) if x.is_cuda else nullcontext():
            if sizes is None:
                return self.forward_images(x)
            if len(set(sizes)) > 1 and self.computes_padded(x):
                return self.forward_images(x, sizes)
            return apply_to_valid(self.forward_images, x, sizes, self.strides)

    def computes_padded(self, x: Tensor) -> bool:
        """Whether images of several sizes go through in one pass, and not one size after the other.

        On CUDA, where launches are what costs, or with ``in_one_pass``; if it :attr:`knows_padding`.
        """
        return self.knows_padding and (x.is_cuda or self.in_one_pass)

    @property
    def knows_padding(self) -> bool:
        """Whether all layers know how to leave the padding out.

        Swin's and CSwin's windows do not: a shift depends on the size of the map, and brings padding between
        tokens.
        """
        return False

    def forward_images(self, x: Tensor) -> tuple[Tensor, ...]:
        """The same without padding; with ``sizes`` as a second argument if it :meth:`computes_padded`."""
        raise NotImplementedError

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's patterns of each layer's parameters: the embedding, then blocks, or ``coarse`` stages."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """timm's names of parameters that are not to decay: tables of positions and scales."""
        tables = {name for name, _ in self.named_parameters() if name.endswith(_NOT_DECAYING)}
        return tables | set(self.grid_shapes())

    def layer_depths(self, coarse: bool = False) -> dict[str, int]:
        """The layer of each parameter: 0 for the embedding, then those of :meth:`group_matcher`."""
        return group_parameters(self, self.group_matcher(coarse), reverse=True)

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """A parameter's layer and their number, as in MMPretrain; the last has names without the prefix."""
        depths = self.layer_depths()
        num_layers = max(depths.values()) + 2
        own = param_name.removeprefix(prefix) if param_name.startswith(prefix) else None
        return depths.get(own, num_layers - 1), num_layers

    def frozen_modules(self) -> Iterable[nn.Module | nn.Parameter]:
        """The modules and parameters that ``frozen_stages`` freezes."""
        raise NotImplementedError

    def convert_official(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """A classification state dict in this class's names, and what dense prediction has no use for."""
        converted, dropped = {}, []
        for name, value in state.items():
            own = self.own_name(name)
            if own is None or self.is_beyond(own):
                dropped.append(name)
            else:
                converted[own] = value
        return converted, dropped

    def own_name(self, name: str) -> str | None:
        """The name here of an official parameter; None for heads and buffers."""
        return None if name.startswith("head.") else name

    def is_beyond(self, name: str) -> bool:
        """Whether a parameter belongs to what comes after the last of ``out_indices``."""
        return False

    def optional_keys(self) -> set[str]:
        """Parameters that an official checkpoint need not contain."""
        return set()

    def grid_shapes(self) -> dict[str, tuple[int, int]]:
        """``(H, W)`` of each learned grid ``(1, H*W, C)``, by parameter name."""
        return {
            f"{name}.positional_encoding": module.grid_size
            for name, module in self.named_modules()
            if isinstance(module, FocusedLinearAttention)
        }

    def freeze(self) -> None:
        """Stop the gradients of the frozen stages and put them into evaluation mode."""
        for part in self.frozen_modules():
            part.requires_grad_(False)
            if isinstance(part, nn.Module):
                part.eval()

    def fuse_for_inference(self) -> None:
        """Fold scale and bias into the linear attention's projections until :meth:`unfuse` or training mode.

        The outputs change by rounding only.
        """
        for layer in self.linear_layers():
            layer.fuse_for_inference()

    def unfuse(self) -> None:
        """Undo :meth:`fuse_for_inference`."""
        for layer in self.linear_layers():
            layer.unfuse()

    def linear_layers(self) -> list[FocusedLinearAttention]:
        """All layers of focused linear attention."""
        return [m for m in self.modules() if isinstance(m, FocusedLinearAttention)]

    def train(self, mode: bool = True) -> "DenseBackbone":
        """Training mode for all but the frozen stages (and the norms, with ``norm_eval``)."""
        super().train(mode)
        self.freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, NORM_LAYERS):
                    module.eval()
        return self


def use_cuda_graphs(model: nn.Module) -> None:
    """Let the backbones in ``model`` replay :class:`.cuda.CudaGraphs`; ValueError if it has none."""
    backbones = [module for module in model.modules() if isinstance(module, DenseBackbone)]
    if not backbones:
        raise ValueError("CUDA graphs are for backbones of flatten_det, and the model has none")
    for backbone in backbones:
        replay_forward(backbone)


class PyramidBackbone(DenseBackbone):
    """Base of PVT, PVTv2 and CSwin: four stages of tokens, each a patch embedding and blocks.

    Stages are numbered from 1, as in the official names: ``patch_embed1``, ``block1`` (a list). ``patches``
    are stride, size and padding of the image's and of the later embeddings, see :class:`.blocks.PatchEmbed`.
    """

    patches: ClassVar[tuple[tuple[int, ...], tuple[int, ...]]]

    def add_stages(self, mlp_ratios: Sequence[float]) -> None:
        """Build the patch embeddings and the blocks; ``mlp_ratios`` are hidden channels / channels."""
        dims = (self.in_channels, *self.feature_dims)
        for stage in range(self.num_stages):
            patches = PatchEmbed(*dims[stage : stage + 2], *self.patches[min(stage, 1)])
            setattr(self, f"patch_embed{stage + 1}", patches)
            setattr(self, f"block{stage + 1}", self.make_blocks(stage, mlp_ratios[stage]))

    def forward_images(
        self, x: Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> tuple[Tensor, ...]:
        outs, count = [], self.num_stages
        inplace, paddings = sizes is None and computes_in_place(self, x), [None] * count
        if sizes is not None:
            strides, grid_sizes = self.stage_strides[:count], self.grid_sizes[:count]
            x, paddings = fill_padding(x, sizes, strides, grid_sizes)
        for stage, padding in enumerate(paddings):
            x, hw_shape = getattr(self, f"patch_embed{stage + 1}")(x)
            x = self.before_blocks(stage, x, hw_shape, inplace, padding)
            for block in getattr(self, f"block{stage + 1}"):
                x = block(x, hw_shape, inplace, padding)
            x = self.after_blocks(stage, x)
            if padding is not None:
                # Convolutions see the zeros that an image alone is surrounded by.
                x = x.masked_fill(padding.mask, 0)
            if stage in self.out_indices:
                outs.append(as_contiguous_image(self.to_output(stage, x), hw_shape))
            x = as_image(x, hw_shape)
        return tuple(outs)

    def before_blocks(
        self,
        stage: int,
        x: Tensor,
        hw_shape: tuple[int, int],
        inplace: bool,
        padding: Padding | None,
    ) -> Tensor:
        """Tokens ``(B, N, C)`` on their way to the blocks; with ``inplace``, they may be overwritten."""
        return x

    def after_blocks(self, stage: int, x: Tensor) -> Tensor:
        """Tokens ``(B, N, C)`` on their way to the next stage and to the output."""
        return x

    def to_output(self, stage: int, x: Tensor) -> Tensor:
        """Tokens ``(B, N, C)`` on their way to the output alone."""
        return x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        stem = r"^(?:patch|pos)_embed1\b"
        if coarse:
            return dict(stem=stem, blocks=[(r"^(?:patch_embed|pos_embed|block|norm)(\d)", None)])
        return dict(
            stem=stem,
            blocks=[
                (r"^(?:patch|pos)_embed(\d)", (0,)),
                (r"^block(\d)\.(\d+)", None),
                (r"^norm(\d)", MATCH_PREV_GROUP),
            ],
        )

    def frozen_modules(self) -> Iterable[nn.Module | nn.Parameter]:
        for name, part in (*self.named_children(), *self.named_parameters(recurse=False)):
            is_embedding = name in ("patch_embed1", "pos_embed1")
            if (0 if is_embedding else _stage_number(name)) <= self.frozen_stages:
                yield part

    def is_beyond(self, name: str) -> bool:
        return _stage_number(name.split(".")[0]) > self.num_stages


def _stage_number(name: str) -> int:
    """1 to 4 for ``patch_embed1`` … ``norm4``; 0 for names without a stage."""
    match = re.fullmatch(r"(?:patch_embed|pos_embed|block|norm)([1-4])", name)
    return int(match.group(1)) if match else 0
