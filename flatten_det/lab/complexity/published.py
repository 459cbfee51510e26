"""What the paper's tables say its models cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_SOFTMAX = {"attn_types": "SSSS"}
_COCO, _ADE20K = (800, 1280), (512, 2048)


@dataclass(frozen=True)
class Published:
    """A model in Table 1 (ADE20K) or 2 (COCO) of arXiv 2308.00442.

    Attributes:
        title: backbone and method.
        config: of the zoo, relative to the checkout.
        size: ``(H, W)`` of the image in pixels.
        gflops: multiply-adds in G, as reported.
        mparams: parameters in M, as reported.
        changes: what makes the config's backbone the one that is meant.
    """

    title: str
    config: str
    size: tuple[int, int]
    gflops: int
    mparams: int
    changes: Mapping[str, Any] = field(default_factory=dict)


def _mask_rcnn(title: str, backbone: str, gflops: int, mparams: int) -> Published:
    config = f"configs/mask_rcnn/mask-rcnn_{backbone}_fpn_1x_coco.py"
    return Published(f"{title}, Mask R-CNN", config, _COCO, gflops, mparams)


def _cascade(
    title: str, size: str, gflops: int, mparams: int, changes: Mapping[str, Any]
) -> Published:
    config = f"configs/cascade_mask_rcnn/cascade-mask-rcnn_flatten-swin-{size}_fpn_3x_coco.py"
    return Published(f"{title}, Cascade Mask R-CNN", config, _COCO, gflops, mparams, changes)


def _semantic_fpn(title: str, backbone: str, gflops: int, mparams: int) -> Published:
    config = f"configs/semantic_fpn/{backbone}_semantic-fpn_4xb4-80k_ade20k-512x512.py"
    return Published(f"{title}, Semantic FPN", config, _ADE20K, gflops, mparams)


def _upernet(title: str, backbone: str, gflops: int, mparams: int) -> Published:
    config = f"configs/upernet/{backbone}_upernet_8xb2-160k_ade20k-512x512.py"
    return Published(f"{title}, UperNet", config, _ADE20K, gflops, mparams)


PUBLISHED = (
    _mask_rcnn("PVT-T", "pvt-t", 240, 33),
    _mask_rcnn("FLatten-PVT-T", "flatten-pvt-t", 244, 32),
    _mask_rcnn("Swin-T", "swin-t", 267, 48),
    _mask_rcnn("FLatten-Swin-T", "flatten-swin-t", 268, 49),
    _cascade("Swin-T", "t", 745, 86, _SOFTMAX),
    _cascade("FLatten-Swin-T", "t", 747, 87, {}),
    _cascade("Swin-S", "s", 838, 107, _SOFTMAX),
    _cascade("FLatten-Swin-S", "s", 841, 108, {}),
    _semantic_fpn("PVT-T", "pvt-t", 158, 17),
    _semantic_fpn("FLatten-PVT-T", "flatten-pvt-t", 169, 16),
    _upernet("Swin-T", "swin-t", 945, 60),
    _upernet("FLatten-Swin-T", "flatten-swin-t", 946, 60),
    _upernet("Swin-S", "swin-s", 1038, 81),
    _upernet("FLatten-Swin-S", "flatten-swin-s", 1038, 82),
)


def find_published(config: str) -> Published | None:
    """What the paper reports for a config of the zoo as it stands, by its file name.

    Schedules do not matter: a 3x config costs what its 1x twin does.
    """
    wanted = _name(config)
    return next((p for p in PUBLISHED if not p.changes and _name(p.config) == wanted), None)


def _name(config: str) -> str:
    return config.rsplit("/", 1)[-1].replace("_3x_", "_1x_")
