"""Small models to export, and files run by ONNX Runtime."""

from pathlib import Path

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from nano_backbones import build_nano
from torch import Tensor, nn

from flatten_det.config import load_config
from flatten_det.export.check import runner_of
from flatten_det.export.exporters import ONNX, to_onnx
from flatten_det.export.graphs import prepared

# Batches, heights and widths: maps within one of Swin's windows, of sizes that no stride divides, of several
# windows.
SHAPES = [(1, 64, 96), (3, 101, 133), (2, 224, 352)]
HEADS = {
    "FPNHead": dict(feature_strides=[4, 8, 16, 32], channels=16),
    "UPerHead": dict(pool_scales=(1, 2, 3, 6), channels=16),
    "SegformerHead": dict(channels=16),
}


class OneInput(nn.Module):
    """A backbone of a user's own script: its input is called ``image``."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.backbone(image)


def nano_segmentor(head: str, family: str = "FLattenPVT", num_classes: int = 5) -> nn.Module:
    """With running statistics as after a training."""
    backbone = build_nano(family)
    config = dict(
        type="mmseg.EncoderDecoder",
        data_preprocessor=dict(
            type="mmseg.SegDataPreProcessor",
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
        ),
        backbone=dict(type=family, arch=backbone.arch),
        decode_head=dict(
            type=f"mmseg.{head}",
            in_channels=list(backbone.out_channels),
            in_index=[0, 1, 2, 3],
            num_classes=num_classes,
            norm_cfg=dict(type="BN"),
            align_corners=False,
            **HEADS[head],
        ),
        test_cfg=ConfigDict(mode="whole"),
    )
    model = MODELS.build(config)
    model.backbone.load_state_dict(backbone.state_dict())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def let_find(model: nn.Module) -> nn.Module:
    """A detector with random heads that find something in noise: all scores, boxes near anchors."""
    for name, parameter in model.named_parameters():
        is_head = "head" in name and "norm" not in name
        if is_head and parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter, a=20 if "reg" in name else 0)
        elif is_head:
            nn.init.normal_(parameter, std=0.3)
    return model


def save_finding_detector(config: str, path: Path) -> None:
    """Weights with which a detector finds something in noise, which random ones do not."""
    torch.manual_seed(0)
    cfg = load_config(config)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = let_find(MODELS.build(cfg.model))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": model.state_dict()}, path)


def run_onnx(content: bytes, image: Tensor) -> list[Tensor]:
    return runner_of(content, ONNX)(image)


def exported(graph: nn.Module, legacy: bool = True, precision: str = "fp32") -> bytes:
    dtype = torch.uint8 if hasattr(graph, "normalised") else torch.float32
    return to_onnx(prepared(graph, precision, legacy), dtype, 18, legacy, {})
