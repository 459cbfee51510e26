"""Files of a graph: ONNX by both of torch's exporters, in 8 bits too, and programs of ``torch.export``."""

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..attention.dispatch import plain_operations
from ..errors import UserError, in_one_line
from ..onnx_runner import read_pixels, resize_as_rule
from .detector_parts import translations

ONNX, TORCH_EXPORT = "onnx", "torch-export"
SUFFIXES = {ONNX: ".onnx", TORCH_EXPORT: ".pt2"}
# Of ONNX, by exporter. The operators of the first version are in all runtimes that are maintained.
OPSETS, LEGACY_OPSETS = range(18, 24), range(17, 21)
DEFAULT_OPSET = 18
# Protocol buffers hold no more.
_LARGEST = 2**31 - 1
# Sizes are symbols; two images, as torch.export takes one for a number.
_EXAMPLE = (2, 3, 256, 320)
_INPUT, _AXES = "image", {0: "batch", 2: "height", 3: "width"}
METADATA_FILE = "flatten_det.json"
_QUANTISED = ("Conv", "MatMul", "Gemm")


def example(dtype: torch.dtype, shape: tuple[int, ...] = _EXAMPLE) -> Tensor:
    """Images to look at a graph with: noise, uint8 or normalised."""
    source = torch.Generator().manual_seed(0)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype, generator=source)
    return torch.randn(shape, dtype=dtype, generator=source)


def check_opset(opset: int, legacy: bool) -> None:
    """A UserError for a version of ONNX's operators that the exporter does not write."""
    known = LEGACY_OPSETS if legacy else OPSETS
    if opset not in known:
        raise UserError(
            f"--opset {opset}: {'--legacy' if legacy else 'the exporter'} writes {known[0]} to {known[-1]}"
        )


def check_size(graph: nn.Module) -> None:
    """A UserError for weights that one file of ONNX cannot hold."""
    tensors = (*graph.parameters(), *graph.buffers())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > _LARGEST:
        raise UserError(
            f"the weights take {size / 1e9:.1f} GB, and a file of ONNX holds 2 GB: use --precision fp16, or "
            "--format torch-export"
        )


def to_onnx(
    graph: nn.Module, dtype: torch.dtype, opset: int, legacy: bool, metadata: Mapping[str, Any]
) -> bytes:
    """The content of an ``.onnx`` file for images ``(batch, 3, height, width)`` of any size.

    Args:
        graph: as of :func:`.graphs.prepared`, with ``output_names``.
        dtype: of the images.
        legacy: by the exporter that traces (``dynamo=False``).
        metadata: written into the file, each value as JSON.

    Raises:
        UserError: the packages are missing, or the graph cannot be exported.
    """
    onnx = _import_onnx()
    check_size(graph)
    names = dict(input_names=[_INPUT], output_names=graph.output_names)
    with _exporting():
        if legacy:
            content = io.BytesIO()
            outputs = {name: _output_axes(name) for name in graph.output_names}
            torch.onnx.export(
                graph,
                (example(dtype),),
                content,
                dynamo=False,
                opset_version=opset,
                dynamic_axes={_INPUT: _AXES, **outputs},
                **names,
            )
            model = onnx.load_model_from_string(content.getvalue())
        else:
            program = torch.onnx.export(
                graph,
                (example(dtype),),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes={_INPUT: _AXES},
                custom_translation_table=translations(),
                verbose=False,
                **names,
            )
            model = program.model_proto
    return with_metadata(model, metadata)


def with_metadata(model: Any, metadata: Mapping[str, Any]) -> bytes:
    """The content of a model's file, with metadata in it."""
    import onnx

    onnx.helper.set_model_props(
        model, {name: json.dumps(value) for name, value in metadata.items()}
    )
    return model.SerializeToString()


def _output_axes(name: str) -> dict[int, str]:
    spatial = {1: "rows", 2: "columns"} if name == "labels" else {2: "rows", 3: "columns"}
    return {0: "batch"} | {axis: f"{name}_{which}" for axis, which in spatial.items()}


def to_program(graph: nn.Module, dtype: torch.dtype, metadata: Mapping[str, Any]) -> bytes:
    """The content of a ``.pt2`` file: a program of torch's own operators, for images of any size.

    Arguments and errors as for :func:`to_onnx`; metadata are JSON in the extra file :data:`METADATA_FILE`.
    """
    dynamic = torch.export.Dim.DYNAMIC
    content = io.BytesIO()
    with _exporting(), plain_operations():
        program = torch.export.export(
            graph, (example(dtype),), dynamic_shapes={_INPUT: dict.fromkeys(_AXES, dynamic)}
        )
        torch.export.save(program, content, extra_files={METADATA_FILE: json.dumps(metadata)})
    return content.getvalue()


@contextmanager
def _exporting() -> Iterator[None]:
    """Without gradients and the exporters' remarks; what fails in them is a UserError."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"torch {torch.__version__} cannot export this model: {in_one_line(error)[:500]} (--debug shows "
            "where it fails)"
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _import_onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"export to ONNX needs the package {error.name}: pip install 'flatten-det[onnx]'"
        ) from error
    return onnx


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
