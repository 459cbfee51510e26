"""Residual sum, LayerNorm and cast in one kernel: values and gradients against float64."""

import pytest
import torch
from attention_cases import relative_error
from machine_code import read_code
from mmengine.registry import MODELS
from nano_backbones import NANO
from recorded_launches import compiled_for, record_launches
from torch import Tensor, nn

from flatten_det.attention import layer_norm
from flatten_det.attention.gpu import norm as norm_kernels
from flatten_det.attention.gpu import tiles
from flatten_det.attention.layer_norm import _AddLayerNorm
from flatten_det.backbones.blocks import TransformerBlock
from flatten_det.backbones.softmax_attention import SpatialReductionAttention

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
TOLERANCES = {F32: 1e-5, F16: 1e-3, BF16: 6e-3}
EPS = 1e-6


def make_inputs(
    shape: tuple[int, ...],
    x_dtype: torch.dtype = F32,
    branch_dtype: torch.dtype | None = None,
    drops: bool = False,
    mean: float = 0.0,
) -> list[Tensor | None]:
    """x, branch, keep, weight and bias; the first sample's branch is dropped, if any is."""
    generator = torch.Generator().manual_seed(sum(shape))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x = (normal(*shape) + mean).to(x_dtype)
    branch = None if branch_dtype is None else normal(*shape).to(branch_dtype)
    keep = torch.tensor([0.0, *[1.25] * (shape[0] - 1)]) if drops else None
    return [x, branch, keep, 1 + 0.1 * normal(shape[-1]), normal(shape[-1])]


def by_kernels(x, branch, keep, weight, bias, dtype: torch.dtype):
    return _AddLayerNorm.apply(x, branch, keep, weight, bias, EPS, dtype)


def by_equation(x, branch, keep, weight, bias, dtype: torch.dtype):
    y = x
    if branch is not None:
        y = x + (branch if keep is None else branch * keep.view(-1, *[1] * (x.dim() - 1)))
    return y, nn.functional.layer_norm(y, x.shape[-1:], weight, bias, EPS)


def results(function, inputs: list[Tensor | None], dtype: torch.dtype) -> list[Tensor]:
    """y, its LayerNorm, and gradients of x, branch, weight and bias."""
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in inputs]
    outs = function(*leaves, dtype)
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(o.shape, generator=generator).to(dtype).to(o.dtype) for o in outs]
    x, branch, _, weight, bias = leaves
    wanted = [leaf for leaf in (x, branch, weight, bias) if leaf is not None]
    return [*(o.detach() for o in outs), *torch.autograd.grad(outs, wanted, grads)]


def check(inputs: list[Tensor | None], dtype: torch.dtype, tolerance: float | None = None) -> None:
    found = results(by_kernels, inputs, dtype)
    double = [None if x is None else x.double() for x in inputs]
    expected = results(by_equation, double, dtype)
    x, branch, *_ = inputs
    sums = x.dtype if branch is None else torch.promote_types(x.dtype, branch.dtype)
    assert [x.dtype for x in found[:2]] == [sums, dtype]
    errors = [relative_error(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(errors) <= (tolerance or max(TOLERANCES[x.dtype] for x in found)), errors


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(
    ("shape", "x_dtype", "branch_dtype", "dtype", "drops"),
    [
        ((1, 1, 16), F32, F32, F32, False),
        ((2, 7, 64), F32, BF16, BF16, False),
        ((3, 5, 24), F32, F16, F16, True),
        ((2, 3, 3, 96), BF16, BF16, BF16, False),
        ((1, 9, 72), F16, None, F32, False),
        ((1, 40, 128), F32, None, BF16, False),
    ],
)
def test_values_and_gradients(shape, x_dtype, branch_dtype, dtype, drops):
    check(make_inputs(shape, x_dtype, branch_dtype, drops), dtype)


@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(
    ("shape", "dtypes"),
    [
        ((1, 4097, 64), (F32, BF16, BF16)),
        ((3, 131, 96), (BF16, BF16, BF16)),
        ((3, 7, 320), (F32, BF16, BF16)),
        ((2, 33, 384), (F32, F32, F32)),
        ((2, 7, 768), (F32, F16, F16)),
        ((1, 5, 1000), (F32, BF16, BF16)),
        ((2, 5, 1024), (F32, BF16, BF16)),
    ],
)
def test_values_and_gradients_of_many_rows_and_channels(shape, dtypes):
    *inputs, dtype = dtypes
    check(make_inputs(shape, *inputs, drops=shape[0] > 1), dtype)


@pytest.mark.usefixtures("interpreter")
def test_a_large_mean_and_constant_rows():
    check(make_inputs((1, 9, 96), mean=1e3), F32, tolerance=1e-4)
    x, _, _, weight, bias = make_inputs((1, 9, 96))
    constant = torch.full_like(x, 1000.1)
    _, n = by_kernels(constant, None, None, weight, bias, F32)
    torch.testing.assert_close(n, bias.expand_as(n), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("interpreter")
def test_not_a_number_stays_in_its_row():
    inputs = make_inputs((1, 9, 32), F32, BF16)
    inputs[0][0, 4, 3] = torch.nan
    y, n, d_x, *_ = results(by_kernels, inputs, BF16)
    for tensor in (n, d_x):
        assert tensor[0, 4].isnan().all()
        assert tensor.isnan().sum() == 32
    assert y.isnan().sum() == 1


@pytest.mark.usefixtures("interpreter")
def test_a_dropped_branch_and_the_same_bits_twice():
    inputs = make_inputs((2, 9, 32), F32, BF16, drops=True)
    y, _, _, d_branch, *_ = first = results(by_kernels, inputs, BF16)
    assert y[0].equal(inputs[0][0])
    assert not d_branch[0].any()
    assert d_branch[1].any()
    assert all(a.equal(b) for a, b in zip(first, results(by_kernels, inputs, BF16), strict=True))


@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("branch_dtype", [None, BF16, F32])
def test_operators_are_what_they_say(branch_dtype):
    x, branch, keep, weight, bias = make_inputs((2, 3, 16), F32, branch_dtype, branch_dtype == F32)
    forward = torch.ops.flatten_det.add_layer_norm.default
    backward = torch.ops.flatten_det.add_layer_norm_backward.default
    arguments = (x, branch, keep, weight, bias, EPS, BF16)
    n, statistics, *sums = forward(*arguments)
    d_y = None if branch is None else torch.randn_like(x)
    y = sums[0] if sums else x
    for operator, given in (
        (forward, arguments),
        (backward, (torch.randn_like(n), d_y, y, statistics, keep, weight, F32, branch_dtype)),
    ):
        torch.library.opcheck(operator, given, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("cp_policy", [None, "block", "mlp", "elementwise"])
def test_a_block_is_the_same_with_the_kernel(monkeypatch, cp_policy):
    torch.manual_seed(0)
    attention = SpatialReductionAttention(16, 2, sr_ratio=2)
    block = TransformerBlock(16, attention, 2, drop_path=0.5, norm_eps=EPS, cp_policy=cp_policy)
    tokens = torch.randn(3, 12, 16)

    def found() -> list[Tensor]:
        torch.manual_seed(
            2
        )  # drops the first and the last sample's attention, the second one's MLP
        x = tokens.clone().requires_grad_()
        out = block(x, (3, 4))
        out.square().sum().backward()
        gradients = [p.grad.clone() for p in block.parameters()]
        block.zero_grad()
        return [out.detach(), x.grad, *gradients]

    plain = found()
    launches = record_launches(monkeypatch)
    monkeypatch.setattr(layer_norm, "_device_serves", lambda device: True)
    torch.testing.assert_close(found(), plain, rtol=1e-4, atol=1e-5)
    names = [launch.name for launch in launches]
    assert names.count("add_layer_norm_backward") == 3
    assert names.count("add_layer_norm") == {None: 3, "mlp": 4}.get(cp_policy, 6)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("grad", [False, True])
def test_a_block_under_autocast(monkeypatch, grad):
    torch.manual_seed(0)
    block = TransformerBlock(
        16, SpatialReductionAttention(16, 2, sr_ratio=1), 2, 0.0, norm_eps=EPS, cp_policy=None
    )
    x = torch.randn(2, 12, 16)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
        plain = block(x, (3, 4))
        monkeypatch.setattr(layer_norm, "_device_serves", lambda device: True)
        seen = []
        block.mlp.register_forward_pre_hook(lambda mlp, inputs: seen.append(inputs[0].dtype))
        out = block(x, (3, 4))
    assert (out.dtype, seen) == (plain.dtype, [BF16])
    torch.testing.assert_close(out, plain, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("family", [*NANO, "FLattenDeiT"])
def test_every_norm_of_a_backbone_is_the_kernel(monkeypatch, family):
    torch.manual_seed(0)
    arch = dict(embed_dims=(32,), num_heads=(2,), depths=(2,))
    config = dict(type=family, arch=NANO.get(family, arch))
    if "PVT" in family:
        config |= dict(attn_types="SLSL", la_sr_ratios=(1, 2, 1, 1))
    model = MODELS.build(config).eval()
    image = torch.randn(2, 3, 72, 64)
    plain = model(image)
    launches = record_launches(monkeypatch)
    monkeypatch.setattr(layer_norm, "_device_serves", lambda device: True)
    torch.testing.assert_close(model(image), plain, rtol=1e-3, atol=1e-4)
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert len(launches) == len(norms)


def compiled(shape, x_dtype, branch_dtype, dtype):
    """The two kernels for an H200."""
    x, branch, keep, weight, bias = make_inputs(shape, x_dtype, branch_dtype)
    with compiled_for(90) as launches:
        n, statistics, *sums = norm_kernels.forward(x, branch, keep, weight, bias, EPS, dtype)
        y = sums[0] if sums else x
        norm_kernels.backward(
            n, y if sums else None, y, statistics, keep, weight, x_dtype, branch_dtype
        )
    return launches


compiles = pytest.mark.skipif(tiles.interpreted(), reason="TRITON_INTERPRET=1: nothing compiles")


@pytest.mark.slow
@compiles
@pytest.mark.parametrize(
    ("dim", "dtypes"),
    [(dim, (F32, BF16, BF16)) for dim in (64, 96, 320, 512)] + [(64, (BF16, BF16, BF16))],
)
def test_machine_code(monkeypatch, tmp_path, dim, dtypes):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    forward, backward = (read_code(x, tmp_path) for x in compiled((1, 64, dim), *dtypes))
    width = norm_kernels._width(*dtypes)
    for code, elements in (
        (forward, norm_kernels._FORWARD_ELEMENTS),
        (backward, norm_kernels._BACKWARD_ELEMENTS),
    ):
        rows = norm_kernels._blocks(dim, elements, width)["ROWS"]
        per_element = code.instructions / (rows * dim / 128)
        assert code.spilled == 0
        assert per_element <= (18 if code is forward else 60), per_element
    # Four programs at a time on a multiprocessor, and nothing handed over between the threads of different
    # warps but the statistics and, at the end, the gradients of the parameters.
    assert backward.registers <= 128
    assert forward.barriers <= 3 + 4 * (dim // 128)


@pytest.mark.slow
@compiles
def test_other_sizes_compile_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    seen = {
        shape: [x.compiled.hash for x in compiled((*shape, 64), F32, BF16, BF16)]
        for shape in [(1, 1), (1, 16), (2, 31), (8, 1024)]
    }
    assert len({tuple(hashes) for hashes in seen.values()}) == 1
