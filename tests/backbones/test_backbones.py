"""All families: sizes, gradients, freezing, checkpointing, bad arguments."""

import contextlib
import io
from importlib.util import find_spec

import pytest
import torch
from mmdet.registry import MODELS as DETECTION
from mmengine.registry import MODELS
from mmseg.registry import MODELS as SEGMENTATION
from nano_backbones import ARCHS, KINDS, NANO, build_nano
from torch import nn

SIZES = [(32, 32), (33, 57), (61, 224), (107, 45), (224, 224), (355, 38), (131, 700), (700, 413)]
of_all_kinds = pytest.mark.parametrize(("family", "attn_types"), KINDS)
of_all_families = pytest.mark.parametrize("family", ARCHS)
of_all_pyramids = pytest.mark.parametrize("family", NANO)


def check_shapes(model, outs, batch, height, width):
    sizes = zip(model.out_channels, model.strides, strict=True)
    expected = [(batch, dim, -(-height // s), -(-width // s)) for dim, s in sizes]
    assert [tuple(o.shape) for o in outs] == expected


@of_all_kinds
@pytest.mark.parametrize("size", SIZES)
def test_any_size(family, attn_types, size):
    model = build_nano(family, attn_types).eval()
    batch = 1 + sum(size) % 3
    with torch.no_grad():
        outs = model(torch.randn(batch, 3, *size))
    assert isinstance(outs, tuple)
    check_shapes(model, outs, batch, *size)
    assert all(o.isfinite().all() and o.is_contiguous() for o in outs)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        *((family, dict(attn_types=types)) for family, types in KINDS),
        *((family, dict(la_sr_ratios=(4, 2, 2, 1))) for family in NANO if "PVT" in family),
        *((family, dict(la_window_size=4)) for family in NANO if "Swin" in family),
    ],
)
@pytest.mark.parametrize("size", [(64, 96), (75, 51)])
def test_every_parameter_receives_a_gradient(family, options, size):
    model = build_nano(family, **options)
    for parameter in model.parameters():
        # Gates that start at zero would hide a missing path.
        nn.init.normal_(parameter, std=0.1)
    outs = model(torch.randn(2, 3, *size))
    check_shapes(model, outs, 2, *size)
    sum((o * torch.randn_like(o)).sum() for o in outs).backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert not [n for n, grad in grads.items() if grad is None or not grad.any()]
    assert all(grad.isfinite().all() for grad in grads.values())


@of_all_families
@pytest.mark.parametrize("attn_types", ["LLLL", "SSSS"])
@pytest.mark.parametrize(
    "checkpointing", [True, {"policy": "mlp", "stages": (0,)}, {"policy": "elementwise"}]
)
def test_with_cp_is_bit_equal(family, attn_types, checkpointing):
    """Outputs and gradients, stochastic depth included."""
    results = []
    image = torch.randn(2, 3, 64, 96)
    for with_cp in (False, checkpointing):
        model = build_nano(family, attn_types, with_cp=with_cp, drop_path_rate=0.3).train()
        torch.manual_seed(1)
        outs = model(image)
        sum(o.square().sum() for o in outs).backward()
        results.append([*outs, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@of_all_pyramids
@pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 2, 4])
def test_frozen_stages(family, frozen_stages):
    model = build_nano(family, frozen_stages=frozen_stages).train()
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


@of_all_families
def test_norm_eval(family):
    models = {on: build_nano(family, norm_eval=on).train() for on in (True, False)}
    for on, model in models.items():
        norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
        assert {m.training for m in norms} == {not on}
        assert model.training


@of_all_pyramids
@pytest.mark.parametrize(
    ("given", "stages"),
    [(-1, (3,)), (2, (2,)), ((1, -1), (1, 3)), ([0, 2], (0, 2)), ((0, 1, 2, 3), (0, 1, 2, 3))],
)
def test_what_is_returned_and_what_is_said_of_it(family, given, stages):
    everything, model = build_nano(family).eval(), build_nano(family, out_indices=given).eval()
    dims = everything.out_channels
    assert model.out_indices == stages
    assert model.out_channels == tuple(dims[stage] for stage in stages)
    assert model.strides == tuple(4 * 2**stage for stage in stages)
    assert model.num_features == model.feature_dims == dims[: stages[-1] + 1]
    counts = [sum(1 for _ in m.parameters()) for m in (model, everything)]
    assert counts[0] < counts[1] or stages[-1] == 3  # Later stages are not built.
    model.load_state_dict(everything.state_dict(), strict=False)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        whole, outs = everything(image), model(image)
    check_shapes(model, outs, 1, 64, 96)
    assert all(torch.equal(out, whole[i]) for out, i in zip(outs, stages, strict=True))


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore:.torch.jit.trace",
    "ignore:The feature will be removed:DeprecationWarning:torch",
    "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning",
)
@of_all_pyramids
def test_calls_take_what_forward_takes(family):
    """ONNX's exporter calls a module by the signature of its ``forward``."""
    shallow = NANO[family] | dict(depths=(1, 1, 1, 1))
    model, image = build_nano(family, arch=shallow).eval(), torch.randn(2, 3, 64, 64)
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


@of_all_pyramids
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


@of_all_families
def test_found_from_every_scope(family):
    assert MODELS.get(family) is DETECTION.get(family) is SEGMENTATION.get(family)


@of_all_kinds
def test_half_precision(family, attn_types):
    """In training and at inference, within the digits; a half model's maps are half."""
    model = build_nano(family, attn_types).eval()
    image = torch.randn(2, 3, 75, 132)
    with torch.no_grad():
        exact = model(image)
        for dtype, most in ((torch.bfloat16, 0.03), (torch.float16, 0.01)):
            with torch.autocast("cpu", dtype):
                found = model(image)
            for a, b in zip(found, exact, strict=True):
                assert (a.float() - b).norm() < most * b.norm()
    with torch.autocast("cpu", torch.bfloat16):
        outs = model.train()(image)
        loss = sum(o.float().square().mean() for o in outs)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        assert {x.dtype for x in model.eval().bfloat16()(image.bfloat16())} == {torch.bfloat16}
