"""Predict for image files, videos and cameras: pictures and data."""

import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from rich.progress import Progress

from ..config import is_segmentor
from ..data.loading import left_out
from ..errors import UserError, warn_once
from ..files.atomic import refuse_overwriting
from ..files.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES, find_images, output_names, read_image
from ..results import Prediction
from ..results.prediction import SCORE_THRESHOLD
from .coco_results import IDS, RESULTS, CocoResults
from .drawing import picture_may_fail
from .predictor import PredictionWarning, Predictor
from .video import FrameSource, VideoOutput, predict_video


@dataclass(frozen=True)
class InferOptions:
    """What to write, and where.

    Attributes:
        out_dir: folder for the results, named like the inputs: drawn pictures and videos in ``vis``,
            predictions in ``preds``.
        score: detections below it are left out; None: below 0.3, and none from ``as_coco``.
        as_coco: write one file of COCO's results, see :class:`.coco_results.CocoResults`.
        annotations: COCO's annotation file with the ids for it.
        pictures: write pictures and videos.
        video_codec: of the videos, see :class:`.video.VideoOutput`.
        camera_frames: how many frames to take of a camera; None: until Ctrl-C.
    """

    out_dir: str = "outputs"
    score: float | None = None
    as_coco: bool = False
    annotations: str | None = None
    pictures: bool = True
    video_codec: str | None = None
    camera_frames: int | None = None

    @property
    def drawn(self) -> float:
        """The score from which on detections are drawn, and told in JSON."""
        return SCORE_THRESHOLD if self.score is None else self.score

    def picture(self, name: str) -> Path:
        return Path(self.out_dir, "vis", f"{name}.jpg")

    def data(self, name: str) -> Path:
        return Path(self.out_dir, "preds", f"{name}.json")

    def of_video(self, name: str) -> VideoOutput:
        video = Path(self.out_dir, "vis", f"{name}.mp4") if self.pictures else None
        lines = Path(self.out_dir, "preds", f"{name}.jsonl")
        return VideoOutput(lines, video, self.video_codec, self.drawn)


def infer(
    cfg: Config,
    checkpoint: str | None,
    inputs: Sequence[str],
    options: InferOptions,
    **of_predictor: Any,
) -> None:
    """Write drawn pictures and predictions.

    Args:
        cfg: A complete config.
        checkpoint: Weights; None for random ones, with a warning.
        inputs: Image and video files, folders, glob patterns, addresses of images, numbers of cameras.
        options: What to write.
        **of_predictor: Of :class:`.predictor.Predictor`, such as ``device``.

    Raises:
        UserError: No images; results would overwrite them; some cannot be read (after all others are
            done); or one of the predictor's.
    """
    images, videos = _sorted_out(inputs)
    names = result_names(images, videos)
    _refuse_overwriting(cfg, checkpoint, images, videos, names, options)
    if options.as_coco and is_segmentor(cfg):
        raise UserError("--format coco is of objects, and a segmentor's label maps know none")
    if options.as_coco and videos:
        raise UserError("--format coco is of images: predict for videos and cameras without it")
    progress = Progress()
    if of_predictor.get("tiling") is not None:
        of_image = progress.add_task("Tiles of image")
        of_predictor["on_tile"] = lambda done, total: progress.update(
            of_image, completed=done, total=total
        )
    with warnings.catch_warnings():
        # Told once, in the command's own words.
        warnings.simplefilter("ignore", PredictionWarning)
        predictor = Predictor(cfg, checkpoint, bgr=True, **of_predictor)
        if checkpoint is None:
            warn_once("no checkpoint given: weights, and so predictions, are random")
        works = [partial(_predict_images, images=images, names=names)] if images else []
        works += [partial(_predict_video, source=each, name=names[each]) for each in videos]
        failures = []
        with progress:
            for work in works:
                try:
                    work(predictor, options=options, progress=progress)
                except UserError as error:
                    failures.append(error)
    if len(failures) > 1:
        raise UserError("; ".join(map(str, failures)))
    for failure in failures:
        raise failure


def _sorted_out(inputs: Sequence[str]) -> tuple[list[str], list[str | int]]:
    """Images, and videos and cameras."""
    cameras = [each for each in inputs if each.isdecimal() and not os.path.exists(each)]
    others = [each for each in inputs if each not in cameras]
    found = find_images(others, (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
    videos = [path for path in found if path.lower().endswith(VIDEO_SUFFIXES)]
    images = [path for path in found if path not in videos]
    return images, [*videos, *map(int, dict.fromkeys(cameras))]


def result_names(images: Sequence[str], videos: Sequence[str | int]) -> dict[str | int, str]:
    """A name for the results of each input; a video's is also that of the folder with its maps."""
    names: dict[str | int, str] = {}
    names |= output_names([*images, *(each for each in videos if isinstance(each, str))])
    names |= {each: f"camera{each}" for each in videos if isinstance(each, int)}
    for video in videos:
        others = [name for each, name in names.items() if each != video]
        while any(f"{name}/".startswith(f"{names[video]}/") for name in others):
            names[video] += "_"
    return names


def _refuse_overwriting(
    cfg: Config,
    checkpoint: str | None,
    images: Sequence[str],
    videos: Sequence[str | int],
    names: dict[str | int, str],
    options: InferOptions,
) -> None:
    results = [Path(options.out_dir, name) for name in (RESULTS, IDS)] if options.as_coco else []
    for image in images:
        data = options.data(names[image])
        results += [options.picture(names[image]), data, data.with_suffix(".png")]
    for video in videos:
        output = options.of_video(names[video])
        results += [output.predictions, output.video or output.predictions]
    inputs = [*images, *map(str, videos), cfg.filename, checkpoint, options.annotations]
    refuse_overwriting(filter(None, inputs), results, "--out-dir")


def _predict_images(
    predictor: Predictor,
    images: Sequence[str],
    names: dict[str | int, str],
    options: InferOptions,
    progress: Progress,
) -> None:
    """Write what the options say; a UserError in the end if some have no prediction."""
    results = None
    if options.as_coco:
        results = CocoResults(images, predictor.names, options.annotations)
    predictions = predictor.stream(images)
    for prediction in progress.track(predictions, len(images), description="Predicting"):
        name = names[prediction.source]
        if results is None:
            prediction.save(options.data(name), options.drawn)
        else:
            results.add(prediction.above(options.score or 0))
        if options.pictures:
            with picture_may_fail(prediction.source):
                _with_pixels(prediction).save(options.picture(name), options.drawn)
    written = ["pictures in " + os.path.join(options.out_dir, "vis")] if options.pictures else []
    if results is None:
        written.append("predictions in " + os.path.join(options.out_dir, "preds"))
    else:
        written += [str(path) for path in results.write(Path(options.out_dir))]
    print(f"{len(images) - len(predictor.broken)} images: {', '.join(written)}")
    if predictor.broken:
        raise left_out(predictor.broken, len(images))


def _with_pixels(prediction: Prediction) -> Prediction:
    """With the image as the model saw it: Pillow alone does not read all that OpenCV does."""
    if prediction.pixels is not None:
        return prediction
    return replace(prediction, pixels=read_image(prediction.source)[..., ::-1])


def _predict_video(
    predictor: Predictor, source: str | int, name: str, options: InferOptions, progress: Progress
) -> None:
    output = options.of_video(name)
    most = options.camera_frames if isinstance(source, int) else None
    frames = FrameSource(source, predictor.max_pixels, most)
    begin = time.perf_counter()
    task = progress.add_task(frames.name, total=frames.total)

    def rate() -> str:
        return f"{frames.count / (time.perf_counter() - begin):.3g} frames/s"

    predict_video(
        predictor,
        frames,
        output,
        lambda count: progress.update(
            task, completed=count, description=f"{frames.name}, frame {count}, {rate()}"
        ),
    )
    written = [str(path) for path in (output.video, output.predictions) if path is not None]
    print(f"{frames.name}: {frames.count} frames, {rate()}: {', '.join(written)}")
