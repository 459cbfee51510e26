"""Predict for image files: pictures and data."""

import sys
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from rich.progress import Progress

from ..config import blame_config
from ..data.loading import left_out
from ..files.atomic import refuse_overwriting
from ..files.images import find_images, output_names
from .drawing import draw_prediction
from .predictions import save_prediction
from .predictor import Predictor, replay_cuda_graphs
from .tiles import TiledPredictor, Tiling


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
    with blame_config(cfg) as stage:
        if tiling is None:
            predictor = Predictor(cfg, checkpoint, device, full_size)
        else:
            of_image = progress.add_task("Tiles of image")

            def show_tiles(done: int, total: int) -> None:
                progress.update(of_image, completed=done, total=total)

            predictor = TiledPredictor(cfg, checkpoint, device, tiling, full_size, show_tiles)
        if cuda_graphs:
            replay_cuda_graphs(predictor.model)
        classes = predictor.dataset_meta["classes"]
        if checkpoint is None:
            warning = "warning: no checkpoint given: weights, and so predictions, are random"
            print(warning, file=sys.stderr)
        with progress:
            samples = predictor(images, batch_size)
            for sample in progress.track(samples, len(images), description="Predicting"):
                stage.has_begun = True
                name = names[sample.img_path]
                save_prediction(sample, classes, Path(out_dir, "preds", name), score_thr)
                picture = Path(out_dir, "vis", f"{name}.jpg")
                draw_prediction(predictor.visualizer, sample, picture, score_thr, draw_gt=False)
    done = len(images) - len(predictor.broken)
    print(f"{done} images: pictures in {out_dir}/vis, predictions in {out_dir}/preds")
    if predictor.broken:
        raise left_out(predictor.broken, len(images))
