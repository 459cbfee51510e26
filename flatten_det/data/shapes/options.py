"""What the Shapes data set contains: its classes, its splits and the options of its rendering."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real

CLASSES = ("circle", "ring", "triangle", "square", "star", "cross")
PALETTE = (
    (230, 25, 75),
    (245, 130, 48),
    (255, 225, 25),
    (60, 180, 75),
    (0, 130, 200),
    (145, 30, 180),
)
SPLITS = ("train", "val")
LEGEND_HEIGHT = 16  # pixels
_LEAST_CELL = 4  # pixels, the patch of a token of a backbone's first stage
_NUM_IMAGES = {"train": 1500, "val": 200}


@dataclass(frozen=True)
class ShapesOptions:
    """Options of the rendering; equal options give equal files.

    Sizes and counts are normalised: ``image_size`` is ``(height, width)`` or a pair of these
    afterwards, ``num_images`` complete.

    Args:
        image_size: ``(height, width)`` in pixels, or one number for both. Or two of either in a pair,
            such as ``((96, 96), (192, 256))``: images differ in size, and height and width are drawn
            independently, uniform from the first to the second.
        num_images: Images per split, such as ``dict(train=1500, val=200)``; a split that is not named
            keeps its default. More images leave the first ones as they are.
        seed: Non-negative seed. Every image has its own generator, seeded by (seed, split, index).
        object_size: Smallest and largest object in pixels, measured along the longer side of the whole
            object's box; log-uniform in between.
        objects_per_image: Smallest and largest number of objects. An object for which no place is found
            is left out, so a crowded image may hold fewer than drawn.
        min_visible: Fraction of its pixels that every object keeps visible. Objects are placed so that
            this holds, hence nothing in an image is without annotation.
        texture_contrast: How far apart the two colours of a texture lie, from 0 (plain colours) to 1.
            Shapes on strong textures take much longer to learn.
        legend: Smallest and largest number of cells of a legend along the top edge, which says the class
            of all objects of the hue of each cell, so that classes depend on what is far away; None: no
            legend. See :mod:`~flatten_det.data.shapes.render`.
        legend_classes: How many classes there are with a legend: the first ones of Shapes.
        legend_distance: Pixels between the legend and the nearest object at least.

    Raises:
        ValueError: An option is out of range or of the wrong kind.
    """

    image_size: int | Sequence[int] | Sequence[Sequence[int]] = 160
    num_images: Mapping[str, int] | None = None
    seed: int = 0
    object_size: Sequence[float] = (8, 128)
    objects_per_image: Sequence[int] = (1, 6)
    min_visible: float = 0.5
    texture_contrast: float = 1.0
    legend: Sequence[int] | None = None
    legend_classes: int = 2
    legend_distance: float = 0.0

    def __post_init__(self):
        normalised = {name: _number(name, getattr(self, name), *rule) for name, *rule in _NUMBERS}
        normalised |= {name: _range(name, getattr(self, name), *rule) for name, *rule in _RANGES}
        normalised["image_size"] = _image_size(self.image_size)
        normalised["num_images"] = _num_images(self.num_images)
        if self.legend is not None:
            normalised["legend"] = _range("legend", self.legend, Integral, least=2)
        for name, value in normalised.items():
            object.__setattr__(self, name, value)
        if self.objects_per_image[1] < 1:
            raise ValueError("objects_per_image allows no objects at all: its maximum must be >= 1")
        smallest = self.image_size_range[0]
        if self.object_size[1] > min(smallest):
            raise ValueError(
                f"object_size goes up to {self.object_size[1]} px, but images of {smallest} "
                f"(height, width) hold at most {min(smallest)} px: lower object_size or "
                "raise image_size"
            )
        if not self.legend:
            if self.legend_distance:
                raise ValueError("legend_distance without a legend means nothing: set legend too")
            return
        height, width = smallest
        needed = self.objects_top + self.object_size[1]
        if height < needed:
            raise ValueError(
                f"legend, legend_distance and object_size need {needed:g} px one below the other, but "
                f"images are {height} px high: lower legend_distance or raise image_size"
            )
        if width // self.legend[1] < _LEAST_CELL:
            raise ValueError(
                f"{self.legend[1]} cells of the legend need {self.legend[1] * _LEAST_CELL} px, but images "
                f"are {width} px wide: lower legend or raise image_size"
            )

    @property
    def objects_top(self) -> float:
        """The highest row, in pixels, that objects may reach: what is above is the legend's."""
        return LEGEND_HEIGHT + self.legend_distance if self.legend else 0.0

    @property
    def image_size_range(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Smallest and largest ``(height, width)``."""
        if isinstance(self.image_size[0], int):
            return self.image_size, self.image_size
        return self.image_size

    @classmethod
    def taken_from(cls, arguments: dict) -> "ShapesOptions":
        """Options made of the entries of ``arguments`` that are options, which are removed from it."""
        names = [field.name for field in fields(cls) if field.name in arguments]
        return cls(**{name: arguments.pop(name) for name in names})

    def as_dict(self) -> dict:
        """The options as JSON would give them back, so that stored ones can be compared."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if not self.legend:  # Folders from before there were legends stay as they are.
            for name in ("legend", "legend_classes", "legend_distance"):
                del values[name]
        return json.loads(json.dumps(values))


def check_split(split: str) -> None:
    """Raise ``ValueError`` unless ``split`` is one of :data:`SPLITS`."""
    if split not in SPLITS:
        raise ValueError(f"Shapes has the splits {', '.join(SPLITS)}, not {split!r}")


def _is_number(value, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


# Options that are numbers: their kind, a test, and what they must do.
_MOST = len(CLASSES)
_NUMBERS = (
    ("seed", Integral, lambda value: value >= 0, "be a non-negative integer"),
    ("min_visible", Real, lambda value: 0 < value <= 1, "lie in (0, 1]"),
    ("texture_contrast", Real, lambda value: 0 <= value <= 1, "lie in [0, 1]"),
    ("legend_distance", Real, lambda value: value >= 0, "be a number of pixels >= 0"),
    ("legend_classes", Integral, lambda value: 2 <= value <= _MOST, f"be from 2 to {_MOST}"),
)
# Options that are a smallest and a largest number: their kind, and the least.
_RANGES = (("object_size", Real, 4), ("objects_per_image", Integral, 0))


def _number(name: str, value, kind: type, is_good: Callable, rule: str) -> int | float:
    if not _is_number(value, kind) or not is_good(value):
        raise ValueError(f"{name} must {rule}, got {value!r}")
    return int(value) if kind is Integral else float(value)


def _pair(name: str, value, kind: type, least: int) -> tuple:
    is_pair = isinstance(value, Sequence) and len(value) == 2
    if not is_pair or not all(_is_number(item, kind) for item in value):
        what = "integers" if kind is Integral else "numbers"
        raise ValueError(f"{name} must be two {what}, got {value!r}")
    if min(value) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return tuple(int(item) if kind is Integral else float(item) for item in value)


def _range(name: str, value, kind: type, least: int) -> tuple:
    pair = _pair(name, value, kind, least)
    if pair[0] > pair[1]:
        raise ValueError(f"{name} is (smallest, largest), but {value[0]} > {value[1]}")
    return pair


def _image_size(value) -> tuple:
    """``(height, width)``, or the smallest and the largest such pair."""
    if _is_number(value, Integral):
        value = (value, value)
    is_range = isinstance(value, Sequence) and any(isinstance(item, Sequence) for item in value)
    if not is_range or isinstance(value, str):
        return _pair("image_size", value, Integral, least=16)
    if len(value) != 2:
        raise ValueError(f"image_size must be the smallest and the largest size, got {value!r}")
    smallest, largest = (_image_size(item) for item in value)
    if smallest[0] > largest[0] or smallest[1] > largest[1]:
        raise ValueError(f"image_size is (smallest, largest), but {smallest} > {largest}")
    return smallest, largest


def _num_images(value) -> dict[str, int]:
    value = {} if value is None else value
    if not isinstance(value, Mapping):
        raise ValueError(f"num_images must be a dict such as {_NUM_IMAGES}, got {value!r}")
    for split, number in value.items():
        check_split(split)
        if not _is_number(number, Integral) or number < 1:
            raise ValueError(f"num_images[{split!r}] must be a positive integer, got {number!r}")
    return {split: int(value.get(split, default)) for split, default in _NUM_IMAGES.items()}
