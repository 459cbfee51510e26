"""From a config and a checkpoint, or predictions, to the report's files."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook

from ...config import find_field
from ...errors import UserError
from ...predict.evaluate import Tested, run_test
from ..output import write_json
from .collect import DETECTION, PANOPTIC, find_task, predict_detections, read_predictions
from .detection_report import report_detection
from .report import JSON, PAGE, Report, ReportOptions, write_page
from .segmentation_report import report_panoptic, report_segmentation


def evaluate_model(
    cfg: Config,
    checkpoint: str | None,
    predictions: Path | None,
    options: ReportOptions,
    about: dict[str, Any],
    hooks: Sequence[Hook] = (),
) -> Report:
    """Analyse a checkpoint on a config's test data, or the predictions of a file, and write all.

    Args:
        cfg: a complete config.
        checkpoint: weights to test; None if there are predictions.
        predictions: of detection, see :func:`.collect.read_predictions`.
        options: what to write.
        about: what ``report.json`` says first.
        hooks: of the test, besides those that it needs.

    Raises:
        UserError: Something does not fit, or nothing can be read or analysed.
    """
    task = find_task(cfg)
    annotations = find_field(cfg.get("test_evaluator"), "ann_file")
    check = options.check([cfg.filename, checkpoint, predictions, annotations])
    if predictions is not None and task != DETECTION:
        raise UserError(
            f"--predictions is for detection, and config file {cfg.filename} is for {task}: give its "
            "checkpoint"
        )

    def test(own: Sequence[Hook], metrics: Sequence[BaseMetric] = ()) -> Tested:
        return run_test(cfg, checkpoint, [*own, *hooks], metrics)

    with warnings.catch_warnings():
        # Names in scripts that matplotlib's font does not have; the page has them.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        if task == DETECTION:
            data = (
                predict_detections(test, check)
                if predictions is None
                else read_predictions(cfg, predictions, check)
            )
            report = report_detection(data, options)
        elif task == PANOPTIC:
            report = report_panoptic(test, options, check)
        else:
            report = report_segmentation(test, options, check)
        write_json(about | {"task": task} | report.content, options.out_dir / JSON)
        text = "; ".join(f"{key}: {value}" for key, value in about.items() if value is not None)
        write_page(options.out_dir / PAGE, "Where the model errs", text, report.sections)
    return report
