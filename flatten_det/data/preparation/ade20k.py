"""ADE20K as of the scene parsing challenge of 2016: 150 classes.

The MD5 digest is that of GluonCV's and others' loaders; the file has no published SHA-256.
"""

from .layout import Files, Layout, Pairs
from .sources import Archive, DataSet

SERVER = "http://data.csail.mit.edu/places/ADEchallenge"

_IMAGES = (Files("images/training", ".jpg", 20210), Files("images/validation", ".jpg", 2000))
_LABELS = (
    Files("annotations/training", ".png", 20210),
    Files("annotations/validation", ".png", 2000),
)

ADE20K = DataSet(
    "ADE20K",
    Layout(
        files=(*_IMAGES, *_LABELS),
        pairs=tuple(Pairs(*pair) for pair in zip(_IMAGES, _LABELS, strict=True)),
    ),
    (
        Archive(
            SERVER,
            "ADEChallengeData2016.zip",
            provides=(*_IMAGES, *_LABELS),
            size=967_382_037,
            unpacked=1_000_000_000,
            digest=("md5", "7328b3957e407ddae1d3cbf487f149ef"),
            top="ADEChallengeData2016",
        ),
    ),
)
