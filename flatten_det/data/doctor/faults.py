"""The kinds of fault that data can have, and what is found: one fault in one place."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from ...errors import printable

# An error stops a training or an evaluation, or lets the model learn something that is not so.
ERROR = "error"
# A warning is about what the frameworks leave out or put up with, and what may still not be meant.
WARNING = "warning"
_MAX_QUOTED = 80


@dataclass(frozen=True)
class FaultKind:
    """One kind of fault: how bad, a name for programs, what is wrong as a heading, and what to do."""

    severity: str
    name: str
    summary: str
    advice: str


_error, _warning = partial(FaultKind, ERROR), partial(FaultKind, WARNING)

# fmt: off
ANNOTATION_FILE = _error("annotation-file", "annotation files that cannot be used",
    "correct ann_file in the config, or get or export the file again")
FOLDER_MISSING = _error("folder-missing", "folders that are not there",
    "correct data_root and data_prefix in the config, or get the data (flatten-det prepare)")
NO_IMAGES = _error("no-images", "data sets without images",
    "correct the folder, the suffixes or ann_file in the config")
CLASS_COUNT = _error("class-count", "heads whose number of classes is not that of the data",
    "set num_classes of every head to the number of classes of the data set")
MISSING_CATEGORY = _error("missing-category", "classes of the config that the annotations do not have",
    "spell the classes in the config's metainfo as the categories in the file; without it, all labels after "
    "the missing one are shifted")
CATEGORY_ORDER = _error("category-order", "classes in another order than the categories",
    "list the classes in the config's metainfo in the order of the file's categories: labels follow the "
    "file, names the config")
IGNORED_CATEGORY = _warning("ignored-category", "categories that the config leaves out",
    "add them to the classes in the config's metainfo, unless their objects should be background")
ROOT_CATEGORY = _error("root-category", "categories above all classes that are named like one of them",
    "remove them from the file; flatten-det prepare custom does so")
UNUSED_CATEGORY = _warning("unused-category", "classes of which there is no example",
    "add examples, or remove the class: it is neither learned nor measured")
MALFORMED_ENTRY = _error("malformed-entry", "entries without what the format asks for",
    "complete or remove them; flatten-det prepare custom completes sizes, area and iscrowd")
MISREAD_ID = _error("misread-id", "ids that an evaluation with pycocotools cannot take, or misreads",
    "number annotations from 1 on, and images, and categories, all by numbers or all by texts; flatten-det "
    "prepare custom does so")
NOTHING_TO_LEARN = _error("nothing-to-learn", "data sets from which nothing can be learned",
    "add annotated objects, or correct what leaves them out")
NOTHING_TO_MEASURE = _error("nothing-to-measure", "data sets on which nothing can be measured",
    "add annotated objects, correct what leaves them out, or take the validation out of the config")
IGNORED_FOREGROUND = _error("ignored-foreground", "label maps whose foreground is the ignored label",
    "store the label of its class instead, such as 1 for the second one")
DUPLICATE_IMAGE_ID = _error("duplicate-image-id", "images that share an id",
    "give each its own: of those that share one, only the last is used, with the objects of all")
DUPLICATE_ANNOTATION_ID = _error("duplicate-annotation-id", "annotations that share an id",
    "give each its own id, in panoptic files within its image")
DUPLICATE_CATEGORY = _error("duplicate-category", "categories that share an id or a name",
    "rename or merge them")
DUPLICATE_FILE_NAME = _error("duplicate-file-name", "files that several images name",
    "merge the entries: the objects of one are background to the other")
FILE_NAME_LEAVES = _error("file-name-leaves-folder",
    "file names that leave the data folder (they were not opened)",
    "make them relative to the image folder, without '..'")
FILE_NAME_BACKSLASHES = _error("file-name-backslashes", "file names as Windows writes them",
    "write / instead of \\; flatten-det prepare custom does so")
UNKNOWN_IMAGE = _error("unknown-image", "annotations of images that the file does not list",
    "add the image, or remove the annotation")
UNKNOWN_CATEGORY = _error("unknown-category", "annotations of categories that the file does not list",
    "add the category, or remove the annotation")
BOX_INVALID = _error("box-invalid", "boxes that are not four finite numbers",
    "write them as [x, y, width, height] in pixels, or remove the annotation")
BOX_NEGATIVE = _error("box-negative", "boxes of negative width or height",
    "write them as [x, y, width, height], not as corners")
BOX_OUTSIDE = _error("box-outside", "boxes that lie outside of their image",
    "correct the box, or the image's width and height")
BOX_CROSSES_BORDER = _warning("box-crosses-border", "boxes that reach over the border of their image",
    "cut them at the border; boxes as corners instead of [x, y, width, height] look like this too")
BOX_EMPTY = _warning("box-empty", "boxes without area, or less than a pixel wide or high",
    "correct or remove them: MMDetection leaves the objects out, and they become background")
MASK_MISSING = _error("mask-missing", "objects without a mask, for a model that learns masks",
    "add the segmentation, or choose a detector of boxes")
MASK_BROKEN = _error("mask-broken", "masks that cannot be decoded",
    "export the segmentation again, or remove the annotation")
MASK_SIZE = _error("mask-size", "masks of another size than their image",
    "export the segmentation for the image as it is, or correct the image's width and height")
MASK_OUTSIDE = _error("mask-outside", "masks that lie outside of their image",
    "correct the polygon, or the image's width and height")
MASK_CROSSES_BORDER = _warning("mask-crosses-border", "polygons that reach over the border of their image",
    "cut them at the border")
MASK_EMPTY = _warning("mask-empty", "masks without area",
    "correct or remove them: there is nothing to learn from them")
IMAGE_MISSING = _error("image-missing", "images that are not there",
    "get the files, or remove them from the annotations")
IMAGE_UNREADABLE = _error("image-unreadable", "images that cannot be decoded",
    "get the files again, or remove them")
IMAGE_TOO_LARGE = _error("image-too-large",
    "images too large to be decoded (the limit against decompression bombs)",
    "cut them into tiles, or raise max_image_pixels in the config")
IMAGE_SIZE = _error("image-size", "images of another size than the annotations say",
    "correct width and height in the annotations, or put the image back that was annotated")
LABEL_MAP_MISSING = _error("label-map-missing", "images without a label map",
    "add the label map, or remove the image")
LABEL_MAP_UNUSED = _warning("label-map-unused", "label maps without an image",
    "add the image, or remove the label map")
LABEL_MAP_UNREADABLE = _error("label-map-unreadable", "label maps that cannot be decoded",
    "get the files again, or remove them")
LABEL_MAP_TOO_LARGE = _error("label-map-too-large",
    "label maps too large to be decoded (the limit against decompression bombs)",
    "cut them into tiles, or raise max_image_pixels in the config")
LABEL_MAP_SIZE = _error("label-map-size", "label maps of another size than their image",
    "export them at the size of the image")
LABEL_MAP_FORMAT = _error("label-map-format", "label maps in another form than this data set reads",
    "write one 8-bit label per pixel; for panoptic data, the segments' ids as RGB; turned like the image "
    "that a training sees, and without metadata")
UNKNOWN_LABEL = _error("unknown-label", "label maps with unknown labels",
    "map them to classes or to the ignored label, or set reduce_zero_label or the classes right")
SEGMENT_MISSING = _error("segment-missing", "panoptic segments that their label map does not show",
    "remove the segment, or export the label map again")
NOT_CHECKED = _warning("not-checked", "data sets of a kind that is not known here",
    "nothing was checked: look at them yourself")
# fmt: on

# As they are reported.
_all = [kind for kind in vars().values() if isinstance(kind, FaultKind)]
KINDS = tuple(sorted(_all, key=lambda kind: kind.severity))


@dataclass(frozen=True)
class Finding:
    """One fault in one place.

    Attributes:
        kind: what is wrong, and what to do.
        data_set: where the config uses it, such as ``'train'``.
        file: the file that is wrong.
        id: of the image, annotation or category in it; a label map's labels; None for the file itself.
        message: what is wrong with it, in some words.
    """

    kind: FaultKind
    data_set: str
    file: str
    id: int | str | None
    message: str


@dataclass
class Outcome:
    """What the examination of one image brings: findings, and the labels of its label map as trained."""

    findings: list[Finding]
    labels: set[int] = field(default_factory=set)


def by_kind(findings: Iterable[Finding]) -> dict[FaultKind, list[Finding]]:
    """The findings of each kind that occurs, errors first."""
    found: dict[FaultKind, list[Finding]] = {kind: [] for kind in KINDS}
    for finding in findings:
        found[finding.kind].append(finding)
    return {kind: of_kind for kind, of_kind in found.items() if of_kind}


def count_errors(findings: Iterable[Finding]) -> int:
    """How many of them are errors; the others are warnings."""
    return sum(finding.kind.severity == ERROR for finding in findings)


def quoted(value: object) -> str:
    """A stranger's value as a message shows it: printable and short."""
    text = str(value)
    return printable(text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}...")


def counted(number: int, noun: str) -> str:
    """``'1 error'``, ``'2 errors'``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
