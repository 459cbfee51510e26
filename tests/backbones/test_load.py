"""Every key of a checkpoint is explained; whatever does not fit is one clear error."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import PretrainedInit
from mmengine.registry import MODELS
from mmseg.models import EncoderDecoder
from nano_backbones import NANO
from safetensors.torch import save_file
from torch import nn

from flatten_det.backbones import FLattenPVT, FLattenSwin, build_backbone
from flatten_det.backbones.weights import load_backbone
from flatten_det.errors import CheckpointError
from flatten_det.necks import SimpleFeaturePyramid

PVT = dict(arch=dict(embed_dims=(8, 16, 32, 64), num_heads=(1, 2, 4, 8), depths=(1, 1, 1, 1)))
SWIN = dict(arch=dict(embed_dims=8, num_heads=(1, 2, 4, 8), depths=(1, 1, 2, 1)))


def official(model) -> dict[str, torch.Tensor]:
    """What the classification release would hold for this network."""
    state = {n: torch.randn_like(v) for n, v in model.state_dict().items()}
    if isinstance(model, FLattenSwin):
        for stage in range(3):
            del state[f"norm{stage}.weight"], state[f"norm{stage}.bias"]
        for part in ("weight", "bias"):
            state[f"norm.{part}"] = state.pop(f"norm3.{part}")
        state["layers.2.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49).long()
        state["layers.2.blocks.1.attn_mask"] = torch.zeros(4, 49, 49)
    else:
        state["norm.weight"], state["norm.bias"] = torch.ones(64), torch.zeros(64)
    state["head.weight"], state["head.bias"] = torch.randn(1000, 64), torch.zeros(1000)
    return state


def build(cls, options, path, **kwargs):
    model = cls(**options, **kwargs, init_cfg=dict(type="Pretrained", checkpoint=str(path)))
    model.init_weights()
    return model


@pytest.mark.parametrize(("cls", "options"), [(FLattenPVT, PVT), (FLattenSwin, SWIN)])
@pytest.mark.parametrize(
    "layout", ["model", "state_dict", "flat", "ddp", "detector", "safetensors"]
)
def test_layouts_of_files(cls, options, layout, tmp_path):
    state = official(cls(**options))
    contents = {
        "flat": state,
        "ddp": {"model": {f"module.{n}": v for n, v in state.items()}, "epoch": 3},
        "detector": {
            "state_dict": {f"backbone.{n}": v for n, v in state.items()} | {"neck.w": torch.ones(1)}
        },
    }
    if layout == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(state, path)
    else:
        path = tmp_path / "weights.pth"
        torch.save(contents.get(layout, {layout: state}), path)
    loaded = build(cls, options, path).state_dict()
    matched = [n for n in loaded if n in state]
    assert len(matched) > 30
    assert all(torch.equal(loaded[n], state[n]) for n in matched)
    if cls is FLattenSwin:
        assert torch.equal(loaded["norm3.weight"], state["norm.weight"])
        assert torch.equal(loaded["norm0.weight"], torch.ones(8))


def test_own_state_dict_loads_back(tmp_path):
    trained = FLattenSwin(**SWIN)
    torch.save(trained.state_dict(), tmp_path / "own.pth")
    assert same(build(FLattenSwin, SWIN, tmp_path / "own.pth"), trained)


def test_report_accounts_for_every_entry():
    model = FLattenSwin(**SWIN, out_indices=(0, 1, 2))
    state = official(FLattenSwin(**SWIN))
    report = load_backbone(model, state, "file.pth")
    assert len(report.loaded) + len(report.dropped) == len(state)
    assert {"head.weight", "norm.weight", "layers.2.blocks.1.attn_mask"} <= set(report.dropped)
    assert {n.split(".")[0] for n in report.kept} == {"norm0", "norm1", "norm2"}
    summary = report.summary()
    assert "file.pth" in summary
    assert "norm0.weight" in summary


def test_grids_and_tables_of_another_pretraining_size_are_resized():
    small = official(FLattenSwin(**SWIN, pretrain_img_size=224, window_size=7))
    large = FLattenSwin(**SWIN, pretrain_img_size=(320, 256), window_size=12)
    report = load_backbone(large, small, "file.pth")
    name = "layers.0.blocks.0.attn.positional_encoding"
    assert report.resized[name] == ((1, 56 * 56, 8), (1, 80 * 64, 8))
    grid = small[name].view(1, 56, 56, 8).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, (80, 64), mode="bilinear")
    resized = large.get_parameter(name).view(1, 80, 64, 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(resized, expected)
    table = large.get_parameter("layers.2.blocks.0.attn.relative_position_bias_table")
    assert table.shape == (23 * 23, 4)
    assert "resized" in report.summary()


def test_pvts_class_token_and_its_position_are_dropped():
    model = FLattenPVT(**PVT, attn_types="SSSS")
    state = official(model)
    state["cls_token"] = torch.zeros(1, 1, 64)
    state["pos_embed4"] = torch.cat([torch.full((1, 1, 64), 9.0), state["pos_embed4"]], dim=1)
    load_backbone(model, state, "pvt_tiny.pth")
    assert torch.equal(model.pos_embed4, state["pos_embed4"][:, 1:])
    state["pos_embed4"] = torch.zeros(50)
    with pytest.raises(CheckpointError, match="pos_embed4"):
        load_backbone(model, state, "pvt_tiny.pth")


def test_wrong_architecture_lists_the_keys(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"model": official(FLattenPVT(**PVT))}, path)
    deeper = dict(arch=PVT["arch"] | dict(depths=(2, 1, 1, 1)))
    with pytest.raises(CheckpointError, match=r"missing in the file: block1\.1\.") as error:
        build(FLattenPVT, deeper, path)
    assert str(path) in str(error.value)
    wider = dict(arch=PVT["arch"] | dict(embed_dims=(8, 16, 32, 128)))
    with pytest.raises(CheckpointError, match=r"wrong shape: .*\(1, 49, 64\).*\(1, 49, 128\)"):
        build(FLattenPVT, wider, path)
    with pytest.raises(CheckpointError, match=r"unknown to the model: block1\.0\.attn\.dwc"):
        build(FLattenPVT, PVT, path, attn_types="SSSS")
    with pytest.raises(CheckpointError, match="does not fit FLattenSwin"):
        build(FLattenSwin, SWIN, path)


@pytest.mark.parametrize(("cls", "options"), [(FLattenPVT, PVT), (FLattenSwin, SWIN)])
def test_renamed_key_is_an_error_and_leaves_the_model_untouched(cls, options):
    model = cls(**options)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    state = official(model)
    name = next(n for n in state if n.endswith("attn.dwc.weight"))
    renamed = name.replace("dwc", "dw_conv")
    state[renamed] = state.pop(name)
    with pytest.raises(CheckpointError) as error:
        load_backbone(model, state, "file.pth")
    assert f"missing in the file: {name}" in str(error.value)
    assert f"unknown to the model: {renamed}" in str(error.value)
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())


TINY = {family: arch | dict(depths=(1, 1, 1, 1)) for family, arch in NANO.items()}
TINY["FLattenDeiT"] = dict(embed_dims=(24,), num_heads=(3,), depths=(1,), mlp_ratios=(2,))


def tiny(family: str, **options):
    return MODELS.build(dict(type=family, arch=TINY[family], pretrain_img_size=64, **options))


def same(model, other) -> bool:
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def whole(tmp_path):
    """A file of a larger model whose backbone and whose teacher's backbone are a family's."""

    def save(family: str) -> tuple[str, nn.Module, nn.Module]:
        backbone, teacher = tiny(family), tiny(family)
        parts = {"backbone.": backbone, "teacher.backbone.": teacher, "neck.": nn.Linear(2, 2)}
        state = {f"{part}{n}": v for part, m in parts.items() for n, v in m.state_dict().items()}
        torch.save({"state_dict": state}, tmp_path / "whole.pth")
        return str(tmp_path / "whole.pth"), backbone, teacher

    return save


@pytest.mark.parametrize("family", TINY)
def test_forms_of_init_cfg_load_what_they_name(family, whole):
    path, backbone, teacher = whole(family)
    plain = dict(type="Pretrained", checkpoint=path)
    of_teacher = plain | dict(prefix="teacher.backbone.", map_location="cpu")
    noise = dict(type="TruncNormal", layer=["Linear", "Conv2d"], std=9.0)
    for init_cfg, expected in (
        ([plain], backbone),
        ((plain,), backbone),
        (plain | dict(prefix="backbone."), backbone),
        ([plain | dict(prefix="backbone", type=PretrainedInit)], backbone),
        (ConfigDict(plain, type="mmengine.Pretrained"), backbone),
        ([of_teacher, noise], teacher),
        ([plain, of_teacher], teacher),
    ):
        model = tiny(family, init_cfg=init_cfg)
        model.init_weights()
        assert model.is_init
        assert same(model, expected), init_cfg
    assert same(initialised(tiny(family, pretrained=path, convert_weights=True)), backbone)


def initialised(module):
    module.init_weights()
    return module


def test_other_initialisers_act_alone_in_lists_and_on_parts():
    constant = dict(type="Constant", val=3.0, bias=4.0, layer="Linear")
    override = dict(type="Constant", name="patch_embed1", val=5.0)
    before = tiny("FLattenPVT").state_dict().keys()
    for init_cfg in (constant, [constant], [constant | dict(override=override)]):
        state = initialised(tiny("FLattenPVT", init_cfg=init_cfg)).state_dict()
        assert state.keys() == before
        assert (state["block1.0.attn.q.weight"] == 3).all()
        assert (state["block1.0.attn.q.bias"] == 4).all()
        assert (state["patch_embed1.proj.weight"] == 5).all() == ("override" in str(init_cfg))
    for kind in ("Xavier", "Kaiming", "Caffe2Xavier", "Normal", "Uniform", "TruncNormal"):
        torch.manual_seed(0)
        weight = initialised(
            tiny("FLattenPVT", init_cfg=[dict(type=kind, layer="Linear", bias=7.0)])
        ).block1[0]
        assert (weight.attn.q.bias == 7).all(), kind
        assert not (weight.norm1.bias == 7).any()


def test_parts_are_loaded_whole(whole):
    path, _, teacher = whole("FLattenPVT")
    part = dict(
        type="Pretrained", name="block1", checkpoint=path, prefix="teacher.backbone.block1."
    )
    constant = dict(type="Constant", val=3.0, layer="Linear")
    for override in (part, [part], part | dict(type=PretrainedInit)):
        model = initialised(tiny("FLattenPVT", init_cfg=constant | dict(override=override)))
        assert same(model.block1, teacher.block1)
        assert (model.block2[0].attn.q.weight == 3).all()
    wrong = constant | dict(override=part | dict(prefix="teacher.backbone.block2."))
    with pytest.raises(CheckpointError, match=r"whole\.pth does not fit ModuleList: .*prefix"):
        tiny("FLattenPVT", init_cfg=wrong).init_weights()


def test_what_init_cfg_does_not_find_is_an_error(whole, tmp_path):
    path, *_ = whole("FLattenSwin")
    plain = dict(type="Pretrained", checkpoint=path)
    for init_cfg, message in (
        ([plain | dict(prefix="student.")], "no weights in it whose names begin with 'student.'"),
        ([plain | dict(prefix="neck.")], "does not fit FLattenSwin"),
        ([plain | dict(checkpoint="gone.pth")], "gone.pth: no such checkpoint file"),
        (plain | dict(checkpoint="file:///gone.pth"), "file:///gone.pth: .*can not be found"),
    ):
        with pytest.raises(CheckpointError, match=message):
            tiny("FLattenSwin", init_cfg=init_cfg).init_weights()
    for wrong in (dict(init_cfg=plain, pretrained=path), dict(pretrained=True)):
        with pytest.raises(ValueError, match="pretrained must be a file or URL, and the only one"):
            tiny("FLattenSwin", **wrong)


def test_the_neck_is_loaded_whole_too(tmp_path):
    neck = SimpleFeaturePyramid(8, 8)
    state = {f"neck.{n}": v for n, v in neck.state_dict().items()}
    torch.save({"state_dict": state | {"backbone.x": torch.ones(1)}}, tmp_path / "a.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "a.pth"), prefix="neck.")
    assert same(initialised(SimpleFeaturePyramid(8, 8, init_cfg=[init_cfg])), neck)
    with pytest.raises(CheckpointError, match="does not fit SimpleFeaturePyramid"):
        SimpleFeaturePyramid(8, 8, init_cfg=init_cfg | dict(prefix=None)).init_weights()
    xavier = dict(type="Xavier", layer="Conv2d", distribution="uniform", bias=7.0)
    loaded = initialised(SimpleFeaturePyramid(8, 8, init_cfg=[xavier])).state_dict()
    assert any((value == 7).all() for value in loaded.values()) == any(
        isinstance(m, nn.Conv2d) and m.bias is not None for m in neck.modules()
    )


def test_a_segmentor_passes_its_pretrained_on(whole):
    path, backbone, _ = whole("FLattenSwin")
    head = dict(type="FCNHead", in_channels=128, channels=4, num_classes=2, norm_cfg=None)
    swin = dict(type="FLattenSwin", arch=TINY["FLattenSwin"], pretrain_img_size=64)
    segmentor = EncoderDecoder(ConfigDict(swin), ConfigDict(head), pretrained=path)
    assert same(initialised(segmentor).backbone, backbone)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_file(keep, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    state = official(FLattenPVT(**PVT))
    save_file(state, path) if suffix == ".safetensors" else torch.save({"model": state}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CheckpointError, match=f"{path.name}: .*(truncated|damaged)"):
        build(FLattenPVT, PVT, path)


def test_tables_that_claim_to_be_huge_are_not_resized():
    model = build_backbone("flatten-pvtv2-b0")
    state = model.state_dict()
    name = next(iter(model.grid_shapes()))
    channels = state[name].shape[2]
    state[name] = torch.zeros(1).expand(1, 10_000_000**2, channels)
    with pytest.raises(CheckpointError, match=rf"wrong shape: {name} is \(1, 100000000000000, "):
        load_backbone(model, state, "evil.pth")
