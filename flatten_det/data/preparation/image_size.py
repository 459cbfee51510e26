"""The size that a config resizes images to, chosen by the objects in them, and the anchors for it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config

from ...config import datasets_under_test, find_field, type_name
from ..coco import why_not_learned
from .coco_file import CocoFile

# Cells of its finest level that an object should be wide for a model to tell it from others: there the
# anchors of the quickstart's RetinaNet begin.
CELLS = 3
# What larger images may cost: times the config's own side, and pixels.
MOST_TIMES, MOST_PIXELS = 5, 2048
_UNIT = 32  # Backbones halve images five times.
_ENOUGH = 0.8  # Of what the rule wants: for less than that a config's own size is not left.
_SMALL, _LARGE = 10, 90  # percentiles of the objects' sizes
# Fields of pipelines and preprocessors that are lengths in pixels, where they are whole numbers.
_LENGTHS = frozenset({"scale", "scales", "img_scale", "max_size", "crop_size", "size", "border"})
_LARGEST = 1 << 20  # Of what annotations state, beyond which it is no size.
# An anchor and an object of this ratio of sides still overlap by half.
_FITTING = math.sqrt(2)


class Sizes(NamedTuple):
    """How large the images of a training are, and the objects in them.

    Attributes:
        images: longer and shorter side of the image of each object, ``(N, 2)`` in pixels.
        objects: square root of the area of each object's box, or of its region, ``(N,)`` in pixels.
    """

    images: np.ndarray
    objects: np.ndarray

    def resized(self, scale: tuple[int, int]) -> np.ndarray:
        """The objects' sizes when images are resized to fit into this scale, in either order."""
        return self.objects * (np.sort(scale)[::-1] / self.images).min(axis=1)


def sizes_of_file(file: CocoFile) -> Sizes:
    """Of the objects in a COCO file that count."""
    images = {image["id"]: image for image in file.content["images"]}
    objects = [a for a in file.content["annotations"] if why_not_learned(a) is None]
    owners = [images[each["image_id"]] for each in objects]
    sides = np.array(
        [[min(i[key], _LARGEST) for key in ("width", "height")] for i in owners], float
    )
    boxes = np.minimum([each["bbox"][2:] for each in objects], sides)
    return Sizes(np.sort(sides)[:, ::-1], np.sqrt(boxes.prod(axis=1)))


@dataclass(frozen=True)
class ImageSize:
    """What a config's pipelines are to resize to.

    Attributes:
        own: the scale of the config's test pipeline; None if it has none.
        scale: that which takes its place, as ``Resize`` takes it.
        factor: by which all other lengths change.
        reason: what was chosen and why, in one line.
    """

    own: tuple[int, int] | None
    scale: tuple[int, int] | None
    factor: float
    reason: str

    @property
    def is_new(self) -> bool:
        """Whether the config must change."""
        return self.scale != self.own

    def step(self, step: Mapping[str, Any]) -> dict[str, Any]:
        """A step of a pipeline for this size."""
        scale = step.get("scale")
        is_own = tuple(scale) == self.own if isinstance(scale, list | tuple) else scale == self.own
        step = self._lengths(step)
        if type_name(step) == "Resize" and (is_own or self.own is None):
            step.pop("scale_factor", None)
            step["scale"] = self.scale
        return step

    def model_changes(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a model that are sizes of images, where the config must change."""
        changes = {}
        if not self.is_new:
            return changes
        for part, keys in (
            ("data_preprocessor", ("size", "batch_augments")),
            ("test_cfg", ("crop_size", "stride")),  # of a sliding window
        ):
            node = model.get(part) or {}
            fields = {k: self._lengths(node[k], k != "batch_augments") for k in keys if node.get(k)}
            changes |= {part: fields} if fields else {}
        return changes

    def _lengths(self, node: Any, is_length: bool = False) -> Any:
        """A part of a config, with its lengths changed, without mmengine's types and the scope it adds."""
        if isinstance(node, Mapping):
            return {k: self._lengths(v, k in _LENGTHS) for k, v in node.items() if k != "_scope_"}
        if isinstance(node, list | tuple):
            return type(node)(self._lengths(item, is_length) for item in node)
        if not is_length or type(node) is not int or node == 0:
            return node
        unit = _UNIT if node % _UNIT == 0 else 1
        length = max(round(abs(node) * self.factor / unit), 1) * unit
        return length if node > 0 else -length


def choose_image_size(cfg: Config, sizes: Sizes, wish: tuple[int, int] | None = None) -> ImageSize:
    """Choose the size that images are resized to.

    The rule: the config's own size, or the smallest larger one at which nine of ten objects are at least
    :data:`CELLS` cells of the model's finest level wide (square root of the box's area; 12 px at stride 4,
    24 px at stride 8), but no larger than the photographs (their median), nor than :data:`MOST_TIMES` times
    the config's own side or :data:`MOST_PIXELS` px.

    Args:
        cfg: a config of the zoo.
        sizes: those of the training.
        wish: what the user asks for, (width, height); None: the rule.
    """
    own = _own_scale(cfg)
    stride = finest_stride(cfg.model)
    least = CELLS * stride
    aspect = float(np.median(sizes.images[:, 0] / sizes.images[:, 1]))
    photograph = float(np.median(sizes.images[:, 0]))

    def longer(scale: tuple[int, int]) -> float:
        """The longer side of a usual photograph at this scale."""
        return min(max(scale), min(scale) * aspect)

    def smallest(scale: tuple[int, int]) -> float:
        return float(np.percentile(sizes.resized(scale), _SMALL))

    def told(scale: tuple[int, int], origin: str) -> str:
        return (
            f"image size: {_shown(scale)} ({origin}): nine of ten objects are {smallest(scale):.0f} px or "
            f"more then; the model resolves about {least} px ({CELLS} cells of stride {stride})"
        )

    if wish is not None:
        factor = longer(wish) / longer(own) if own else 1.0
        return ImageSize(own, wish, factor, told(wish, "as asked for"))
    if own is None:
        return ImageSize(None, None, 1.0, "image size: images keep theirs, as in the config")
    limits = {
        "the photographs are no larger": photograph / longer(own),
        f"for the cost, no more than {MOST_TIMES} times the config's own or {MOST_PIXELS} px are chosen: go "
        "beyond by --image-size": min(MOST_TIMES, MOST_PIXELS / longer(own)),
    }
    limit = min(limits, key=limits.get)
    needed = least / smallest(own)
    scale = own
    factor = min(needed, limits[limit])
    if factor > 1 and needed * _ENOUGH > 1:
        towards = math.ceil if factor == needed else math.floor
        width, height = (max(towards(side * factor / _UNIT) * _UNIT, side) for side in own)
        scale = width, height
    origin = "the config's own" if scale == own else f"the config's own: {_shown(own)}"
    reason = told(scale, origin)
    if smallest(scale) < least * _ENOUGH:
        reason += f", but {limit}"
    factor = longer(scale) / longer(own)
    if factor**2 >= 1.5:
        reason += f"; an image has {factor**2:.0f} times the pixels"
    return ImageSize(own, scale, factor, reason)


def _shown(scale: tuple[int, int]) -> str:
    return f"{scale[0]} px" if scale[0] == scale[1] else f"{scale[0]} x {scale[1]} px"


def _own_scale(cfg: Config) -> tuple[int, int] | None:
    """What the test pipeline resizes to; None if it does not, or by a factor."""
    for step in datasets_under_test(cfg)[0].pipeline:
        scale = step.get("scale")
        if isinstance(scale, int) and step.get("max_size"):
            return step["max_size"], scale
        if isinstance(scale, list | tuple) and len(scale) == 2:
            return tuple(scale)
    return None


def finest_stride(model: Mapping[str, Any]) -> int:
    """Of the finest level that a model predicts from, in pixels."""
    for head in ("rpn_head", "bbox_head"):
        strides = find_field(model.get(head), "strides")
        if strides:
            return int(np.min(strides))
    return 4 * 2 ** min((model.get("backbone") or {}).get("out_indices", (0,)))


def anchor_changes(model: Mapping[str, Any], sides: np.ndarray) -> tuple[dict[str, Any], str]:
    """The anchors that a detector needs for objects of these sizes, and what was changed, in one line.

    Where an object of the tenth or the ninetieth percentile overlaps no anchor by half, each level gets
    anchors of half or double the scales too; both are empty where nothing changes.
    """
    for name in ("rpn_head", "bbox_head"):
        head = model.get(name)
        generator = (head.get("anchor_generator") if isinstance(head, Mapping) else None) or {}
        if type_name(generator) == "AnchorGenerator" and not generator.get("base_sizes"):
            break
    else:
        return {}, ""
    scales = generator.get("scales")
    if not scales:
        count = generator["scales_per_octave"]
        scales = [generator["octave_base_scale"] * 2 ** (i / count) for i in range(count)]
    finest, coarsest = (float(of(generator["strides"])) for of in (np.min, np.max))
    small, large = np.percentile(sides, (_SMALL, _LARGE))
    wanted = sorted(map(float, scales))
    while small * _FITTING < wanted[0] * finest and wanted[0] >= 2:  # No smaller than a cell.
        wanted = [*(s / 2 for s in wanted if s / 2 < wanted[0]), *wanted]
    while large > _FITTING * wanted[-1] * coarsest:
        wanted = [*wanted, *(2 * s for s in wanted if 2 * s > wanted[-1])]
    if len(wanted) == len(scales):
        return {}, ""
    fields = {"scales": [int(s) if s == int(s) else round(s, 3) for s in wanted]}
    if generator.get("octave_base_scale"):
        fields |= {"octave_base_scale": None, "scales_per_octave": None}
    line = (
        f"anchors: {wanted[0] * finest:.0f} to {wanted[-1] * coarsest:.0f} px instead of "
        f"{min(scales) * finest:.0f} to {max(scales) * coarsest:.0f} px: most objects are {small:.0f} to "
        f"{large:.0f} px wide"
    )
    return {name: {"anchor_generator": fields}}, line
