"""Predict for image files: pictures and data."""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from rich.progress import Progress

from ..data.loading import left_out
from ..data.tiling import Tiling
from ..files.atomic import refuse_overwriting
from ..files.images import find_images, output_names, read_image
from ..results import Prediction
from .drawing import picture_may_fail
from .predictor import PredictionWarning, Predictor


def infer(
    cfg: Config,
    checkpoint: str | None,
    inputs: Sequence[str],
    out_dir: str,
    device: str,
    score_thr: float,
    batch_size: int,
    full_size: bool = False,
    tiling: Tiling | None = None,
    cuda_graphs: bool = False,
    precision: str = "auto",
) -> None:
    """Write drawn pictures to ``<out_dir>/vis`` and predictions to ``<out_dir>/preds``.

    Args:
        cfg: A complete config.
        checkpoint: Weights; None for random ones, with a warning.
        inputs: Image files, folders and glob patterns.
        out_dir: Folder for the results, named like the images.
        device: Where to run, such as ``cpu`` or ``cuda:0``.
        score_thr: Detections below it are left out.
        batch_size: Images, or tiles, per forward pass.
        full_size: Leave images, or tiles, at their own size.
        tiling: How to cut images into tiles, for a detector; None: take them as a whole.
        cuda_graphs: Replay the backbone from CUDA graphs, see :mod:`flatten_det.backbones.cuda`.
        precision: What the model computes in, see :class:`.predictor.Predictor`.

    Raises:
        UserError: No images; results would overwrite them; some cannot be read (after all others are
            done); a checkpoint that does not fit; tiles for a model that finds no boxes; CUDA graphs
            for one with another backbone than ours.
    """
    images = find_images(inputs)
    names = output_names(images)
    refuse_overwriting(
        [*images, *filter(None, (cfg.filename, checkpoint))],
        (
            Path(out_dir, folder, f"{name}{suffix}")
            for name in names.values()
            for folder, suffix in (("vis", ".jpg"), ("preds", ".json"), ("preds", ".png"))
        ),
        "--out-dir",
    )
    progress = Progress()
    options: dict[str, Any] = {}
    if tiling is not None:
        of_image = progress.add_task("Tiles of image")
        options["on_tile"] = lambda done, total: progress.update(
            of_image, completed=done, total=total
        )
    with warnings.catch_warnings():
        # Told once, in the command's own words.
        warnings.simplefilter("ignore", PredictionWarning)
        predictor = Predictor(
            cfg,
            checkpoint,
            device,
            precision,
            batch_size=batch_size,
            full_size=full_size,
            tiling=tiling,
            cuda_graphs=cuda_graphs,
            **options,
        )
        if checkpoint is None:
            warning = "warning: no checkpoint given: weights, and so predictions, are random"
            print(warning, file=sys.stderr)
        with progress:
            predictions = predictor.stream(images)
            for prediction in progress.track(predictions, len(images), description="Predicting"):
                name = names[prediction.source]
                prediction.save(Path(out_dir, "preds", f"{name}.json"), score_thr)
                with picture_may_fail(prediction.source):
                    _with_pixels(prediction).save(Path(out_dir, "vis", f"{name}.jpg"), score_thr)
    done = len(images) - len(predictor.broken)
    print(f"{done} images: pictures in {out_dir}/vis, predictions in {out_dir}/preds")
    if predictor.broken:
        raise left_out(predictor.broken, len(images))


def _with_pixels(prediction: Prediction) -> Prediction:
    """With the image as the model saw it: Pillow alone does not read all that OpenCV does."""
    if prediction.pixels is not None:
        return prediction
    return replace(prediction, pixels=read_image(prediction.source)[..., ::-1])
