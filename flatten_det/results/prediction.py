"""What a model says of one image: boxes, masks, label maps, and the forms in which others want them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files.atomic import write_atomically
from .picture import Drawing, default_palette, encoded, read_rgb, write_png
from .rle import Rle, decode

PICTURES = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp"}
# Detections below it are not drawn.
SCORE_THRESHOLD = 0.3


class Segment(NamedTuple):
    """A segment of a panoptic prediction: its id in the map, its label, and its area in pixels."""

    id: int
    label: int
    area: int


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of one image, in the image's own pixels.

    A detector gives ``boxes``, ``scores``, ``labels`` and maybe ``masks``, the best first; a segmentor
    ``label_map``; a panoptic model these and ``segment_ids`` with ``segments``. What a model does not give is
    None.

    Attributes:
        source: path or URL of the image; empty for one that was in memory.
        size: height and width of the image.
        names: class names, by label.
        boxes: (n, 4) float32: x1, y1, x2, y2.
        scores: (n,) float32, 0 to 1.
        labels: (n,) int64.
        masks: n run lengths, as of COCO.
        label_map: (H, W) uint8 or uint16: the label of each pixel.
        segment_ids: (H, W) int32: the segment of each pixel; 0: none.
        segments: those of ``segment_ids``.
        palette: RGB by label; None: colours of our own.
        milliseconds: that the model took; in a batch, the image's share.
        pixels: RGB (H, W, 3) uint8, of an image that was in memory.
    """

    source: str
    size: tuple[int, int]
    names: tuple[str, ...]
    boxes: np.ndarray | None = None
    scores: np.ndarray | None = None
    labels: np.ndarray | None = None
    masks: Sequence[Rle] | None = None
    label_map: np.ndarray | None = None
    segment_ids: np.ndarray | None = None
    segments: Sequence[Segment] | None = None
    palette: Sequence[Sequence[int]] | None = None
    milliseconds: float = 0.0
    pixels: np.ndarray | None = None

    def __len__(self) -> int:
        """How many detections there are."""
        return 0 if self.boxes is None else len(self.boxes)

    def __bool__(self) -> bool:
        """True: a prediction without detections is one, too."""
        return True

    def __repr__(self) -> str:
        height, width = self.size
        parts = [f"{self.source or 'image'}, {height} x {width}"]
        if self.boxes is not None:
            parts.append(f"{len(self)} {'boxes' if self.masks is None else 'masks'}")
        if self.label_map is not None:
            parts.append(f"{len(np.unique(self.label_map))} classes")
        if self.segments is not None:
            parts.append(f"{len(self.segments)} segments")
        return f"<Prediction {', '.join(parts)}, {self.milliseconds:.1f} ms>"

    def above(self, score: float) -> "Prediction":
        """The same without the detections whose score is lower."""
        return self if self.boxes is None else self.only(self.scores >= score)

    def only(self, kept: np.ndarray) -> "Prediction":
        """The same with some of the detections: ``kept`` (n,) of bool, or their indices."""
        places = np.arange(len(self))[kept]
        masks = None if self.masks is None else [self.masks[place] for place in places]
        own = {name: getattr(self, name)[places] for name in ("boxes", "scores", "labels")}
        return replace(self, **own, masks=masks)

    def bitmaps(self) -> np.ndarray:
        """The masks as (n, H, W) of bool."""
        shape = (0 if self.masks is None else len(self.masks), *self.size)
        bitmaps = np.zeros(shape, bool)
        for bitmap, rle in zip(bitmaps, self.masks or (), strict=True):
            bitmap[:] = decode(rle)
        return bitmaps

    def image(self) -> np.ndarray:
        """The image, RGB (H, W, 3) uint8, turned as its metadata say; read again if it is a file.

        Raises:
            UserError: the file cannot be read any more, or is another image.
        """
        if self.pixels is not None:
            return self.pixels
        try:
            pixels = read_rgb(self.source)
        except Exception as error:  # Decoders of damaged files raise anything.
            raise UserError(
                f"image {self.source} cannot be read to draw into it: {error}"
            ) from error
        if pixels.shape[:2] != tuple(self.size):
            raise UserError(
                f"image {self.source} is another one than the prediction's: predict again"
            )
        return pixels

    def draw(self, score: float = SCORE_THRESHOLD, factor: float | None = None) -> Image.Image:
        """The image with what was predicted drawn into it.

        Detections below ``score`` are left out. ``factor``: pixels of the picture for one of the image; None:
        what shows small images enlarged, and large ones reduced to 4 megapixels.
        """
        drawing = Drawing(self.image(), self.palette or default_palette(len(self.names)), factor)
        shown = self.above(score)
        if self.segments is not None:
            labels = {segment.id: segment.label for segment in self.segments}
            drawing.add_regions(self.segment_ids, labels, self.names)
        elif self.label_map is not None:
            labels = {label: label for label in range(len(self.names))}
            drawing.add_regions(self.label_map, labels, self.names)
        if self.segments is None and shown.boxes is not None:
            texts = [
                f"{self.names[label]} {score:.2f}"
                for label, score in zip(shown.labels.tolist(), shown.scores.tolist(), strict=True)
            ]
            drawing.add_objects(shown.boxes, shown.labels, texts, shown.masks)
        return drawing.picture()

    def save(self, path: str | Path, score: float = SCORE_THRESHOLD) -> None:
        """Write a picture (``.jpg``, ``.png``, ``.webp``) or data (``.json``, maps beside it as ``.png``).

        A panoptic map is COCO's: RGB whose colours are segment ids (R + 256 G + 256² B), 0 for none.

        Raises:
            UserError: the suffix says none of these, or the file cannot be written.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix == ".json":
            content = self.above(score).to_dict()
            for key, pixels in self.maps().items():
                write_png(path.with_suffix(".png"), pixels)
                content[key] = path.with_suffix(".png").name
            write_atomically(path, json.dumps(content).encode(), durable=False)
        elif suffix in PICTURES:
            picture = encoded(self.draw(score), PICTURES[suffix], quality=90)
            write_atomically(path, picture, durable=False)
        else:
            raise UserError(
                f"{path}: a file for a prediction ends in {', '.join(PICTURES)} or .json"
            )

    def maps(self) -> dict[str, np.ndarray]:
        """``label_map`` and ``panoptic_map``, if there are such, as :meth:`save` writes them as PNG."""
        maps = {}
        if self.label_map is not None:
            maps["label_map"] = self.label_map
        if self.segment_ids is not None:
            parts = [self.segment_ids >> shift & 255 for shift in (0, 8, 16)]
            maps["panoptic_map"] = np.stack(parts, -1).astype(np.uint8)
        return maps

    def to_dict(self) -> dict[str, Any]:
        """All but the maps as numbers and texts, for JSON; lists are parallel, named as in MMDetection."""
        height, width = self.size
        content: dict[str, Any] = {"image": self.source, "height": height, "width": width}
        if self.boxes is not None:
            content |= {
                "labels": self.labels.tolist(),
                "class_names": [self.names[label] for label in self.labels.tolist()],
                "scores": self.scores.tolist(),
                "bboxes": self.boxes.tolist(),
            }
        if self.masks is not None:
            content["masks"] = list(self.masks)
        if self.segments is not None:
            content["segments"] = [
                segment._asdict() | {"class_name": self.names[segment.label]}
                for segment in self.segments
            ]
        if self.label_map is not None:
            counts = np.bincount(self.label_map.ravel(), minlength=len(self.names)).tolist()
            content["classes"] = [
                {"label": label, "name": name, "share": counts[label] / self.label_map.size}
                for label, name in enumerate(self.names)
            ]
        return content

    def to_coco(
        self, image_id: int | str, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """The detections as entries of COCO's results file.

        Args:
            image_id: of the image in the annotation file.
            category_ids: by label, of the annotation file; None: 1, 2, 3, ...

        Raises:
            UserError: the model gives label maps, which are none.
        """
        if self.boxes is None:
            raise UserError("COCO's results are of objects, and a segmentor's label map knows none")
        sides = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], 1)
        found = []
        for place, label in enumerate(self.labels.tolist()):
            entry = {
                "image_id": image_id,
                "category_id": label + 1 if category_ids is None else category_ids[label],
                "bbox": sides[place].tolist(),
                "score": float(self.scores[place]),
            }
            if self.masks is not None:
                entry["segmentation"] = self.masks[place]
            found.append(entry)
        return found

    def to_supervision(self) -> Any:
        """``supervision.Detections``: of segments, or of the classes of a label map, if there are such.

        Raises:
            UserError: the package is not installed.
        """
        try:
            from supervision import Detections, mask_to_xyxy
        except ImportError as error:
            raise UserError(
                "to_supervision needs the package supervision: pip install 'flatten-det[supervision]'"
            ) from error
        of_objects = self.segments is None and self.label_map is None
        if of_objects:
            labels, masks = self.labels, self.bitmaps()
        elif self.segments is not None:
            labels = np.array([segment.label for segment in self.segments], np.int64)
            masks = [self.segment_ids == segment.id for segment in self.segments]
        else:
            labels = np.unique(self.label_map[self.label_map < len(self.names)]).astype(np.int64)
            masks = [self.label_map == label for label in labels]
        masks = np.array(masks, bool).reshape(-1, *self.size)
        # Theirs end at the last pixel, and boxes of objects after it.
        around = (mask_to_xyxy(masks) + [0, 0, 1, 1]).astype(np.float32)
        return Detections(
            xyxy=self.boxes if of_objects else around,
            mask=masks if len(masks) else None,
            confidence=self.scores if of_objects else None,
            class_id=labels,
            data={"class_name": np.array([self.names[label] for label in labels], dtype=str)},
        )


def label_type(count: int) -> type[np.integer]:
    """What holds the labels of so many classes."""
    return np.uint8 if count <= 256 else np.uint16
