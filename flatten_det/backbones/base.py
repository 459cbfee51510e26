"""What the dense backbones share: initialisation, official checkpoints, freezing."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from timm.layers import trunc_normal_
from timm.models import group_parameters
from torch import Tensor, nn

from ..attention import FocusedLinearAttention
from .autocast_weights import AutocastWeights
from .init_cfg import ExplainedModule
from .valid_region import apply_to_valid, valid_sizes

_NOT_DECAYING = (".scale", ".relative_position_bias_table")
NORM_LAYERS = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


class DenseBackbone(ExplainedModule):
    """Base of all families: one feature map for each stage that is returned.

    Attributes:
        stage_strides: of the stages' maps, in pixels.
        feature_dims: channels of the stages' maps.
        out_indices: the stages that are returned, ascending.

    Args:
        frozen_stages: -1: nothing is frozen; 0: the patch embedding; n: it and the first n stages.
        norm_eval: keep the norm layers in evaluation mode during training.
        mask_padding: compute images without the padding of their batch; see :mod:`.valid_region`.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads a classification checkpoint of the
            original release as it was downloaded, or one saved from this class; or any other of
            mmengine's, or a list of them.
        pretrained: such a checkpoint, instead of ``init_cfg``.

    Raises:
        ValueError: for both ``init_cfg`` and ``pretrained``, or one that names no file.
    """

    stage_strides: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)
    feature_dims: tuple[int, ...]
    out_indices: tuple[int, ...]

    def __init__(
        self,
        frozen_stages: int,
        norm_eval: bool,
        mask_padding: bool,
        init_cfg: Mapping | Sequence[Mapping] | None,
        pretrained: str | None,
    ) -> None:
        if pretrained is not None:
            if init_cfg or not isinstance(pretrained, str):
                raise ValueError(
                    f"pretrained must be a file or URL, and the only one; got {pretrained!r} and "
                    f"init_cfg={init_cfg!r}"
                )
            init_cfg = dict(type="Pretrained", checkpoint=pretrained)
        super().__init__(init_cfg)
        self.mask_padding = mask_padding
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self._autocast_weights = AutocastWeights()

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
        """``(B, in_channels, H, W)`` -> one ``(B, C_i, ceil(H/s), ceil(W/s))`` for each out index.

        With ``sizes``, the ``(h, w)`` of the image in each of ``x``, the rest of ``x`` is left out and its
        maps are zero. Within the call of a detector or segmentor they are known, with ``mask_padding``.
        """
        with self._autocast_weights.used_by(self, x):
            if sizes is None:
                return self.forward_images(x)
            if len(set(sizes)) > 1 and self.computes_padded(x):
                return self.forward_images(x, sizes)
            return apply_to_valid(self.forward_images, x, sizes, self.strides)

    def computes_padded(self, x: Tensor) -> bool:
        """Whether images of several sizes go through in one pass, and not one size after the other.

        On CUDA, where launches are what costs, and if all layers know how to leave the padding out. Swin's
        and CSwin's windows do not: a shift depends on the size of the map, and brings padding between tokens.
        """
        return False

    def forward_images(self, x: Tensor) -> tuple[Tensor, ...]:
        """The same for images without padding, or with padding that is taken for image.

        If it :meth:`computes_padded`, also with ``sizes`` as a second argument.
        """
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
        """A parameter's layer and the number of layers, by the convention of MMPretrain's backbones.

        The embedding is layer 0; what is not of the backbone, whose names begin with ``prefix``, is the last.
        """
        depths = self.layer_depths()
        num_layers = max(depths.values()) + 2
        own = param_name.removeprefix(prefix) if param_name.startswith(prefix) else None
        return depths.get(own, num_layers - 1), num_layers

    def frozen_modules(self) -> Iterable[nn.Module | nn.Parameter]:
        """The modules and parameters that ``frozen_stages`` freezes."""
        raise NotImplementedError

    def convert_official(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """From a classification state dict to this class's names.

        Returns:
            The renamed entries, and the names of those that dense prediction has no use for.
        """
        raise NotImplementedError

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

    def _init_from_scratch(self) -> None:
        for name, parameter in self.named_parameters():
            # Tables of positions; `scale` and `positional_encoding` start at zero as in the original.
            if "pos_embed" in name or "relative_position_bias_table" in name:
                trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def freeze(self) -> None:
        """Stop the gradients of the frozen stages and put them into evaluation mode."""
        for part in self.frozen_modules():
            part.requires_grad_(False)
            if isinstance(part, nn.Module):
                part.eval()

    def fuse_for_inference(self) -> None:
        """Fold what can be folded into the projections of the linear attention, for frozen weights.

        The outputs change by rounding only. It lasts until :meth:`unfuse` or training mode.
        """
        for module in self.modules():
            if isinstance(module, FocusedLinearAttention):
                module.fuse_for_inference()

    def unfuse(self) -> None:
        """Undo :meth:`fuse_for_inference`."""
        for module in self.modules():
            if isinstance(module, FocusedLinearAttention):
                module.unfuse()

    def train(self, mode: bool = True) -> "DenseBackbone":
        """Training mode for all but the frozen stages (and the norms, with ``norm_eval``)."""
        super().train(mode)
        self.freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, NORM_LAYERS):
                    module.eval()
        return self
