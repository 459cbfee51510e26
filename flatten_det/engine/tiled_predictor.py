"""A detector for images that are larger than what it was trained on: tile by tile."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from mmseg.models.segmentors import BaseSegmentor

from ..large_images.merging import merge, move_to_image
from ..large_images.tiles import Tiling, Window
from .errors import UserError
from .images import CheckedPipeline, ImageError
from .predictor import Predictor

# mmdet's limit on COCO, for a model without one of its own.
MAX_PER_IMAGE = 100


class TiledPredictor(Predictor):
    """Cuts each image into tiles, predicts for these in batches, and merges what they show.

    See :mod:`flatten_det.large_images.merging`. An image has as many detections as the model's
    ``test_cfg`` allows for one picture (``max_per_img``).

    Args:
        cfg: A complete config of a detector.
        checkpoint: Weights; without any the model keeps its random ones.
        device: Where to run, such as ``cpu`` or ``cuda:0``.
        tiling: How to cut.
        full_size: Predict at the size of the tiles, instead of resizing them as the test pipeline
            does with images.
        on_tile: Called with the number of tiles done, and of all, of the image at hand.

    Attributes:
        dataset_meta: As in :class:`Predictor`, as are the others.

    Raises:
        UserError: As :class:`Predictor`; or the model is no detector, or a panoptic one.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str | None,
        device: str,
        tiling: Tiling,
        full_size: bool = False,
        on_tile: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        super().__init__(cfg, checkpoint, device, full_size)
        _check_finds_boxes(self._model)
        load, *transforms = self._pipeline.transforms
        if not isinstance(load, LoadImageFromFile):
            raise UserError(
                "--tile cuts what the test pipeline's LoadImageFromFile reads, but its first step is "
                f"{type(load).__name__}: predict without --tile"
            )
        self._pipeline = CheckedPipeline([load], self._max_pixels)
        self._transform_tile = CheckedPipeline(transforms, self._max_pixels)
        self._max_count = _max_per_image(cfg.model)
        self._tiling = tiling
        self._on_tile = on_tile

    def __call__(self, paths: Sequence[str], batch_size: int = 1) -> Iterator[DetDataSample]:
        """Yield the prediction of each readable image, in order.

        Masks are a list of COCO's RLE, other than a :class:`Predictor`'s: as arrays of a large image's
        size they would take gigabytes.

        Args:
            paths: Image files.
            batch_size: Tiles per forward pass.
        """
        for image in self._load(paths):
            try:
                yield self._predict_image(image, batch_size)
            except ImageError as error:  # Resized, nothing is left of a narrow tile.
                self.broken.append(str(error))

    def _predict_image(self, image: dict[str, Any], batch_size: int) -> DetDataSample:
        height, width = image["img"].shape[:2]
        windows = self._tiling.windows(height, width)
        self._on_tile(0, len(windows))
        tiles = (self._tile(image, window) for window in windows)
        found: list[InstanceData] = []
        for window, sample in zip(windows, self._predict(tiles, batch_size), strict=True):
            found.append(move_to_image(sample.pred_instances, window, height, width))
            self._on_tile(len(found), len(windows))
        merged = DetDataSample(
            metainfo={"img_path": image["img_path"], "ori_shape": (height, width)}
        )
        merged.pred_instances = merge(found, self._max_count)
        return merged

    def _tile(self, image: dict[str, Any], window: Window) -> dict[str, Any]:
        pixels = image["img"][window.top : window.bottom, window.left : window.right]
        size = pixels.shape[:2]
        tile = {"img": np.ascontiguousarray(pixels), "img_shape": size, "ori_shape": size}
        return self._transform_tile(image | tile)


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
