"""Casting the weights of a whole backbone at once, for inference under autocast on CUDA.

Autocast casts each weight when its layer is called: two launches a layer in every forward pass, for its cache
lives no longer than one. The casts cannot be kept from one pass to the next, because weights are written
through ``.data`` too, by mmengine's averaged models and mmdet's teachers, and nothing tells that this has
happened. So they are made anew, all in one launch, and last for one pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ..attention import FocusedLinearAttention
from ..attention.eager import is_from_known_library, is_plain, keeps_tensors


class AutocastWeights:
    """Casts the weights of a backbone. Copies of the backbone, pickled or not, begin with an empty one."""

    def __init__(self) -> None:
        self._owner: nn.Module | None = None
        self._layers: list[tuple[nn.Module, str, nn.Module]] = []
        self._memory: dict[tuple[int, str], Tensor] = {}

    @contextmanager
    def used_by(self, backbone: nn.Module, x: Tensor) -> Iterator[None]:
        """While this lasts, the layers of ``backbone``, called with x, have weights of autocast's dtype.

        Weights of other kinds than plain float32 parameters are left to autocast, and so are those of layers
        that somebody else looks into: hooked, pruned or wrapped ones.
        """
        if not _pays(x):
            yield
            return
        if self._owner is not backbone or any(
            parent._modules.get(name) is not layer for parent, name, layer in self._layers
        ):
            self._owner, self._memory = backbone, {}
            self._layers = list(_called_layers(backbone))
        dtype = torch.get_autocast_dtype(x.device.type)
        memory = self._memory if keeps_tensors() else {}
        replaced = []
        for index, (_, _, layer) in enumerate(self._layers):
            if not (is_plain(layer, nn.Linear) or is_plain(layer, nn.Conv2d)):
                continue
            parameters = layer._parameters
            for name, weight in parameters.items():
                if type(weight) in _PLAIN and weight.dtype == torch.float32:
                    cast = _cast(memory, (index, name), dtype, weight)
                    replaced.append((parameters, name, weight, cast))
        if replaced:
            torch._foreach_copy_([cast for *_, cast in replaced], [w for _, _, w, _ in replaced])
        try:
            for parameters, name, _, cast in replaced:
                parameters[name] = cast
            yield
        finally:
            for parameters, name, weight, cast in replaced:
                if parameters[name] is cast:
                    parameters[name] = weight

    def __reduce__(self) -> tuple:
        return AutocastWeights, ()


_PLAIN = (nn.Parameter, FakeTensor)


def _pays(x: Tensor) -> bool:
    """Whether autocast would cast every weight for this pass alone."""
    if not x.is_cuda or torch.is_grad_enabled() or not torch.is_autocast_enabled("cuda"):
        return False
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing())


def _cast(
    memory: dict[tuple[int, str], Tensor], key: tuple[int, str], dtype: torch.dtype, weight: Tensor
) -> Tensor:
    """Memory for a weight's cast, in its layout: only then do they all go in one launch."""
    kept = memory.get(key)
    layout = (dtype, weight.device, weight.shape, weight.stride())
    if kept is None or (kept.dtype, kept.device, kept.shape, kept.stride()) != layout:
        # Not as an inference tensor, which may be written to in inference mode only.
        with torch.inference_mode(False):
            kept = torch.empty_like(weight, dtype=dtype, requires_grad=False)
        memory[key] = kept
    return kept


def _called_layers(backbone: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """The layers whose weights nothing but autocast's products and convolutions read, each with its place."""
    for parent in backbone.modules():
        if not is_from_known_library(type(parent)):
            continue
        for name, layer in parent.named_children():
            is_read = isinstance(parent, FocusedLinearAttention) and name == "dwc"
            if type(layer) in (nn.Linear, nn.Conv2d) and not is_read:
                yield parent, name, layer
