"""All families: sizes, gradients, freezing, checkpointing, parameter counts, bad arguments."""

import contextlib
import io
from importlib.util import find_spec

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

import flatten_det  # noqa: F401  registers the backbones

NANO = {
    "FLattenPVT": dict(embed_dims=(8, 16, 32, 64), num_heads=(1, 2, 4, 8), depths=(1, 1, 2, 1)),
    "FLattenPVTv2": dict(embed_dims=(8, 16, 32, 64), num_heads=(1, 2, 4, 8), depths=(1, 1, 2, 1)),
    "FLattenSwin": dict(embed_dims=8, num_heads=(1, 2, 4, 8), depths=(2, 1, 2, 2)),
    "FLattenCSwin": dict(embed_dims=8, num_heads=(2, 2, 4, 8), depths=(1, 2, 2, 1)),
}
FAMILIES = sorted(NANO)
SIZES = [(32, 32), (33, 57), (61, 224), (107, 45), (224, 224), (355, 38), (131, 700), (700, 413)]


def nano(family: str, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.build(dict(type=family, arch=NANO[family]) | kwargs)


def expected_shapes(model, batch, height, width):
    return [
        (batch, dim, -(-height // stride), -(-width // stride))
        for dim, stride in zip(model.feature_dims, (4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attn_types", ["LLLL", "LLSS", "SSSS"])
@pytest.mark.parametrize("size", SIZES)
def test_any_size(family, attn_types, size):
    model = nano(family, attn_types=tuple(attn_types)).eval()
    batch = 1 + sum(size) % 3
    with torch.no_grad():
        outs = model(torch.randn(batch, 3, *size))
    assert [tuple(o.shape) for o in outs] == expected_shapes(model, batch, *size)
    assert all(o.isfinite().all() for o in outs)


@pytest.mark.parametrize("family", FAMILIES)
def test_strides_over_a_sweep_of_sizes(family):
    model = nano(family).eval()
    with torch.no_grad():
        # All remainders of the strides and the windows; larger images are in SIZES.
        for height in range(32, 240, 29):
            for width in range(32, 240, 43):
                outs = model(torch.randn(1, 3, height, width))
                assert [tuple(o.shape) for o in outs] == expected_shapes(model, 1, height, width)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attn_types", ["LLLL", "LLSS", "SSSS"])
@pytest.mark.parametrize("size", [(64, 96), (75, 51)])
def test_every_parameter_receives_a_gradient(family, attn_types, size):
    model = nano(family, attn_types=tuple(attn_types))
    for parameter in model.parameters():
        # Gates that start at zero would hide a missing path.
        nn.init.normal_(parameter, std=0.1)
    outs = model(torch.randn(2, 3, *size))
    sum((o * torch.randn_like(o)).sum() for o in outs).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_flow_through_la_windows_and_reduction(family):
    option = dict(la_sr_ratios=(4, 2, 2, 1)) if "PVT" in family else dict(la_window_size=4)
    model = nano(family, **option)
    outs = model(torch.randn(2, 3, 75, 52))
    assert [tuple(o.shape) for o in outs] == expected_shapes(model, 2, 75, 52)
    sum(o.square().mean() for o in outs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attn_types", ["LLLL", "SSSS"])
@pytest.mark.parametrize(
    "checkpointing", [True, {"policy": "mlp", "stages": (0, 2)}, {"policy": "elementwise"}]
)
def test_with_cp_is_bit_equal(family, attn_types, checkpointing):
    """Outputs and gradients, stochastic depth included."""
    results = []
    image = torch.randn(2, 3, 64, 96)
    for with_cp in (False, checkpointing):
        model = nano(family, attn_types=tuple(attn_types), with_cp=with_cp, drop_path_rate=0.3)
        model.train()
        torch.manual_seed(1)
        outs = model(image)
        sum(o.square().sum() for o in outs).backward()
        results.append([*outs, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 2, 4])
def test_frozen_stages(family, frozen_stages):
    model = nano(family, frozen_stages=frozen_stages).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    outs = model(torch.randn(2, 3, 64, 64))
    if trained:
        sum((o * torch.randn_like(o)).sum() for o in outs).backward()
        torch.optim.SGD(trained, lr=1.0).step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}

    def stage_of(name: str) -> int:
        """1 to 4; 0: patch embedding."""
        if family != "FLattenSwin":
            root = name.split(".")[0]
            return 0 if root in ("patch_embed1", "pos_embed1") else int(root[-1])
        if name.startswith("patch_embed"):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("layers") else int(name[4]) + 1

    for name in before:
        assert (name in changed) == (stage_of(name) > frozen_stages), name
    # Frozen stages stay in evaluation mode, so that they do not drop paths either.
    frozen = list(model.train().frozen_modules())
    assert not any(m.training for f in frozen if isinstance(f, nn.Module) for m in f.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_norm_eval(family):
    def norms(model):
        return [m for m in model.modules() if isinstance(m, nn.LayerNorm)]

    model = nano(family, norm_eval=True).train()
    assert norms(model)
    assert not any(m.training for m in norms(model))
    assert model.training
    assert all(m.training for m in norms(nano(family).train()))


@pytest.mark.parametrize("family", FAMILIES)
def test_out_indices(family):
    everything = nano(family).eval()
    some = nano(family, out_indices=(0, 2)).eval()
    assert sum(1 for _ in some.parameters()) < sum(1 for _ in everything.parameters())
    some.load_state_dict(everything.state_dict(), strict=False)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        whole, part = everything(image), some(image)
    assert len(part) == 2
    assert torch.equal(part[0], whole[0])
    assert torch.equal(part[1], whole[2])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("given", "stages"),
    [(-1, (3,)), (2, (2,)), ((1, -1), (1, 3)), ([0, 2], (0, 2)), ((0, 1, 2, 3), (0, 1, 2, 3))],
)
def test_what_is_returned_and_what_is_said_of_it(family, given, stages):
    model = nano(family, out_indices=given).eval()
    assert model.out_indices == stages
    assert model.out_channels == tuple(8 * 2**stage for stage in stages)
    assert model.strides == tuple(4 * 2**stage for stage in stages)
    assert model.num_features == model.feature_dims == (8, 16, 32, 64)[: stages[-1] + 1]
    with torch.no_grad():
        outs = model(torch.randn(1, 3, 64, 96))
    sizes = zip(model.out_channels, model.strides, strict=True)
    assert [o.shape for o in outs] == [(1, dim, 64 // s, 96 // s) for dim, s in sizes]


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore:.torch.jit.trace",
    "ignore:The feature will be removed:DeprecationWarning:torch",
    "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning",
)
@pytest.mark.parametrize("family", FAMILIES)
def test_calls_take_what_forward_takes(family):
    """ONNX's exporter calls a module by the signature of its ``forward``."""
    shallow = NANO[family] | dict(depths=(1, 1, 1, 1))
    model, image = nano(family, arch=shallow).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        whole = model(image)
        assert all(map(torch.equal, model(image, None), whole))
        part = model(image, [(64, 64), (32, 64)])
        traced = torch.jit.trace(model, image, check_trace=False)(image)  # It is compared below.
        missing = contextlib.nullcontext()
        if find_spec("onnx") is None:  # It is looked for at the end, when all has been exported.
            missing = pytest.raises(torch.onnx.OnnxExporterError, match="onnx is not installed")
        with missing:
            torch.onnx.export(model, (image,), io.BytesIO(), dynamo=False)
    for a, b, c in zip(part, whole, traced, strict=True):
        torch.testing.assert_close(a[0], b[0], rtol=1e-4, atol=1e-4)
        assert not a[1, :, a.shape[2] // 2 :].any()
        torch.testing.assert_close(c, b, rtol=1e-4, atol=1e-4)


# Millions of parameters of the original classification networks without the head (../shared/design.md),
# which have a final norm more than the dense PVT and three output norms less than the dense Swin and CSwin.
PUBLISHED = {
    ("FLattenPVT", "tiny"): 11.64,
    ("FLattenPVT", "small"): 21.16,
    ("FLattenPVT", "medium"): 36.73,
    ("FLattenPVT", "large"): 50.14,
    ("FLattenSwin", "tiny"): 28.42,
    ("FLattenSwin", "small"): 49.74,
    ("FLattenPVTv2", "b0"): 3.34,
    ("FLattenPVTv2", "b1"): 12.42,
    ("FLattenPVTv2", "b2"): 22.04,
    ("FLattenPVTv2", "b3"): 37.76,
    ("FLattenPVTv2", "b4"): 51.32,
    ("FLattenPVTv2", "b5"): 66.55,
    ("FLattenSwin", "base"): 87.95,
    ("FLattenCSwin", "tiny"): 20.69,
    ("FLattenCSwin", "small"): 34.94,
    ("FLattenCSwin", "base"): 74.10,
}


@pytest.mark.parametrize(("family", "arch"), PUBLISHED)
def test_parameter_counts(family, arch):
    with torch.device("meta"):
        model = MODELS.get(family)(arch=arch)
    count = sum(p.numel() for p in model.parameters())
    if family == "FLattenPVT":
        count += 2 * model.feature_dims[3]
    elif "Swin" in family:
        count -= 2 * sum(model.feature_dims[:3])
    assert count / 1e6 == pytest.approx(PUBLISHED[family, arch], abs=0.006)


@pytest.mark.parametrize("family", FAMILIES)
def test_softmax_twin_has_no_linear_attention(family):
    names = {n.split(".")[-1] for n, _ in nano(family, attn_types="SSSS").named_parameters()}
    assert "positional_encoding" not in names
    assert "scale" not in names


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(arch="huge"), "unknown arch 'huge'; choose one of '(tiny|b0)'"),
        (dict(arch=dict(base="nano")), "unknown arch 'nano'"),
        (dict(arch=dict(depth=(1, 1, 1, 1))), r"unknown arch fields \['depth'\]"),
        (dict(arch=dict(depths=(1, 1))), "'depths' needs 4 values"),
        (dict(arch=dict(num_heads=(5, 5, 5, 5))), "cannot be split into 5 heads"),
        (dict(out_indices=()), "out_indices needs"),
        (dict(out_indices=(0, 4)), "out_indices needs"),
        (dict(out_indices=(1, 0)), r"as they are returned: \(0, 1\); got \(1, 0\)"),
        (dict(out_indices=(0, -4)), r"each stage once"),
        (dict(out_indices=True), "out_indices needs"),
        (dict(out_indices=-5), "out_indices needs"),
        (dict(attn_types=("L", "L")), "attn_types needs 4 values"),
        (dict(attn_types=("L", "L", "S", "X")), "attn_types needs 4 values"),
        (dict(frozen_stages=5), "frozen_stages must be from -1 to 4"),
        (dict(drop_path_rate=1.0), "drop_path_rate must lie in"),
    ],
)
def test_bad_arguments(family, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MODELS.get(family)(**kwargs)


@pytest.mark.parametrize("family", FAMILIES)
def test_found_from_every_scope(family):
    from mmdet.registry import MODELS as DETECTION
    from mmseg.registry import MODELS as SEGMENTATION

    assert MODELS.get(family) is DETECTION.get(family) is SEGMENTATION.get(family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attn_types", ["LLLL", "SSSS"])
def test_bf16_autocast(family, attn_types):
    """In training and at inference, within the digits of bfloat16."""
    model = nano(family, attn_types=tuple(attn_types)).eval()
    image = torch.randn(2, 3, 75, 132)
    with torch.no_grad():
        exact = model(image)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(image)
    for a, b in zip(found, exact, strict=True):
        assert (a.float() - b).norm() < 0.03 * b.norm()
    with torch.autocast("cpu", torch.bfloat16):
        outs = model.train()(image)
        loss = sum(o.float().square().mean() for o in outs)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
