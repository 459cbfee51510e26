"""DeiT: against timm's, at all sizes, in batches, its weights, and its options."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from flatten_det.attention import resize_grid
from flatten_det.backbones import FLattenDeiT, build_backbone
from flatten_det.backbones.weights import convert_checkpoint, identify_backbone, load_backbone
from flatten_det.errors import CheckpointError
from flatten_det.lab.complexity.target import find_target

NANO = dict(embed_dims=(32,), num_heads=(2,), mlp_ratios=(2,), depths=(3,))
KINDS = ["L", "S"]
# Of the image; the map of 14 x 14 that the grids are learned on is among them.
SIZES = [(1, 1), (33, 57), (16, 300), (107, 45), (224, 224), (355, 38)]


def nano(**options) -> FLattenDeiT:
    """With nothing left at zero or one."""
    torch.manual_seed(0)
    return randomised(MODELS.build(dict(type="FLattenDeiT", arch=NANO) | options))


def randomised(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or "pos" in name or name.endswith("scale"):
            nn.init.normal_(parameter, std=0.3)
    return model


def timms(**options) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = dict(img_size=224, patch_size=16, embed_dim=32, depth=3, num_heads=2, mlp_ratio=2)
    model = VisionTransformer(**sizes, num_classes=10, **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_softmax_is_timms_vit_without_a_class_token():
    theirs = timms(class_token=False, global_pool="avg", fc_norm=False)
    ours = MODELS.build(dict(type="FLattenDeiT", arch=NANO, attn_types="S")).eval()
    report = load_backbone(ours, theirs.state_dict(), "timm")
    assert sorted(report.dropped) == ["head.bias", "head.weight"]
    assert not report.kept
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        (found,) = ours(image)
        expected = theirs.forward_features(image).transpose(1, 2).unflatten(2, (14, 14))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attn_types", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_any_size(attn_types, size):
    model = nano(attn_types=attn_types).eval()
    with torch.no_grad():
        outs = model(torch.randn(2, 3, *size))
    assert isinstance(outs, tuple)
    (out,) = outs
    assert out.shape == (2, 32, -(-size[0] // 16), -(-size[1] // 16))
    assert out.isfinite().all()
    assert out.is_contiguous()


@pytest.mark.parametrize("attn_types", KINDS)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("in_one_pass", [False, True])
def test_alone_and_in_a_batch(attn_types, train, in_one_pass):
    """The padding of a batch has no part in what is computed for an image, and its map is zero there."""
    model = nano(attn_types=attn_types).train(train)
    model.computes_padded = lambda x: in_one_pass  # As on CUDA.
    sizes = [(96, 128), (64, 64), (96, 128), (77, 50)]
    images = torch.full((4, 3, 96, 144), 7.0)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width)

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.backbone = model

        def forward(self, inputs, data_samples=None, mode="tensor"):
            return self.backbone(inputs)

    samples = [BaseDataElement(metainfo=dict(img_shape=size)) for size in sizes]
    with torch.set_grad_enabled(train):
        (together,) = Model()(images, samples)
        (unmasked,) = model.forward_images(images)
        assert together.shape == (4, 32, 6, 9)
        for index, (height, width) in enumerate(sizes):
            (alone,) = model(images[index : index + 1, :, :height, :width])
            own = together[index, :, : alone.shape[2], : alone.shape[3]]
            torch.testing.assert_close(own, alone[0], rtol=1e-4, atol=1e-4)
            assert together[index].count_nonzero() == own.count_nonzero()
            mixed = unmasked[index, :, : alone.shape[2], : alone.shape[3]]
            assert (mixed - alone[0]).abs().max() > 1e-2


@pytest.mark.parametrize("attn_types", KINDS)
def test_every_parameter_receives_a_gradient(attn_types):
    model = nano(attn_types=attn_types)
    (out,) = model(torch.randn(2, 3, 75, 51))
    (out * torch.randn_like(out)).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("attn_types", KINDS)
@pytest.mark.parametrize("with_cp", [True, {"policy": "mlp"}, {"policy": "elementwise"}])
def test_with_cp_is_bit_equal(attn_types, with_cp):
    """Output and gradients, stochastic depth included."""
    results = []
    for policy in (False, with_cp):
        model = nano(attn_types=attn_types, with_cp=policy, drop_path_rate=0.3).train()
        torch.manual_seed(1)
        (out,) = model(torch.randn(2, 3, 64, 96))
        out.square().sum().backward()
        results.append([out, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("attn_types", KINDS)
def test_in_place_inference_gives_the_same(attn_types):
    model, image = nano(attn_types=attn_types).eval(), torch.randn(2, 3, 101, 75)
    before, (expected,) = image.clone(), model(image)
    with torch.no_grad():
        (found,) = model(image)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(image, before)


@pytest.mark.parametrize("attn_types", KINDS)
def test_compiled_equals_plain(attn_types):
    torch.compiler.reset()
    compiled = dict(dynamic=True, backend="eager", fullgraph=True)
    plain, model = (nano(attn_types=attn_types, compile=c).eval() for c in (False, compiled))
    for size in ((96, 128), (75, 101), (224, 64)):
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(model(image), plain(image), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("attn_types", KINDS)
def test_bf16_autocast(attn_types):
    model, image = nano(attn_types=attn_types).eval(), torch.randn(2, 3, 75, 132)
    with torch.no_grad():
        (exact,) = model(image)
        with torch.autocast("cpu", torch.bfloat16):
            (found,) = model(image)
    assert (found.float() - exact).norm() < 0.03 * exact.norm()
    with torch.autocast("cpu", torch.bfloat16):
        (out,) = model.train()(image)
        out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("frozen_stages", "frozen"), [(-1, set()), (0, {"patch_embed", "pos_embed"}),
                         (1, {"patch_embed", "pos_embed", "blocks", "norm"})])  # fmt: skip
def test_frozen_stages(frozen_stages, frozen):
    model = nano(frozen_stages=frozen_stages, drop_path_rate=0.5).train()
    still = {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad}
    assert still == frozen
    moving = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert moving == {"patch_embed", "pos_embed", "blocks", "norm"} - frozen
    assert model.blocks[2].drop_path.training == ("blocks" not in frozen)


@pytest.mark.parametrize(
    ("name", "mparams", "gmacs"), [("deit-t", 5.72, 1.25), ("flatten-deit-t", 6.19, 1.14)]
)
def test_costs_are_the_papers(name, mparams, gmacs):
    """FLatten-DeiT-T: 6.1 M parameters with the head of 1000 classes, 1.1 G (Fig. 6); DeiT-T: 5.7 M."""
    complexity = find_target(name).count((224, 224))
    assert not complexity.uncounted
    assert (complexity.parameters + 193 * 1000) / 1e6 == pytest.approx(mparams, abs=0.005)
    assert complexity.macs / 1e9 == pytest.approx(gmacs, abs=0.005)


def test_norm_eval():
    norms = [m for m in nano(norm_eval=True).train().modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 2 * 3 + 1
    assert not any(m.training for m in norms)


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
        assert report.kept == [f"blocks.{i}.attn.{name}" for i in range(3) for name in own]
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
        ("blocks.3.norm1.weight", torch.ones(32), "unknown to the model: blocks.3.norm1.weight"),
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
