"""Make a file of a config's model or of a backbone: ``flatten-det export``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..backbones import build_backbone
from ..backbones.weights import load_backbone
from ..config import (
    blame_config,
    datasets_under_test,
    find_field,
    is_segmentor,
    loads_annotations,
    type_name,
)
from ..errors import UserError, in_one_line, warn_once
from ..files.atomic import refuse_overwriting, write_atomically
from ..files.checkpoints import read_checkpoint
from ..onnx_runner import BACKBONE, DETECTION, INSTANCES, SEGMENTATION
from ..predict.engine import SamplePredictor
from .check import check, runner_of
from .exporters import (
    ONNX,
    SUFFIXES,
    TORCH_EXPORT,
    check_opset,
    quantised,
    to_onnx,
    to_program,
    with_metadata,
)
from .graphs import LOGITS, of_backbone, of_detector, of_segmentor, prepared

# Steps of a test pipeline that leave pixels alone.
_KEEPING = ("LoadImageFromFile", "PackDetInputs", "PackSegInputs")


@dataclass(frozen=True)
class Settings:
    """What is made of a model.

    Attributes:
        kind: ``onnx`` or ``torch-export``.
        precision: ``fp32`` or ``fp16``.
        opset: version of ONNX's operators.
        legacy: by torch's older exporter, which traces.
        output: of a segmentor: ``logits``, ``resized`` or ``labels``.
        backbone_alone: without neck and heads.
        calibration: images for an INT8 file; empty: none is made.
        check: compare with torch before it is written.
        overwrite: replace a file that exists.
    """

    kind: str
    precision: str
    opset: int
    legacy: bool
    output: str
    backbone_alone: bool
    calibration: Sequence[str]
    check: bool
    overwrite: bool


def export(
    name: str,
    cfg: Config | None,
    checkpoint: str | None,
    out: Path,
    settings: Settings,
    tell: Callable[[str], object],
) -> None:
    """Write a file of a model.

    Args:
        name: of the config, or a backbone's short name.
        cfg: None: it is a backbone.
        checkpoint: weights; None for random ones, with a warning.
        tell: takes lines for people.

    Raises:
        UserError: the model is none that can be exported, the checkpoint does not fit, the file exists as an
            input, cannot be written, or is not what torch computes.
    """
    if settings.kind == ONNX:
        check_opset(settings.opset, settings.legacy)
    if out.suffix != SUFFIXES[settings.kind]:
        raise UserError(f"--out {out}: the file to write must end in {SUFFIXES[settings.kind]}")
    inputs = (*settings.calibration, *filter(None, (cfg and cfg.filename, checkpoint)))
    refuse_overwriting(inputs, [out], "--out")
    if out.exists() and not settings.overwrite:
        raise UserError(f"{out} exists: name another --out, or add --overwrite")
    if settings.calibration and (cfg is None or settings.backbone_alone):
        raise UserError(
            "--int8 needs images as the model's test pipeline prepares them: export the whole model"
        )
    if checkpoint is None:
        warn_once("no checkpoint given: weights, and so what the file computes, are random")
    graph, metadata = _graph(name, cfg, checkpoint, settings)
    dtype = torch.float32 if metadata["task"] == BACKBONE else torch.uint8
    ready = prepared(graph, settings.precision, settings.legacy)
    if settings.kind == ONNX:
        content = to_onnx(ready, dtype, settings.opset, settings.legacy, metadata)
        if settings.calibration:
            model = quantised(content, settings.calibration, metadata["resize"])
            content = with_metadata(model, metadata | {"precision": "int8"})
    else:
        content = to_program(ready, dtype, metadata)
    run = _loaded(content, settings)
    if settings.check:
        check(graph, run, dtype, settings, tell)
    write_atomically(out, content)
    tell(f"{metadata['task']}: {len(content) / 1e6:.1f} MB written to {out}")


def _graph(
    name: str, cfg: Config | None, checkpoint: str | None, settings: Settings
) -> tuple[nn.Module, dict[str, Any]]:
    """What is exported, and its metadata."""
    precision = {"precision": settings.precision}
    if cfg is None:
        backbone = build_backbone(name)
        if checkpoint is not None:
            load_backbone(backbone, read_checkpoint(checkpoint), checkpoint)
        graph = of_backbone(backbone)
        return graph, describe(name, graph, BACKBONE, None, {}) | precision
    with blame_config(cfg):
        predictor = SamplePredictor(cfg, checkpoint, "cpu")
        if settings.backbone_alone:
            graph = of_backbone(predictor.model)
            return graph, describe(name, graph, BACKBONE, None, {}) | precision
        if is_segmentor(cfg):
            graph, task = of_segmentor(predictor.model, settings.output), SEGMENTATION
        else:
            _check_for_detectors(settings)
            graph = of_detector(predictor.model)
            task = INSTANCES if "masks" in graph.output_names else DETECTION
        metadata = describe(name, graph, task, cfg, predictor.dataset_meta)
    return graph, metadata | precision


def _check_for_detectors(settings: Settings) -> None:
    """A UserError for what is made of backbones and segmentors alone."""
    wrong = (
        (settings.kind != ONNX, f"--format {TORCH_EXPORT}"),
        (settings.legacy, "--legacy"),
        (settings.calibration, "--int8"),
        (settings.output != LOGITS, "--resize or --argmax"),
    )
    for is_asked, option in wrong:
        if is_asked:
            raise UserError(
                f"a detector cannot be exported with {option}: leave it out, or export the --backbone alone"
            )


def _loaded(content: bytes, settings: Settings) -> Callable[[Tensor], list[Tensor]]:
    """What runs the file; a UserError if nothing does: a runtime lags behind the newest operators."""
    try:
        return runner_of(content, settings.kind)
    except Exception as error:  # ONNX Runtime has its own for each kind.
        hint = f", or --opset lower than {settings.opset}" if settings.kind == ONNX else ""
        raise UserError(
            f"the exported model cannot be run here, and was not written ({in_one_line(error)}): try "
            f"another version of torch or onnxruntime{hint}"
        ) from error


def describe(
    name: str, graph: nn.Module, task: str, cfg: Config | None, dataset_meta: Mapping[str, Any]
) -> dict[str, Any]:
    """The metadata of a file, for :class:`flatten_det.onnx_runner.OnnxRunner` and other readers.

    Args:
        name: of the config or backbone.
        graph: what is exported.
        task: one of those above.
        cfg: of the whole model; None: a backbone alone.
        dataset_meta: ``classes`` and maybe ``palette``.

    Raises:
        UserError: the test pipeline does something to images that the file's readers would not.
    """
    found: dict[str, Any] = {"flatten_det": version("flatten-det"), "model": name, "task": task}
    if task == BACKBONE:
        return found
    normalised = graph.normalised
    found |= {
        "names": [str(name) for name in dataset_meta["classes"]],
        "palette": _palette(dataset_meta),
        "channel_order": "rgb",
        # Inside the file; for who wants to know.
        "mean": normalised.mean.flatten().tolist(),
        "std": normalised.std.flatten().tolist(),
        "resize": _resize_rule(cfg),
    }
    if task == SEGMENTATION:
        head = graph.head
        return found | {
            "output": graph.output,
            "align_corners": bool(head.align_corners),
            "threshold": head.threshold,
        }
    size_divisor = cfg.model.data_preprocessor.get("pad_size_divisor", 1)
    found["size_divisor"] = size_divisor
    if task == INSTANCES:
        found["mask_threshold"] = find_field(cfg.model.test_cfg, "mask_thr_binary")
    return found


def _palette(dataset_meta: Mapping[str, Any]) -> list[list[int]] | None:
    palette = dataset_meta.get("palette")
    # Other than colours, MMDetection has names of palettes there.
    if palette is None or isinstance(palette, str):
        return None
    return [[int(part) for part in colour] for colour in palette]


def _resize_rule(cfg: Config) -> dict[str, Any] | None:
    rule = None
    for step in datasets_under_test(cfg)[0].pipeline:
        kind = type_name(step)
        if kind in _KEEPING or loads_annotations(step):
            continue
        if kind != "Resize" or rule is not None:
            raise UserError(
                f"config file {cfg.filename}: exported files prepare images by one Resize, and the test "
                f"pipeline has {kind}, too: leave it out, or export the --backbone alone"
            )
        rule = {"keep_ratio": bool(step.get("keep_ratio", False))}
        scale = step.get("scale")
        if scale is not None:
            both = [scale, scale] if isinstance(scale, int) else scale
            rule["scale"] = [int(side) for side in both]
        else:
            rule["scale_factor"] = float(step["scale_factor"])
    return rule
