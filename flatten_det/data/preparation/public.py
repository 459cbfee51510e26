"""Data sets that anyone can download, COCO and ADE20K: preparing and checking them."""

from pathlib import Path

from ...errors import UserError
from .fetch import fetch
from .layout import Archive, Files, Listing, Pairs, PublicDataSet

# Sizes and SHA-256 digests: url_checksums/coco.txt of TensorFlow Datasets.
_COCO_SERVER = "http://images.cocodataset.org"

_TRAIN, _VAL = Files("train2017", ".jpg", 118287), Files("val2017", ".jpg", 5000)
_IMAGES = (_TRAIN, _VAL)
_INSTANCES = tuple(Listing(f"annotations/instances_{i.folder}.json", i) for i in _IMAGES)
_SEGMENTS = tuple(Files(f"annotations/panoptic_{i.folder}", ".png", i.count) for i in _IMAGES)
_PANOPTIC = tuple(
    Listing(f"{segments.folder}.json", images, segments)
    for images, segments in zip(_IMAGES, _SEGMENTS, strict=True)
)


def _coco_archive(path: str, provides: tuple, size: int, unpacked: int, sha256: str) -> Archive:
    return Archive(_COCO_SERVER, path, provides, unpacked, size, ("sha256", sha256))


# JPEG and PNG files hardly shrink in an archive, JSON files to a third or fourth.
_ARCHIVES = (
    _coco_archive(
        "annotations/annotations_trainval2017.zip",
        tuple(listing.file for listing in _INSTANCES),
        size=252_907_541,
        unpacked=900_000_000,
        sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
    _coco_archive(
        "zips/val2017.zip",
        (_VAL,),
        size=815_585_330,
        unpacked=830_000_000,
        sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    ),
    _coco_archive(
        "zips/train2017.zip",
        (_TRAIN,),
        size=19_336_861_798,
        unpacked=19_700_000_000,
        sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    ),
)
_PANOPTIC_ARCHIVE = _coco_archive(
    "annotations/panoptic_annotations_trainval2017.zip",
    (*_SEGMENTS, *(listing.file for listing in _PANOPTIC)),
    size=860_725_834,
    # The inner archives and what is in them are on the disk together for a while.
    unpacked=2_500_000_000,
    sha256="c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370",
)

COCO = PublicDataSet("COCO", (*_IMAGES, *_INSTANCES), _ARCHIVES)
COCO_PANOPTIC = PublicDataSet(
    "COCO with panoptic annotations",
    (*_IMAGES, *_SEGMENTS, *_INSTANCES, *_PANOPTIC),
    (*_ARCHIVES, _PANOPTIC_ARCHIVE),
)

_ADE20K_IMAGES, _ADE20K_LABELS = (
    (Files(f"{kind}/training", suffix, 20210), Files(f"{kind}/validation", suffix, 2000))
    for kind, suffix in (("images", ".jpg"), ("annotations", ".png"))
)
_ADE20K_FILES = (*_ADE20K_IMAGES, *_ADE20K_LABELS)
_ADE20K_ARCHIVE = Archive(
    "http://data.csail.mit.edu/places/ADEchallenge",
    "ADEChallengeData2016.zip",
    _ADE20K_FILES,
    size=967_382_037,
    unpacked=1_000_000_000,
    # That of GluonCV's and others' loaders; the file has no published SHA-256.
    digest=("md5", "7328b3957e407ddae1d3cbf487f149ef"),
    top="ADEChallengeData2016",
)
_ADE20K_PAIRS = map(Pairs, _ADE20K_IMAGES, _ADE20K_LABELS)

ADE20K = PublicDataSet("ADE20K", (*_ADE20K_FILES, *_ADE20K_PAIRS), (_ADE20K_ARCHIVE,))


def check(dataset: PublicDataSet, root: Path) -> list[str]:
    """Say what is missing in a data set's folder, one line per problem; nothing is written."""
    return _told(dataset, root, dataset.problems(root))


def _told(dataset: PublicDataSet, root: Path, problems: list[str]) -> list[str]:
    if problems:
        print(f"{dataset.name} in {root} is not complete:")
        print("\n".join(f"  {problem}" for problem in problems))
    else:
        print(f"{dataset.name} in {root} is complete: {dataset.summary()}")
    return problems


def prepare(
    dataset: PublicDataSet,
    root: Path,
    archives: Path | None = None,
    mirror: str | None = None,
    keep_archives: bool = False,
) -> list[str]:
    """Download, unpack and convert what is missing in a data set's folder; a complete one is left alone.

    ``archives``, ``mirror`` and ``keep_archives``: see :func:`~flatten_det.data.preparation.fetch.fetch`.
    Returns what is missing all the same, one line per problem.

    Raises:
        UserError: The data cannot be downloaded or unpacked; archives behind a login are not there (how
            to get them is printed).
    """
    problems = dataset.problems(root)
    if not problems:
        print("nothing to do")
        return _told(dataset, root, problems)
    folder = archives or root
    missing = [
        archive.name
        for archive in (dataset.archives if dataset.steps else ())
        if not archive.is_unpacked(root) and not (folder / archive.name).is_file()
    ]
    if missing:
        print(dataset.steps(folder))
        raise UserError(f"{' and '.join(missing)} not found in {folder}: follow the steps above")
    fetch(dataset.archives, root, archives, mirror, keep_archives)
    if dataset.convert:
        dataset.convert(root)
    return check(dataset, root)
