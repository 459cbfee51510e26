import pytest
import torch

from flatten_det.backbones import BACKBONES, backbone_config, build_backbone
from flatten_det.backbones.weights import OFFICIAL_CHECKPOINTS


@pytest.mark.parametrize("name", BACKBONES)
def test_every_name_builds_what_it_says(name):
    with torch.device("meta"):
        model = build_backbone(name)
    names = {n.split(".")[-1] for n, _ in model.named_parameters()}
    is_linear = name.startswith("flatten-")
    assert ("positional_encoding" in names) == ("scale" in names) == is_linear
    family = name.removeprefix("flatten-").split("-")[0]
    assert type(model).__name__.lower() == f"flatten{family}"


def test_baselines_have_the_depths_of_their_papers():
    assert backbone_config("cswin-t")["arch"]["depths"] == (1, 2, 21, 1)
    assert backbone_config("cswin-b")["arch"]["depths"] == (2, 4, 32, 2)


# Millions of parameters as published for classification, with a head of 1000 classes: PVT (2102.12122),
# PVTv2 (2106.13797), Swin (2103.14030), CSwin (2107.00652), to the digits given there (CSwin: rounded up);
# DeiT as timm's models have them.
PUBLISHED = {
    "pvt-t": 13.2,
    "pvt-s": 24.5,
    "pvt-m": 44.2,
    "pvt-l": 61.4,
    "pvtv2-b0": 3.7,
    "pvtv2-b2": 25.4,
    "swin-t": 28.3,
    "swin-s": 49.6,
    "swin-b": 87.8,
    "cswin-t": 23,
    "cswin-s": 35,
    "cswin-b": 78,
    "deit-t": 5.72,
    "deit-s": 22.05,
    "deit-b": 86.57,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_the_baselines(name):
    with torch.device("meta"):
        model = build_backbone(name)
    head = 1000 * (model.feature_dims[-1] + 1)
    count = (sum(p.numel() for p in model.parameters()) + head) / 1e6
    assert count == pytest.approx(PUBLISHED[name], rel=0.005, abs=1 if "cswin" in name else 0.06)


def test_changes_replace_fields():
    config = backbone_config("flatten-swin-t", drop_path_rate=0.3, arch="small")
    assert config == dict(type="FLattenSwin", arch="small", drop_path_rate=0.3)
    assert backbone_config("flatten-swin-t")["arch"] == "tiny"


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=r"unknown backbone 'flatten-vit'; choose one of flatten-pvt-t"
    ):
        backbone_config("flatten-vit")


def test_official_files_belong_to_backbones_of_their_resolution():
    for name, checkpoint in OFFICIAL_CHECKPOINTS.items():
        assert name == checkpoint.backbone.replace("-", "_")
        assert (
            backbone_config(checkpoint.backbone).get("pretrain_img_size", 224)
            == checkpoint.resolution
        )
        assert 70 < checkpoint.top1 < 90
