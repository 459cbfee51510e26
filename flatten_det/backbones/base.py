"""What the dense backbones share: initialisation, official checkpoints, freezing."""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from timm.layers import trunc_normal_
from torch import Tensor, nn

from ..attention import FocusedLinearAttention
from ..checkpoints.initialising import ExplainedModule
from .autocast_weights import AutocastWeights
from .valid_region import apply_to_valid, valid_sizes

NORM_LAYERS = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


class DenseBackbone(ExplainedModule):
    """Base of all families: one feature map for each stage that is returned.

    Attributes:
        strides: of the stages' maps, in pixels.
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

    strides: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)
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

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """:meth:`forward`, told what the call of the detector or segmentor around says about ``x``."""
        sizes = valid_sizes(x) if self.mask_padding else None
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
            strides = [self.strides[index] for index in self.out_indices]
            return apply_to_valid(self.forward_images, x, sizes, strides)

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
