"""What is compared: our implementations, the plain one, the compiled one, softmax, and peers."""

import importlib
import os
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ....attention import focused_linear_attention
from ....errors import UserError
from ..dtypes import DTYPES
from .cases import CORE
from .eager import focused_linear_attention as eager
from .inputs import Inputs
from .layer import Core, build_layer
from .softmax import softmax_attention

FLATTEN_DET, TILED, TRITON, REFERENCE = "flatten_det", "tiled", "triton", "reference"
EAGER, COMPILED, SDPA = "eager", "compiled", "sdpa"
OTHER_FUNCTIONS = (SDPA,)
_PEERS = (EAGER, COMPILED, SDPA)


def default_candidates(level: str, device: torch.device) -> tuple[str, ...]:
    """All that there are for the level and the device."""
    if level == CORE:
        return (TRITON if device.type == "cuda" else TILED, REFERENCE, *_PEERS)
    return (FLATTEN_DET, REFERENCE, *_PEERS)


def prepare(inputs: Inputs, candidate: str) -> "Work":
    """A candidate with its inputs, ready to be called.

    Args:
        inputs: see :func:`~.inputs.make_inputs`.
        candidate: one of :func:`default_candidates`, or ``module:function`` of an outside implementation.

    Raises:
        UserError: if the outside implementation cannot be imported.
    """
    setting = inputs.setting
    if setting.level == CORE:
        leaves = {n: x.detach().requires_grad_(setting.training) for n, x in inputs.tensors.items()}
        call = partial(
            _compiled(eager) if candidate == COMPILED else _core(candidate),
            num_heads=setting.case.heads,
            hw_shape=setting.case.hw_shape,
            **leaves,
        )
        return Work(inputs, call, leaves)

    with torch.device("meta"):
        layer = build_layer(
            setting.case, None if candidate == FLATTEN_DET else _core(candidate)
        ).train(setting.training)
    weights = {n: nn.Parameter(w) for n, w in inputs.tensors.items() if n != "x"}
    layer.load_state_dict(weights, assign=True)
    if candidate == FLATTEN_DET and not setting.training:
        layer.fuse_for_inference()
    x = inputs.tensors["x"].detach().requires_grad_(setting.training)
    leaves = {"x": x, **dict(layer.named_parameters())}
    function = _compiled(layer) if candidate == COMPILED else layer
    return Work(inputs, partial(function, x, hw_shape=setting.case.hw_shape), leaves)


class Work:
    """One call of a candidate, forward or forward and backward.

    Args:
        inputs: setting and gradient of the output.
        forward: computes the output ``(B, N, C)``.
        leaves: what the backward pass is to differentiate, by name.
    """

    def __init__(
        self, inputs: Inputs, forward: Callable[[], Tensor], leaves: dict[str, Tensor]
    ) -> None:
        self._inputs, self._forward, self._leaves = inputs, forward, leaves

    def __call__(self) -> dict[str, Tensor | None]:
        """``output``, and in training the gradients by name; None for what it does not depend on."""
        setting = self._inputs.setting
        autocast = torch.autocast(
            torch.device(setting.device).type, DTYPES[setting.dtype], enabled=setting.amp
        )
        with torch.set_grad_enabled(setting.training), autocast:
            out = self._forward()
        if not setting.training:
            return {"output": out}
        gradients = torch.autograd.grad(
            out, list(self._leaves.values()), self._inputs.grad.to(out.dtype), allow_unused=True
        )
        return {"output": out.detach(), **dict(zip(self._leaves, gradients, strict=True))}


def load_peer(text: str) -> Core:
    """Import ``module:function``, from the working directory too.

    Raises:
        UserError: if there is no such module or function, or importing it fails.
    """
    module_name, _, function_name = text.partition(":")
    if not module_name or not function_name:
        raise UserError(
            f"--peer {text}: give module:function, such as my_package.attention:forward"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--peer {text}: importing {module_name} fails: {type(error).__name__}: {reason}; install "
            "it, or start where it lies"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"--peer {text}: {module_name} has no function {function_name}")
    return function


def _core(candidate: str) -> Core:
    if candidate in (EAGER, COMPILED):
        return eager
    if candidate == SDPA:
        return softmax_attention
    if candidate in (REFERENCE, TILED, TRITON):
        return partial(focused_linear_attention, implementation=candidate)
    return load_peer(candidate)


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # For these sizes only, and without falling back to eager: at its best, or not at all.
    return torch.compile(function, dynamic=False, fullgraph=True)
