"""A detector for images that are larger than what it was trained on: tile by tile, and merged."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.models.utils import samplelist_boxtype2tensor
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from mmseg.models.segmentors import BaseSegmentor
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import nms

from ..config import datasets_under_test
from ..data.loading import ImageError
from ..data.tiling import Tiling, Window
from ..errors import UserError
from ..files.checkpoints import unwrapped
from .engine import Predicted, SamplePredictor, without_resizing
from .inputs import GivenImage

# Boxes that overlap by more (intersection over union) show the same object, as in mmdet's NMS of views.
SAME_OBJECT = 0.5
# A whole box replaces a cut one of which it covers more than this part...
COVERED = 0.5
# ... if its score is at least this part of the cut one's.
AS_SURE = 0.5
# A box is cut if it ends within this part of the tile's side from a border, or within MARGIN pixels.
MARGIN_PART = 0.01
MARGIN = 2
# mmdet's limit on COCO, for a model without one of its own.
MAX_PER_IMAGE = 100


class TiledPredictor(SamplePredictor):
    """Cuts each image into tiles, predicts for these in batches, and merges what they show.

    An image has as many detections as the model's ``test_cfg`` allows for one picture (``max_per_img``).
    Arguments, attributes and errors are those of :class:`SamplePredictor`, with tiles for images, and:

    Args:
        tiling: How to cut.
        on_tile: Called with the number of tiles done, and of all, of the image at hand.

    Raises:
        UserError: The model is no detector, or a panoptic one.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str | None,
        device: str | torch.device,
        tiling: Tiling,
        on_tile: Callable[[int, int], None] = lambda done, total: None,
        **options: Any,
    ) -> None:
        super().__init__(cfg, checkpoint, device, **options)
        _check_finds_boxes(self.model)
        (load,) = self._read.transforms
        if not isinstance(load, LoadImageFromFile):
            raise UserError(
                "--tile cuts what the test pipeline's LoadImageFromFile reads, but its first step is "
                f"{type(load).__name__}: predict without --tile"
            )
        self._max_count = _max_per_image(cfg.model)
        self._tiling = tiling
        self._on_tile = on_tile

    def __call__(
        self, images: Iterable[GivenImage | ImageError], batch_size: int = 1
    ) -> Iterator[Predicted]:
        """Yield the prediction of each readable image, in order, from batches of tiles.

        Masks are a list of COCO's RLE, other than a :class:`SamplePredictor`'s: as arrays of a large image's
        size they would take gigabytes.
        """
        for image, data in self._load(images):
            try:
                yield self._predict_image(image, data, batch_size)
            except ImageError as error:  # Resized, nothing is left of a narrow tile.
                self.broken.append(str(error))

    def _predict_image(self, image: GivenImage, data: dict[str, Any], batch_size: int) -> Predicted:
        height, width = data["img"].shape[:2]
        windows = self._tiling.windows(height, width)
        self._on_tile(0, len(windows))
        tiles = ((image, self._transformed(image, _cut(data, window))) for window in windows)
        found: list[InstanceData] = []
        total = 0.0
        predicted = self._predict(tiles, batch_size)
        for window, (_, sample, milliseconds) in zip(windows, predicted, strict=True):
            found.append(move_to_image(sample.pred_instances, window, height, width))
            total += milliseconds
            self._on_tile(len(found), len(windows))
        merged = DetDataSample(
            metainfo={"img_path": data["img_path"], "ori_shape": (height, width)}
        )
        merged.pred_instances = merge(found, self._max_count)
        return Predicted(image, merged, total)


def _cut(data: dict[str, Any], window: Window) -> dict[str, Any]:
    """A tile of a loaded image, as if it were all of it."""
    pixels = data["img"][window.top : window.bottom, window.left : window.right]
    size = pixels.shape[:2]
    tile = {"img": np.ascontiguousarray(pixels), "img_shape": size, "ori_shape": size}
    return data | tile


def at_full_size(cfg: Config, full_size: bool, tiling: Tiling | None) -> None:
    """Let a config's test leave images as large as they are, or predict tile by tile, or both."""
    if full_size:
        for dataset in datasets_under_test(cfg):
            dataset.pipeline = without_resizing(dataset.pipeline)
    if tiling:
        hook = {"type": PredictTilesHook.__name__, "size": tiling.size, "overlap": tiling.overlap}
        cfg.custom_hooks = [*cfg.get("custom_hooks", ()), hook]


@HOOKS.register_module()
class PredictTilesHook(Hook):
    """Lets a runner test a detector tile by tile, as a :class:`TiledPredictor` does.

    Args:
        size, overlap: See :class:`Tiling`.
    """

    def __init__(self, size: int, overlap: float) -> None:
        self._tiling = Tiling(size, overlap)

    def before_test(self, runner: Runner) -> None:
        """Put the tiles in the way of the model's ``test_step``."""
        cfg, model = runner.cfg, unwrapped(runner.model)
        device = next(model.parameters()).device
        predictor = TiledPredictor(cfg, None, device, self._tiling, model=model)
        batch_size = cfg.test_dataloader.get("batch_size") or 1

        def test_step(batch: dict[str, Any]) -> list[DetDataSample]:
            samples = batch["data_samples"]
            samplelist_boxtype2tensor(samples)  # As the model's own step does.
            for sample in samples:
                path = sample.img_path
                for tiled in predictor([GivenImage(path, path)], batch_size):
                    sample.pred_instances = tiled.sample.pred_instances
            if predictor.broken:
                raise UserError(predictor.broken[0])
            return samples

        runner.model.test_step = test_step


def _check_finds_boxes(model: Any) -> None:
    if isinstance(model, BaseSegmentor):
        raise UserError(
            "--tile is for detectors: a segmentor takes large images as a whole (--full-size), or in "
            "windows with model.test_cfg of mode='slide', crop_size and stride"
        )
    fuses = getattr(model, "panoptic_fusion_head", None) is not None
    if fuses and model.test_cfg.get("panoptic_on", True):
        raise UserError(
            "--tile merges boxes and instance masks, not the segments of a panoptic model: predict "
            "without it"
        )


def _max_per_image(model: Config) -> int:
    test_cfg = model.get("test_cfg") or {}
    test_cfg = test_cfg.get("rcnn", test_cfg)
    return test_cfg.get("max_per_img") or test_cfg.get("max_per_image") or MAX_PER_IMAGE


def move_to_image(found: InstanceData, window: Window, height: int, width: int) -> InstanceData:
    """A tile's detections, in the pixels of the image.

    Args:
        found: ``bboxes`` (n, 4), ``scores``, ``labels`` and maybe ``masks`` (n, h, w) in the tile, on any
            device.
        window: the tile.
        height, width: of the image.

    Returns:
        The same on the CPU, masks as a list of COCO's RLE; and ``windows`` (n, 4), the tile of each, and
        ``cut`` (n,), whether a border of the tile inside the image cuts it.
    """
    left, top, right, bottom = window
    boxes = found.bboxes.cpu() + torch.tensor([left, top, left, top])
    margin = max(MARGIN, MARGIN_PART * max(right - left, bottom - top))
    is_cut = (
        ((boxes[:, 0] <= left + margin) & (left > 0))
        | ((boxes[:, 1] <= top + margin) & (top > 0))
        | ((boxes[:, 2] >= right - margin) & (right < width))
        | ((boxes[:, 3] >= bottom - margin) & (bottom < height))
    )
    moved = InstanceData(
        bboxes=boxes,
        scores=found.scores.cpu(),
        labels=found.labels.cpu(),
        windows=boxes.new_tensor(window).expand(len(boxes), 4),
        cut=is_cut,
    )
    if "masks" in found:
        moved.masks = [
            encode_in_image(mask.cpu().numpy(), left, top, height, width) for mask in found.masks
        ]
    return moved


def encode_in_image(
    mask: np.ndarray, left: int, top: int, height: int, width: int
) -> dict[str, Any]:
    """Encode a mask that lies somewhere in an image, without an array of the image's size.

    Args:
        mask: bool, (h, w).
        left, top: where its first pixel lies in the image.
        height, width: of the image.

    Returns:
        What ``pycocotools.mask.encode`` gives for the whole image.
    """
    # A gap after each column, as runs end there; but they go on in the next one if this is all of a column.
    columns = np.pad(mask.T.astype(np.int8), ((0, 0), (0, int(len(mask) < height))))
    changes = np.flatnonzero(np.diff(columns.ravel(), prepend=0, append=0))
    column, row = np.divmod(changes, columns.shape[1])
    borders = (left + column) * height + top + row
    counts = np.diff(borders, prepend=0, append=height * width)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    rle = {"size": [height, width], "counts": counts.tolist()}
    return coco_mask.frPyObjects(rle, height, width)


def merge(found: Sequence[InstanceData], max_count: int) -> InstanceData:
    """One detection for each object, best first, of what :func:`move_to_image` gives for each tile.

    They have ``bboxes``, ``scores``, ``labels`` and perhaps ``masks`` (COCO's RLE). The best are kept.
    """
    every = InstanceData.cat(list(found))
    classes = every.labels.unique()
    merged = [_merge_class(every[every.labels == label]) for label in classes] or [every]
    merged = InstanceData.cat(merged)
    merged = merged[merged.scores.argsort(descending=True)[:max_count]]
    del merged.windows, merged.cut
    return merged


def _merge_class(found: InstanceData) -> InstanceData:
    whole = _nms(found[~found.cut])
    cut = found[found.cut]
    cut = cut[~_is_replaced(cut, whole)]
    return _nms(InstanceData.cat([whole, _join_parts(cut)]))


def _nms(found: InstanceData) -> InstanceData:
    return found[nms(found.bboxes, found.scores, SAME_OBJECT)]


def _is_replaced(cut: InstanceData, whole: InstanceData) -> Tensor:
    """Which of ``cut`` a box of ``whole`` stands for."""
    shared = _area(_intersection(cut.bboxes[:, None], whole.bboxes[None]))
    covered = shared > COVERED * _area(cut.bboxes)[:, None]
    sure = whole.scores >= AS_SURE * cut.scores[:, None]
    return (covered & sure).any(1)


def _join_parts(cut: InstanceData) -> InstanceData:
    """Join cut boxes of one object: their common hull, the best score, all their masks."""
    if len(cut) == 0:
        return cut
    joined = []
    for members in _parts_of_objects(cut):
        parts = cut[members]
        best = parts[int(parts.scores.argmax())]
        low, high = parts.bboxes[:, :2].amin(0), parts.bboxes[:, 2:].amax(0)
        best.bboxes = torch.cat([low, high])[None]
        if "masks" in parts:
            best.masks = [coco_mask.merge(parts.masks) if len(parts) > 1 else parts.masks[0]]
        joined.append(best)
    return InstanceData.cat(joined)


def _parts_of_objects(cut: InstanceData) -> list[Tensor]:
    """The indices of the parts of each object, of which a tile has one.

    Parts that are alike in what their tiles share are joined, those that are most alike first. A part joins
    one of each other tile at most: of a crowd along a border, where one part is much like the next but one,
    all would become a single object else.
    """
    overlap = _intersection(cut.windows[:, None], cut.windows[None])  # [n, n, 4]
    ours = _intersection(cut.bboxes[:, None], overlap)
    shared = _area(_intersection(ours, ours.transpose(0, 1)))
    union = _area(ours) + _area(ours).T - shared
    # At least a pixel: boxes that only touch the overlap say nothing.
    alike = torch.where(shared >= 1, shared / union, 0).triu(1)
    pairs = (alike > SAME_OBJECT).nonzero()
    pairs = pairs[alike[tuple(pairs.T)].argsort(descending=True, stable=True)]
    tiles = [{tuple(window)} for window in cut.windows.tolist()]
    objects = [[index] for index in range(len(cut))]
    for one, other in pairs.tolist():
        if objects[one] is objects[other] or tiles[one] & tiles[other]:
            continue
        tiles[one] |= tiles[other]
        objects[one] += objects[other]
        for index in objects[other]:
            tiles[index], objects[index] = tiles[one], objects[one]
    return [torch.tensor(members) for index, members in enumerate(objects) if min(members) == index]


def _intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """(..., 4), (..., 4) -> (..., 4), of size 0 where there is none."""
    low = torch.maximum(boxes[..., :2], others[..., :2])
    high = torch.minimum(boxes[..., 2:], others[..., 2:])
    return torch.cat([low, torch.maximum(low, high)], -1)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
