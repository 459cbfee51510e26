"""What can be wrong with a data set, how bad it is, and what to do about it.

An *error* stops a training or an evaluation, or lets the model learn something that is not so. A
*warning* is about what the frameworks leave out or put up with, and what may still not be meant.
"""

from dataclasses import dataclass

ERROR = "error"
WARNING = "warning"


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    Attributes:
        name: for programs, such as ``'box-outside'``.
        severity: :data:`ERROR` or :data:`WARNING`.
        summary: what is wrong, for a heading.
        advice: what to do.
    """

    name: str
    severity: str
    summary: str
    advice: str


ANNOTATION_FILE = Kind(
    "annotation-file",
    ERROR,
    "annotation files that cannot be used",
    "correct ann_file in the config, or get or export the file again",
)
FOLDER_MISSING = Kind(
    "folder-missing",
    ERROR,
    "folders that are not there",
    "correct data_root and data_prefix in the config, or get the data (tools/prepare_data.py)",
)
NO_IMAGES = Kind(
    "no-images",
    ERROR,
    "data sets without images",
    "correct the folder, the suffixes or ann_file in the config",
)
CLASS_COUNT = Kind(
    "class-count",
    ERROR,
    "heads whose number of classes is not that of the data",
    "set num_classes of every head to the number of classes of the data set",
)
MISSING_CATEGORY = Kind(
    "missing-category",
    ERROR,
    "classes of the config that the annotations do not have",
    "spell the classes in the config's metainfo as the categories in the file; without it, all labels "
    "after the missing one are shifted",
)
CATEGORY_ORDER = Kind(
    "category-order",
    ERROR,
    "classes in another order than the categories",
    "list the classes in the config's metainfo in the order of the file's categories: labels follow the "
    "file, names the config",
)
IGNORED_CATEGORY = Kind(
    "ignored-category",
    WARNING,
    "categories that the config leaves out",
    "add them to the classes in the config's metainfo, unless their objects should be background",
)
ROOT_CATEGORY = Kind(
    "root-category",
    ERROR,
    "categories above all classes that are named like one of them",
    "remove them from the file; tools/prepare_data.py custom does so",
)
UNUSED_CATEGORY = Kind(
    "unused-category",
    WARNING,
    "classes of which there is no example",
    "add examples, or remove the class: it is neither learned nor measured",
)
MALFORMED_ENTRY = Kind(
    "malformed-entry",
    ERROR,
    "entries without what the format asks for",
    "complete or remove them; tools/prepare_data.py custom completes sizes, area and iscrowd",
)
MISREAD_ID = Kind(
    "misread-id",
    ERROR,
    "ids that an evaluation with pycocotools cannot take, or misreads",
    "number annotations from 1 on, and images, and categories, all by numbers or all by texts; "
    "tools/prepare_data.py custom does so",
)
NOTHING_TO_LEARN = Kind(
    "nothing-to-learn",
    ERROR,
    "data sets from which nothing can be learned",
    "add annotated objects, or correct what leaves them out",
)
NOTHING_TO_MEASURE = Kind(
    "nothing-to-measure",
    ERROR,
    "data sets on which nothing can be measured",
    "add annotated objects, correct what leaves them out, or take the validation out of the config",
)
IGNORED_FOREGROUND = Kind(
    "ignored-foreground",
    ERROR,
    "label maps whose foreground is the ignored label",
    "store the label of its class instead, such as 1 for the second one",
)
DUPLICATE_IMAGE_ID = Kind(
    "duplicate-image-id",
    ERROR,
    "images that share an id",
    "give each its own: of those that share one, only the last is used, with the objects of all",
)
DUPLICATE_ANNOTATION_ID = Kind(
    "duplicate-annotation-id",
    ERROR,
    "annotations that share an id",
    "give each its own id, in panoptic files within its image",
)
DUPLICATE_CATEGORY = Kind(
    "duplicate-category",
    ERROR,
    "categories that share an id or a name",
    "rename or merge them",
)
DUPLICATE_FILE_NAME = Kind(
    "duplicate-file-name",
    ERROR,
    "files that several images name",
    "merge the entries: the objects of one are background to the other",
)
FILE_NAME_LEAVES = Kind(
    "file-name-leaves-folder",
    ERROR,
    "file names that leave the data folder (they were not opened)",
    "make them relative to the image folder, without '..'",
)
FILE_NAME_BACKSLASHES = Kind(
    "file-name-backslashes",
    ERROR,
    "file names as Windows writes them",
    "write / instead of \\; tools/prepare_data.py custom does so",
)
UNKNOWN_IMAGE = Kind(
    "unknown-image",
    ERROR,
    "annotations of images that the file does not list",
    "add the image, or remove the annotation",
)
UNKNOWN_CATEGORY = Kind(
    "unknown-category",
    ERROR,
    "annotations of categories that the file does not list",
    "add the category, or remove the annotation",
)
BOX_INVALID = Kind(
    "box-invalid",
    ERROR,
    "boxes that are not four finite numbers",
    "write them as [x, y, width, height] in pixels, or remove the annotation",
)
BOX_NEGATIVE = Kind(
    "box-negative",
    ERROR,
    "boxes of negative width or height",
    "write them as [x, y, width, height], not as corners",
)
BOX_OUTSIDE = Kind(
    "box-outside",
    ERROR,
    "boxes that lie outside of their image",
    "correct the box, or the image's width and height",
)
BOX_CROSSES_BORDER = Kind(
    "box-crosses-border",
    WARNING,
    "boxes that reach over the border of their image",
    "cut them at the border; boxes as corners instead of [x, y, width, height] look like this too",
)
BOX_EMPTY = Kind(
    "box-empty",
    WARNING,
    "boxes without area, or less than a pixel wide or high",
    "correct or remove them: MMDetection leaves the objects out, and they become background",
)
MASK_MISSING = Kind(
    "mask-missing",
    ERROR,
    "objects without a mask, for a model that learns masks",
    "add the segmentation, or choose a detector of boxes",
)
MASK_BROKEN = Kind(
    "mask-broken",
    ERROR,
    "masks that cannot be decoded",
    "export the segmentation again, or remove the annotation",
)
MASK_SIZE = Kind(
    "mask-size",
    ERROR,
    "masks of another size than their image",
    "export the segmentation for the image as it is, or correct the image's width and height",
)
MASK_OUTSIDE = Kind(
    "mask-outside",
    ERROR,
    "masks that lie outside of their image",
    "correct the polygon, or the image's width and height",
)
MASK_CROSSES_BORDER = Kind(
    "mask-crosses-border",
    WARNING,
    "polygons that reach over the border of their image",
    "cut them at the border",
)
MASK_EMPTY = Kind(
    "mask-empty",
    WARNING,
    "masks without area",
    "correct or remove them: there is nothing to learn from them",
)
IMAGE_MISSING = Kind(
    "image-missing",
    ERROR,
    "images that are not there",
    "get the files, or remove them from the annotations",
)
IMAGE_UNREADABLE = Kind(
    "image-unreadable",
    ERROR,
    "images that cannot be decoded",
    "get the files again, or remove them",
)
IMAGE_TOO_LARGE = Kind(
    "image-too-large",
    ERROR,
    "images too large to be decoded (the limit against decompression bombs)",
    "cut them into tiles, or raise max_image_pixels in the config",
)
IMAGE_SIZE = Kind(
    "image-size",
    ERROR,
    "images of another size than the annotations say",
    "correct width and height in the annotations, or put the image back that was annotated",
)
LABEL_MAP_MISSING = Kind(
    "label-map-missing",
    ERROR,
    "images without a label map",
    "add the label map, or remove the image",
)
LABEL_MAP_UNUSED = Kind(
    "label-map-unused",
    WARNING,
    "label maps without an image",
    "add the image, or remove the label map",
)
LABEL_MAP_UNREADABLE = Kind(
    "label-map-unreadable",
    ERROR,
    "label maps that cannot be decoded",
    "get the files again, or remove them",
)
LABEL_MAP_TOO_LARGE = Kind(
    "label-map-too-large",
    ERROR,
    "label maps too large to be decoded (the limit against decompression bombs)",
    "cut them into tiles, or raise max_image_pixels in the config",
)
LABEL_MAP_SIZE = Kind(
    "label-map-size",
    ERROR,
    "label maps of another size than their image",
    "export them at the size of the image",
)
LABEL_MAP_FORMAT = Kind(
    "label-map-format",
    ERROR,
    "label maps in another form than this data set reads",
    "write one 8-bit label per pixel; for panoptic data, the segments' ids as RGB; turned like the image "
    "that a training sees, and without metadata",
)
UNKNOWN_LABEL = Kind(
    "unknown-label",
    ERROR,
    "label maps with unknown labels",
    "map them to classes or to the ignored label, or set reduce_zero_label or the classes right",
)
SEGMENT_MISSING = Kind(
    "segment-missing",
    ERROR,
    "panoptic segments that their label map does not show",
    "remove the segment, or export the label map again",
)
NOT_CHECKED = Kind(
    "not-checked",
    WARNING,
    "data sets of a kind that is not known here",
    "nothing was checked: look at them yourself",
)

# As they are reported.
KINDS: tuple[Kind, ...] = tuple(
    sorted((kind for kind in vars().values() if isinstance(kind, Kind)), key=lambda k: k.severity)
)
