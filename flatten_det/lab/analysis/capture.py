"""What goes into the attention layers of a model when it sees an image."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import AttentionLayer


@dataclass(frozen=True)
class LayerCall:
    """A call of an attention layer for one image.

    Attributes:
        layer: that was called.
        tokens: its input ``(N, C)``.
        hw_shape: ``(H, W)`` with N = H*W.
        output: what the layer hands to its output projection, ``(N, C)``.
    """

    layer: AttentionLayer
    tokens: Tensor
    hw_shape: tuple[int, int]
    output: Tensor


def capture(
    model: nn.Module, layers: Iterable[AttentionLayer], image: Tensor
) -> Sequence[LayerCall]:
    """Run a model on one image and keep what the layers were given.

    Args:
        model: a backbone in evaluation mode.
        layers: of this model.
        image: ``(1, channels, height, width)``.

    Returns:
        The calls on the CPU, in the order of the layers.

    Raises:
        ValueError: there is more than one image, or a layer was not called exactly once.
    """
    if image.shape[0] != 1:
        raise ValueError(f"one image at a time, got {image.shape[0]}")
    layers = list(layers)
    inputs: dict[str, list[tuple[Tensor, tuple[int, int]]]] = {layer.path: [] for layer in layers}
    outputs: dict[str, list[Tensor]] = {layer.path: [] for layer in layers}
    handles = []
    for layer in layers:

        def keep_input(_: nn.Module, args: tuple, path: str = layer.path) -> None:
            tokens, hw_shape = args
            # A copy: what comes after may compute in place.
            inputs[path].append((tokens[0].detach().cpu().clone(), tuple(hw_shape)))

        def keep_output(_: nn.Module, args: tuple, path: str = layer.path) -> None:
            outputs[path].append(args[0].detach().flatten(0, -2).cpu().clone())

        handles.append(layer.module.register_forward_pre_hook(keep_input))
        handles.append(layer.module.proj.register_forward_pre_hook(keep_output))
    try:
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    calls = []
    for layer in layers:
        if len(inputs[layer.path]) != 1:
            raise ValueError(f"{layer.path} was called {len(inputs[layer.path])} times, not once")
        tokens, hw_shape = inputs[layer.path][0]
        calls.append(LayerCall(layer, tokens, hw_shape, outputs[layer.path][0]))
    return calls
