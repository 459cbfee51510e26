"""DeiT alone: against timm's, its weights, and its options."""

import pytest
import torch
from nano_backbones import build_nano
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from flatten_det.attention import resize_grid
from flatten_det.backbones import FLattenDeiT, build_backbone
from flatten_det.backbones.weights import convert_checkpoint, identify_backbone, load_backbone
from flatten_det.errors import CheckpointError
from flatten_det.lab.complexity.target import find_target

KINDS = ["L", "S"]


def nano(**options) -> FLattenDeiT:
    return build_nano("FLattenDeiT", **options)


def timms(**options) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = dict(img_size=224, patch_size=16, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2)
    model = VisionTransformer(**sizes, num_classes=10, **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_softmax_is_timms_vit_without_a_class_token():
    theirs = timms(class_token=False, global_pool="avg", fc_norm=False)
    ours = nano(attn_types="S").eval()
    report = load_backbone(ours, theirs.state_dict(), "timm")
    assert sorted(report.dropped) == ["head.bias", "head.weight"]
    assert not report.kept
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        (found,) = ours(image)
        expected = theirs.forward_features(image).transpose(1, 2).unflatten(2, (14, 14))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("frozen_stages", "frozen"), [(-1, set()), (0, {"patch_embed", "pos_embed"}),
                         (1, {"patch_embed", "pos_embed", "blocks", "norm"})])  # fmt: skip
def test_frozen_stages(frozen_stages, frozen):
    model = nano(frozen_stages=frozen_stages, drop_path_rate=0.5).train()
    still = {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad}
    assert still == frozen
    moving = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert moving == {"patch_embed", "pos_embed", "blocks", "norm"} - frozen
    assert model.blocks[1].drop_path.training == ("blocks" not in frozen)


@pytest.mark.parametrize(
    ("name", "mparams", "gmacs"), [("deit-t", 5.72, 1.25), ("flatten-deit-t", 6.19, 1.14)]
)
def test_costs_are_the_papers(name, mparams, gmacs):
    """FLatten-DeiT-T: 6.1 M parameters with the head of 1000 classes, 1.1 G (Fig. 6); DeiT-T: 5.7 M."""
    complexity = find_target(name).count((224, 224))
    assert not complexity.uncounted
    assert (complexity.parameters + 193 * 1000) / 1e6 == pytest.approx(mparams, abs=0.005)
    assert complexity.macs / 1e9 == pytest.approx(gmacs, abs=0.005)


@pytest.mark.parametrize("extra", ["class_token", "dist_token"])
@pytest.mark.parametrize("attn_types", KINDS)
def test_deits_files_load(attn_types, extra):
    """Heads and class tokens are left out, with their places; linear attention keeps what is its own."""
    state = timms().state_dict()
    if extra == "dist_token":  # As timm's `deit_tiny_distilled_patch16_224`.
        state["dist_token"] = torch.randn(1, 1, 32)
        state["pos_embed"] = torch.randn(1, 198, 32)
        state |= {"head_dist.weight": torch.randn(10, 32), "head_dist.bias": torch.randn(10)}
    dropped = {n for n in state if n.startswith(("head", "cls_token", "dist_token"))}
    model = nano(attn_types=attn_types)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_backbone(model, state, "deit.pth")
    assert set(report.dropped) == dropped
    assert f"dropped {len(dropped)}: cls_token" in report.summary()
    values = model.state_dict()
    assert torch.equal(values["pos_embed"], state["pos_embed"][:, -196:])
    qkv = state["blocks.1.attn.qkv.weight"]
    if attn_types == "S":
        assert not report.kept
        assert torch.equal(values["blocks.1.attn.q.weight"], qkv[:32])
        assert torch.equal(values["blocks.1.attn.kv.weight"], qkv[32:])
    else:
        own = ("dwc.bias", "dwc.weight", "positional_encoding", "scale")
        assert report.kept == [f"blocks.{i}.attn.{name}" for i in range(2) for name in own]
        assert torch.equal(values["blocks.1.attn.qkv.weight"], qkv)
        assert all(torch.equal(values[name], before[name]) for name in report.kept)
    again = nano(attn_types=attn_types)
    assert not load_backbone(again, values, "own.pth").dropped
    assert all(torch.equal(again.state_dict()[name], value) for name, value in values.items())


def test_grids_follow_the_pretraining_size():
    state = timms().state_dict()
    model = nano(pretrain_img_size=(320, 480), attn_types="S")
    report = load_backbone(model, state, "deit.pth")
    assert list(report.resized) == ["pos_embed"]
    expected = resize_grid(state["pos_embed"][:, 1:], (14, 14), (20, 30))
    torch.testing.assert_close(model.pos_embed.detach(), expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("norm.weight", None, "missing in the file: norm.weight"),
        ("pos_embed", torch.ones(197), "wrong shape: pos_embed"),
        ("blocks.0.attn.qkv.weight", torch.tensor(1.0), "unknown to the model: blocks.0.attn.qkv"),
        ("blocks.0.attn.qkv.weight", torch.ones(5, 32), "wrong shape: blocks.0.attn.q.weight"),
        ("blocks.2.norm1.weight", torch.ones(32), "unknown to the model: blocks.2.norm1.weight"),
    ],
)
def test_files_that_do_not_fit_are_refused(name, value, message):
    state = timms().state_dict() | {name: value}
    if value is None:
        del state[name]
    with pytest.raises(CheckpointError, match=message):
        load_backbone(nano(attn_types="S"), state, "deit.pth")


def test_a_file_of_deit_is_deits(tmp_path):
    """Its weights fit linear attention as well, which is what one may ask for."""
    deit = VisionTransformer(patch_size=16, embed_dim=192, depth=12, num_heads=3).state_dict()
    assert identify_backbone(deit, "deit.pth") == "deit-t"
    torch.save({"model": deit}, tmp_path / "deit.pth")
    name, report = convert_checkpoint(tmp_path / "deit.pth", tmp_path / "own.safetensors")
    assert (name, report.kept) == ("deit-t", [])
    name, report = convert_checkpoint(
        tmp_path / "deit.pth", tmp_path / "linear.pth", "flatten-deit-t"
    )
    assert len(report.kept) == 4 * 12
    converted = dict(type="Pretrained", checkpoint=str(tmp_path / "own.safetensors"))
    backbone = build_backbone("deit-t", init_cfg=converted)
    backbone.init_weights()
    assert torch.equal(backbone.pos_embed, deit["pos_embed"][:, 1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(arch="huge"), "unknown arch 'huge'; choose one of 'tiny', 'small', 'base'"),
        (dict(arch=dict(depth=12)), r"unknown arch fields \['depth'\]"),
        (dict(arch=dict(depths=12)), "'depths' needs 1 value, one a stage; got 12"),
        (dict(arch=dict(depths=(2, 2))), "'depths' needs 1 value, one a stage"),
        (dict(arch=dict(num_heads=(5,))), "192 channels cannot be split into 5 heads"),
        (dict(attn_types="LS"), r"attn_types needs 1 value, each 'L' \(focused"),
        (dict(attn_types="X"), "attn_types needs 1 value"),
        (dict(frozen_stages=2), "frozen_stages must be from -1 to 1; got 2"),
        (dict(with_cp={"stages": [1]}), "stages must be a list of 0 to 0"),
        (dict(kernel_size=4), "kernel_size must be odd"),
        (dict(focusing_factor=0), "focusing_factor must be a finite number above 0"),
        (dict(drop_path_rate=1.0), "drop_path_rate must lie in"),
        (dict(pretrain_img_size=0), "pretrain_img_size must be"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        FLattenDeiT(**options)
