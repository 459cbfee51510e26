"""COCO 2017 for detection, instance and panoptic segmentation.

Sizes and SHA-256 digests: ``url_checksums/coco.txt`` of TensorFlow Datasets.
"""

from .layout import Files, Layout, Listing
from .sources import Archive, DataSet

SERVER = "http://images.cocodataset.org"

_TRAIN, _VAL = Files("train2017", ".jpg", 118287), Files("val2017", ".jpg", 5000)
_INSTANCES = (
    Listing("annotations/instances_train2017.json", _TRAIN),
    Listing("annotations/instances_val2017.json", _VAL),
)
_SEGMENTS = (
    Files("annotations/panoptic_train2017", ".png", 118287),
    Files("annotations/panoptic_val2017", ".png", 5000),
)
_PANOPTIC = (
    Listing("annotations/panoptic_train2017.json", _TRAIN, _SEGMENTS[0]),
    Listing("annotations/panoptic_val2017.json", _VAL, _SEGMENTS[1]),
)
# JPEG and PNG files hardly shrink in an archive, JSON files to a third or fourth.
_ARCHIVES = (
    Archive(
        SERVER,
        "annotations/annotations_trainval2017.zip",
        provides=tuple(listing.file for listing in _INSTANCES),
        size=252_907_541,
        unpacked=900_000_000,
        digest=("sha256", "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268"),
    ),
    Archive(
        SERVER,
        "zips/val2017.zip",
        provides=(_VAL,),
        size=815_585_330,
        unpacked=830_000_000,
        digest=("sha256", "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
    ),
    Archive(
        SERVER,
        "zips/train2017.zip",
        provides=(_TRAIN,),
        size=19_336_861_798,
        unpacked=19_700_000_000,
        digest=("sha256", "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"),
    ),
)
_PANOPTIC_ARCHIVE = Archive(
    SERVER,
    "annotations/panoptic_annotations_trainval2017.zip",
    provides=(*_SEGMENTS, *(listing.file for listing in _PANOPTIC)),
    size=860_725_834,
    # The inner archives and what is in them are on the disk together for a while.
    unpacked=2_500_000_000,
    digest=("sha256", "c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370"),
)

COCO = DataSet("COCO", Layout(files=(_TRAIN, _VAL), listings=_INSTANCES), _ARCHIVES)
COCO_PANOPTIC = DataSet(
    "COCO with panoptic annotations",
    Layout(files=(_TRAIN, _VAL, *_SEGMENTS), listings=(*_INSTANCES, *_PANOPTIC)),
    (*_ARCHIVES, _PANOPTIC_ARCHIVE),
)
