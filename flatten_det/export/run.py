"""Make a file of a config's model or of a backbone: ``flatten-det export``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from ..backbones import build_backbone
from ..backbones.weights import load_backbone
from ..config import blame_config, is_segmentor
from ..errors import UserError, warn_once
from ..files.atomic import refuse_overwriting, write_atomically
from ..files.checkpoints import read_checkpoint
from ..predict.engine import SamplePredictor
from .check import compare, runner_of
from .description import BACKBONE, SEGMENTATION, describe
from .exporters import (
    ONNX,
    SUFFIXES,
    check_opset,
    to_onnx,
    to_program,
    with_metadata,
)
from .graphs import FULL, HALF, SUPPORTED, of_backbone, of_segmentor, prepared
from .quantisation import quantised

# Differences that rounding explains, as parts of the largest value.
_TOLERANCES = {FULL: 1e-3, HALF: 2e-2}


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
    if settings.check:
        _check(graph, content, settings, dtype, tell)
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
        if not is_segmentor(cfg):
            raise UserError(
                f"config file {cfg.filename}: a detector cannot be exported as a whole yet: supported are "
                f"{SUPPORTED}; --backbone exports the backbone of any model"
            )
        graph = of_segmentor(predictor.model, settings.output)
        metadata = describe(name, graph, SEGMENTATION, cfg, predictor.dataset_meta)
    return graph, metadata | precision


def _check(
    graph: nn.Module,
    content: bytes,
    settings: Settings,
    dtype: torch.dtype,
    tell: Callable[[str], object],
) -> None:
    """Compare with torch and tell it; a UserError for more than rounding."""
    runtime = "onnxruntime" if settings.kind == ONNX else "exported"
    tolerance = None if settings.calibration else _TOLERANCES[settings.precision]
    for comparison in compare(graph, runner_of(content, settings.kind), dtype):
        tell(comparison.line(runtime))
        is_wrong = tolerance is not None and not comparison.difference <= tolerance
        if is_wrong or not comparison.is_finite:
            raise UserError(
                f"the exported model differs from torch by {comparison.difference:.1e} of its largest value, "
                f"more than {tolerance}: nothing was written; report this model"
            )
