"""INT8 files of ONNX: weights and the inputs of products and convolutions in 8 bits, after given images."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..onnx_runner import read_pixels, resize_as_rule

_QUANTISED = ("Conv", "MatMul", "Gemm")


def quantised(content: bytes, images: Sequence[str], rule: Mapping[str, Any] | None) -> Any:
    """The model of a file with 8-bit products, by ONNX Runtime's static quantisation (QDQ, per channel).

    Products of two activations, as in the attention, stay in float32, and so do the convolutions before the
    first and after the last product of each kind: the embedding of patches and the classification.

    Args:
        content: of an ``.onnx`` file in float32.
        images: files from whose values the ranges are taken.
        rule: how they are resized.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        """Images one by one, prepared as for a prediction."""

        def __init__(self) -> None:
            self.left = _prepared_images(images, rule)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {"image": image}

    with tempfile.TemporaryDirectory() as folder:
        source, simple, target = (
            str(Path(folder, name)) for name in ("source.onnx", "simple.onnx", "target.onnx")
        )
        Path(source).write_bytes(content)
        # Convolutions and what follows them become one; shapes are symbols that it cannot follow.
        quant_pre_process(source, simple, skip_symbolic_shape=True)
        quantize_static(
            simple,
            target,
            Images(),
            op_types_to_quantize=list(_QUANTISED),
            nodes_to_exclude=kept_in_float(onnx.load(simple)),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(target)


def _prepared_images(images: Sequence[str], rule: Mapping[str, Any] | None) -> Iterator[np.ndarray]:
    for path in images:
        yield resize_as_rule(read_pixels(path), rule).transpose(2, 0, 1)[None]


def kept_in_float(model: Any) -> list[str]:
    """The names of the nodes that 8 bits would harm."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found = [node for node in model.graph.node if node.op_type in _QUANTISED]
    convolutions = [node for node in found if node.op_type == "Conv"]
    between_activations = [node for node in found if node.input[1] not in weights]
    return [node.name for node in (*between_activations, convolutions[0], convolutions[-1])]
