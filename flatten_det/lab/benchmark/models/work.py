"""Models as calls that can be measured."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ....backbones.cuda import replay_forward
from ..dtypes import DTYPES
from .candidates import Candidate
from .settings import Setting
from .sources import Source, find_source
from .whole import loss_call, network_call

_SEED = 0


def build_work(setting: Setting, candidate: Candidate) -> "Work":
    """A model with random weights and images of its own, ready to be called.

    Both are the same for the same setting and candidate.

    Raises:
        UserError: if there is no such model.
    """
    source = find_source(candidate.model)
    device, dtype = torch.device(setting.device), DTYPES[setting.dtype]
    of_parameters = torch.float32 if setting.amp else dtype
    torch.manual_seed(_SEED)
    model = source.build(setting.size).to(device, of_parameters)
    model.train(setting.training)
    if candidate.fused and not setting.training:
        _fuse(model)
    images = torch.randn(setting.batch, 3, *setting.size.hw).to(device, of_parameters)
    if candidate.compiled:
        _compile(source, model)
    if candidate.graphs:
        replay_forward(model.backbone if source.whole else model, strict=True)
    return Work(setting, _forward(source, setting, model, images), list(model.parameters()))


class Work:
    """One call of a model: forward, or forward and backward.

    The backward pass starts from the sum of the outputs times random numbers that stay the same, or
    from the loss of a whole model, and yields the gradients of all parameters.

    Args:
        setting: mode, dtype and device.
        forward: computes the outputs, tensors in lists and dicts.
        parameters: what the backward pass is to differentiate.
    """

    def __init__(
        self, setting: Setting, forward: Callable[[], object], parameters: list[nn.Parameter]
    ) -> None:
        self._setting, self._forward = setting, forward
        self._parameters = [p for p in parameters if p.requires_grad]
        self._factors: list[Tensor] | None = None

    def __call__(self) -> list[Tensor | None]:
        """The outputs, or in training the gradients; None for what the outputs do not depend on."""
        setting = self._setting
        device = torch.device(setting.device).type
        with (
            torch.set_grad_enabled(setting.training),
            torch.autocast(device, DTYPES[setting.dtype], enabled=setting.amp),
        ):
            outputs = [x for x in tree_leaves(self._forward()) if isinstance(x, Tensor)]
        if not setting.training:
            return outputs
        outputs = [x for x in outputs if x.requires_grad]
        if self._factors is None:
            self._factors = [torch.randn_like(x) for x in outputs]
        return list(
            torch.autograd.grad(outputs, self._parameters, self._factors, allow_unused=True)
        )


def _forward(
    source: Source, setting: Setting, model: nn.Module, images: Tensor
) -> Callable[[], object]:
    if not source.whole:
        return lambda: model(images)
    return loss_call(model, images) if setting.training else network_call(model, images)


def _compile(source: Source, model: nn.Module) -> None:
    # What heads do depends on values and annotations.
    parts = (model.backbone, getattr(model, "neck", None)) if source.whole else (model,)
    for part in filter(None, parts):
        part.compile(dynamic=False)


def _fuse(model: nn.Module) -> None:
    for module in (model, getattr(model, "backbone", None)):
        if hasattr(module, "fuse_for_inference"):
            module.fuse_for_inference()
