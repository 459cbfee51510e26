"""What is analysed: predictions and truth out of a test, or predictions of a file with a config's truth."""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmdet.evaluation import CocoMetric, CocoPanopticMetric
from mmdet.registry import METRICS as DET_METRICS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, METRICS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from ...compat.panoptic_api import PQStat
from ...config import all_datasets, blame_config, is_segmentor
from ...data.coco import NotJsonError, is_box, is_number, parse_json
from ...data.loading import CheckedPipeline, blame_annotation_files
from ...errors import UserError, warn_once
from ...files.images import pixel_limit
from ...files.user_files import read_text
from ...predict.evaluate import KeptResults, Tested
from ...results.rle import run_lengths
from .detections import KEYS
from .pixels import PixelCounts

DETECTION, PANOPTIC, SEGMENTATION = "detection", "panoptic", "segmentation"
LONGEST = 1000  # pixels of label maps that are kept for pictures
_PICKLES = (".pkl", ".pickle")


def find_task(cfg: Config) -> str:
    """What a config's test measures.

    Raises:
        UserError: Nothing that can be analysed.
    """
    if is_segmentor(cfg):
        return SEGMENTATION
    kinds = [_metric_class(node) for node in _metrics_of(cfg)]
    for base, task in ((CocoPanopticMetric, PANOPTIC), (CocoMetric, DETECTION)):
        if any(isinstance(kind, type) and issubclass(kind, base) for kind in kinds):
            return task
    names = ", ".join(str(node.get("type")) for node in _metrics_of(cfg)) or "none"
    raise UserError(
        f"config file {cfg.filename}: its test_evaluator ({names}) is none that can be analysed: it takes "
        "CocoMetric (with ann_file, a COCO file), CocoPanopticMetric, or a config of MMSegmentation"
    )


def _metrics_of(cfg: Config) -> list[dict]:
    found = cfg.get("test_evaluator") or []
    return [found] if isinstance(found, dict) else list(found)


def _metric_class(node: dict) -> Any:
    kind = node.get("type")
    return DET_METRICS.get(kind) if isinstance(kind, str) else kind


class ImageFiles:
    """The files of the images that are tested.

    Attributes:
        paths: of all images, by id (detection) or number.
        files: these, and the label maps that are known.
    """

    def __init__(self, dataset: Any, max_pixels: int) -> None:
        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
        self.paths = {info.get("img_id", n): str(info["img_path"]) for n, info in enumerate(infos)}
        self.files = [info.get(key) for info in infos for key in ("img_path", "seg_map_path")]
        prefixes = [getattr(each, "data_prefix", None) or {} for each in all_datasets(dataset)]
        folders = [str(folder) for prefix in prefixes for folder in prefix.values()]
        self._load = CheckedPipeline(
            [LoadImageFromFile()], max_pixels, folders if all(folders) else []
        )

    def read(self, path: str) -> np.ndarray:
        """The pixels, RGB (H, W, 3); an ImageError if they cannot be read."""
        return self._load({"img_path": path})["img"][..., 2::-1]


@dataclass(frozen=True)
class DetectionData:
    """Truth and results of detection, and how the config's metric measures them."""

    images: ImageFiles
    truth: COCO
    image_ids: list[Any]
    categories: list[Any]  # ids, by label
    results: dict[str, list[dict[str, Any]]]  # in COCO's format, by kind of IoU: bbox, segm
    ious: Sequence[float]
    max_detections: Sequence[int]
    unreadable: UserError | None = None
    left_out: int = 0  # images that the predictions' file does not have


def predict_detections(
    test: Callable[..., Tested], check: Callable[[ImageFiles], None]
) -> DetectionData:
    """Predict in a test, which is run with a hook and a metric of ours; ``check`` gets the images before."""
    hook, kept = _CheckImages(check), KeptResults(out_file_path="kept.pkl")
    tested = test([hook], [kept])
    metric = _coco_metric(tested.runner.test_evaluator.metrics)
    results = {
        kind: _as_coco(kept.kept, metric.cat_ids, kind)
        for kind in _kinds_of(metric)
        if kind == "bbox" or "masks" in kept.kept[0]["pred_instances"]
    }
    return DetectionData(
        hook.images,
        metric._coco_api,
        list(metric.img_ids),
        list(metric.cat_ids),
        results,
        np.atleast_1d(metric.iou_thrs),
        metric.proposal_nums,
        tested.unreadable,
    )


def read_predictions(cfg: Config, path: Path, check: Callable[[ImageFiles], None]) -> DetectionData:
    """Take the predictions of a file: COCO's results (JSON), or what ``flatten-det test --out`` writes.

    Raises:
        UserError: It is neither, or does not fit the config's annotations.
    """
    with (
        blame_config(cfg),
        blame_annotation_files(cfg),
        DefaultScope.overwrite_default_scope(cfg.default_scope),
    ):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        metric = _coco_metric([METRICS.build(node) for node in _metrics_of(cfg)])
        truth, classes = metric._coco_api, dataset.metainfo["classes"]
    if truth is None:
        raise UserError(
            "--predictions needs the truth as a COCO file: set ann_file of the CocoMetric in "
            f"{cfg.filename}, or give a checkpoint"
        )
    images = ImageFiles(dataset, pixel_limit(cfg))
    check(images)
    categories, all_ids = truth.get_cat_ids(cat_names=classes), truth.get_img_ids()
    if path.suffix.lower() in _PICKLES:
        kept = _read_pickle(path, truth, len(categories))
        there = {entry["img_id"] for entry in kept}
        ids = [id_ for id_ in all_ids if id_ in there]
        has_masks = all("masks" in entry["pred_instances"] for entry in kept)
        kinds = [kind for kind in _kinds_of(metric) if kind == "bbox" or has_masks]
        results = {kind: _as_coco(kept, categories, kind) for kind in kinds}
    else:
        given = _read_json(path, truth)
        ids = all_ids
        kinds = [k for k in _kinds_of(metric) if all(KEYS[k] in each for each in given)]
        results = dict.fromkeys(kinds, given)
    for kind in _kinds_of(metric):
        if kind not in kinds:
            warn_once(f"{path} does not have {KEYS[kind]} for all: {kind} is not analysed")
    if not kinds:
        raise UserError(f"{path} holds nothing that the CocoMetric of {cfg.filename} measures")
    left_out = len(all_ids) - len(ids)
    thresholds = np.atleast_1d(metric.iou_thrs)
    return DetectionData(
        images, truth, ids, categories, results, thresholds, metric.proposal_nums, left_out=left_out
    )


def _coco_metric(metrics: Sequence[Any]) -> CocoMetric:
    return next(metric for metric in metrics if isinstance(metric, CocoMetric))


def _kinds_of(metric: CocoMetric) -> list[str]:
    kinds = [kind for kind in ("bbox", "segm") if kind in metric.metrics]
    if not kinds:
        raise UserError(
            f"the CocoMetric of the config measures {', '.join(metric.metrics)} only: add bbox or segm "
            "to its metric"
        )
    return kinds


def _as_coco(kept: Sequence[dict], categories: Sequence[Any], kind: str) -> list[dict[str, Any]]:
    """Results in COCO's format from mmdet's, as its CocoMetric makes them."""
    results = []
    for entry in kept:
        found = entry["pred_instances"]
        boxes = np.array(found["bboxes"].tolist(), float).reshape(-1, 4)
        boxes[:, 2:] -= boxes[:, :2]
        scores = found["scores"] if kind == "bbox" else found.get("mask_scores", found["scores"])
        shapes = boxes.tolist() if kind == "bbox" else found["masks"]
        for label, score, shape in zip(
            found["labels"].tolist(), scores.tolist(), shapes, strict=True
        ):
            results.append(
                {
                    "image_id": entry["img_id"],
                    "category_id": categories[label],
                    "score": score,
                    KEYS[kind]: shape,
                }
            )
    return results


def _read_pickle(path: Path, truth: COCO, classes: int) -> list[dict]:
    kept = mmengine.load(str(path))
    if not (isinstance(kept, list) and kept):
        raise UserError(
            f"{path} holds no list of predictions: give what flatten-det test --out writes"
        )
    for number, entry in enumerate(kept):
        try:
            found, image = entry["pred_instances"], truth.imgs[entry["img_id"]]
            count = len(found["labels"])
            fits = (
                tuple(found["bboxes"].shape) == (count, 4)
                and tuple(found["scores"].shape) == (count,)
                and all(0 <= label < classes for label in found["labels"].tolist())
                and np.isfinite(found["bboxes"].tolist()).all()
                and np.isfinite(found["scores"].tolist()).all()
                and len(found.get("masks", range(count))) == count
                and all(_is_mask(mask, image) for mask in found.get("masks", ()))
            )
        except (KeyError, TypeError, AttributeError, ValueError):
            fits = False
        if not fits:
            raise UserError(
                f"{path}: entry {number} is no prediction for the config's images and {classes} classes: "
                "give what flatten-det test --out writes with this config"
            )
    return kept


def _read_json(path: Path, truth: COCO) -> list[dict]:
    try:
        given = parse_json(read_text(path))
    except NotJsonError as error:
        raise UserError(f"{path} {error}") from error
    if not isinstance(given, list):
        raise UserError(
            f"{path} holds no list: give COCO's results, [{{image_id, category_id, ...}}]"
        )
    for number, result in enumerate(given):
        if reason := _why_no_result(result, truth):
            raise UserError(
                f"{path}: result {number} {reason}: correct it, or the config's ann_file"
            )
        segment = result.get("segmentation")
        if segment is not None and isinstance(segment["counts"], list):
            result["segmentation"] = coco_mask.frPyObjects(segment, *segment["size"])
    return given


def _why_no_result(result: Any, truth: COCO) -> str | None:
    if not isinstance(result, dict):
        return "is no object"
    for key, known in (("image_id", truth.imgs), ("category_id", truth.cats)):
        id_ = result.get(key)
        if not isinstance(id_, int | str) or id_ not in known:
            return f"has the {key} {id_!r}, which is not in the annotations"
    if not is_number(result.get("score")):
        return "has no score that is a number"
    if "bbox" not in result and "segmentation" not in result:
        return "has neither bbox nor segmentation"
    if "bbox" in result and not (is_box(result["bbox"]) and min(result["bbox"][2:]) >= 0):
        return "has no bbox of four numbers (x, y, width, height)"
    if "segmentation" in result and not _is_mask(
        result["segmentation"], truth.imgs[result["image_id"]]
    ):
        return "has a segmentation that is no run lengths of its image's size"
    return None


def _is_mask(mask: Any, image: dict) -> bool:
    """Whether this is COCO's run lengths, of an image's size."""
    if not isinstance(mask, dict) or mask.get("size") != [image.get("height"), image.get("width")]:
        return False
    counts = mask.get("counts")
    if isinstance(counts, list):
        is_run = all(isinstance(n, int) and n >= 0 for n in counts)
        return is_run and sum(counts) == math.prod(mask["size"])
    try:
        return isinstance(counts, str | bytes) and bool(run_lengths(mask))
    except ValueError:
        return False


@dataclass(frozen=True)
class WorstLabels:
    """An image with many wrong pixels."""

    path: str
    wrong: float  # share of the pixels that count
    iou: float  # mean over the classes in it
    shape: tuple[int, ...]  # of the image
    truth: np.ndarray = field(repr=False)  # of both every n-th row and column, see LONGEST
    predicted: np.ndarray = field(repr=False)


class _CheckImages(Hook):
    """Looks at the images before the test, and keeps them as ``images``."""

    def __init__(self, check: Callable[[ImageFiles], None]) -> None:
        self._check = check

    def before_test(self, runner: Runner) -> None:
        self.images = ImageFiles(runner.test_dataloader.dataset, pixel_limit(runner.cfg))
        self._check(self.images)


class CollectPixels(_CheckImages):
    """Counts the pixels of a segmentor's test, and keeps the label maps of the worst images.

    Attributes:
        counts: of all pixels.
        scores: share of wrong pixels and mean IoU of each image, by path; NaN without pixels that count.
        classes, palette: of the data set.
    """

    def __init__(self, worst: int, check: Callable[[ImageFiles], None]) -> None:
        super().__init__(check)
        self._most = worst
        self._worst: list[tuple[float, int, WorstLabels]] = []
        self.scores: dict[str, tuple[float, float]] = {}

    def before_test(self, runner: Runner) -> None:
        """Take classes, and the label that does not count, from the data set and its metric."""
        super().before_test(runner)
        meta = runner.test_dataloader.dataset.metainfo
        self.classes, self.palette = list(meta["classes"]), meta.get("palette")
        metrics = runner.test_evaluator.metrics
        ignored = next((m.ignore_index for m in metrics if hasattr(m, "ignore_index")), 255)
        self.counts = PixelCounts(len(self.classes), ignored)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch, outputs: Sequence[BaseDataElement]
    ) -> None:
        """Count the pixels of a batch."""
        for sample in outputs:
            if "gt_sem_seg" not in sample:
                raise UserError(
                    f"image {sample.img_path} has no label map to compare with: the test pipeline needs "
                    "LoadAnnotations, and the data set its label maps"
                )
            predicted, truth = (
                each.data.squeeze(0).cpu().numpy().astype(np.int32)
                for each in (sample.pred_sem_seg, sample.gt_sem_seg)
            )
            wrong, iou = self.counts.add(truth, predicted)
            self.scores[sample.img_path] = wrong, iou
            if wrong > 0:
                step = -(-max(truth.shape) // LONGEST)
                labels = [each[::step, ::step].astype(np.int16) for each in (truth, predicted)]
                found = WorstLabels(sample.img_path, wrong, iou, truth.shape, *labels)
                heapq.heappush(self._worst, (wrong, -len(self.scores), found))
                if len(self._worst) > self._most:
                    heapq.heappop(self._worst)

    def worst(self) -> list[WorstLabels]:
        """Those with the largest share of wrong pixels, the worst first."""
        return [found for *_, found in sorted(self._worst, key=lambda each: each[:2], reverse=True)]


class CollectPanoptic(_CheckImages):
    """Keeps what the panoptic metric counts, of all images and of each.

    Attributes:
        total: of all images.
        by_image: by path.
        metric: of the config.
    """

    def __init__(self, check: Callable[[ImageFiles], None]) -> None:
        super().__init__(check)
        self.total, self.by_image = PQStat(), {}

    def before_test(self, runner: Runner) -> None:
        """Find the metric; a UserError if it counts at the end only."""
        super().before_test(runner)
        metrics = runner.test_evaluator.metrics
        self.metric = next(m for m in metrics if isinstance(m, CocoPanopticMetric))
        if self.metric.tmp_dir is None:
            raise UserError(
                "the CocoPanopticMetric of the config has outfile_prefix, with which it does not count by "
                "image: leave it out (--cfg-options test_evaluator.outfile_prefix=None)"
            )

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch, outputs: Sequence[BaseDataElement]
    ) -> None:
        """Add up what the metric has counted of a batch."""
        counted = self.metric.results[len(self.metric.results) - len(outputs) :]
        for sample, of_image in zip(outputs, counted, strict=True):
            self.by_image[sample.img_path] = of_image
            self.total += of_image
