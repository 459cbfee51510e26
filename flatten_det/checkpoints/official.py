"""The classification checkpoints of the official release."""

from dataclasses import dataclass

RELEASE_PAGE = "https://github.com/LeapLabTHU/FLatten-Transformer"


@dataclass(frozen=True)
class OfficialCheckpoint:
    """One file of the release.

    Attributes:
        name: the file that our configs look for in ``checkpoints/``, without its suffix.
        backbone: short name of the backbone it belongs to.
        resolution: pretraining size in pixels.
        top1: ImageNet-1K top-1 accuracy in percent, as reported (paper, Fig. 6; B0: release page).
        page: where the release links it.
    """

    backbone: str
    resolution: int
    top1: float
    page: str = RELEASE_PAGE

    @property
    def name(self) -> str:
        return self.backbone.replace("-", "_")


OFFICIAL_CHECKPOINTS = {
    checkpoint.name: checkpoint
    for checkpoint in (
        OfficialCheckpoint("flatten-pvt-t", 224, 77.8),
        OfficialCheckpoint("flatten-pvt-s", 224, 81.7),
        OfficialCheckpoint("flatten-pvtv2-b0", 224, 71.1),
        OfficialCheckpoint("flatten-pvtv2-b1", 224, 79.5),
        OfficialCheckpoint("flatten-pvtv2-b2", 224, 82.5),
        OfficialCheckpoint("flatten-swin-t", 224, 82.1),
        OfficialCheckpoint("flatten-swin-s", 224, 83.5),
        OfficialCheckpoint("flatten-swin-b", 224, 83.8),
        OfficialCheckpoint("flatten-swin-b-384", 384, 85.0),
        OfficialCheckpoint("flatten-cswin-t", 224, 83.1),
        OfficialCheckpoint("flatten-cswin-s", 224, 83.8),
        OfficialCheckpoint("flatten-cswin-b", 224, 84.5),
        OfficialCheckpoint("flatten-cswin-b-384", 384, 85.5),
    )
}
