"""The kernels against the reference in float64: values and every gradient."""

from dataclasses import replace

import pytest
import torch
from gpu_cases import check, make_case, run_kernels

from flatten_det.attention import gpu
from flatten_det.attention.gpu.plan import plan_for

pytestmark = pytest.mark.usefixtures("interpreter")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SLOW_DTYPES = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in DTYPES[:2]]


@pytest.mark.parametrize(
    ("hw_shape", "num_heads", "d", "kernel_size"),
    [
        ((1, 1), 2, 16, 5),
        ((1, 7), 4, 24, 3),
        pytest.param((7, 7), 1, 64, 5, marks=pytest.mark.slow),
        pytest.param((9, 7), 2, 32, 0, marks=pytest.mark.slow),
    ],
)
def test_small_maps(hw_shape, num_heads, d, kernel_size):
    check(make_case(hw_shape, num_heads, d, kernel_size))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hw_shape", "num_heads", "d", "kernel_size", "dtype"),
    [
        ((7, 9), 8, 16, 5, torch.float32),
        ((7, 9), 3, 32, 3, torch.bfloat16),
        ((7, 9), 5, 64, 5, torch.float32),
        ((7, 9), 5, 64, 5, torch.float16),
        ((25, 16), 2, 32, 7, torch.float32),
        ((19, 21), 1, 64, 5, torch.float32),
        ((19, 21), 1, 64, 5, torch.bfloat16),
        ((3, 101), 4, 24, 3, torch.float32),
        ((101, 3), 1, 40, 5, torch.float16),
        # Heads that begin anywhere in a piece of 16 bytes.
        ((11, 13), 4, 18, 1, torch.bfloat16),
        ((17, 241), 1, 16, 0, torch.float16),
        ((17, 241), 1, 16, 0, torch.float32),
    ],
)
def test_larger_maps(hw_shape, num_heads, d, kernel_size, dtype):
    check(make_case(hw_shape, num_heads, d, kernel_size, dtype, B=1))


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_half_precision(dtype):
    check(make_case((3, 5), 2, 16, 3, dtype))


@pytest.mark.parametrize("num_heads", [1, 4])
def test_without_positions_scale_and_bias(num_heads):
    check(make_case((2, 3), num_heads, 16, 3, extras=False))


@pytest.mark.parametrize(
    ("factor", "num_heads", "dtype"),
    [
        (1e-4, 2, torch.float32),
        (1e3, 2, torch.float32),
        *(
            pytest.param(factor, num_heads, dtype, marks=pytest.mark.slow)
            for factor, num_heads in ((1e-4, 4), (1e-2, 1), (1e2, 4), (1e3, 1))
            for dtype in DTYPES
        ),
    ],
)
def test_factors(factor, num_heads, dtype):
    check(make_case((3, 5), num_heads, 16, 3, dtype, factor=factor))


@pytest.mark.parametrize(
    ("factor", "scale"), [(1e-4, 100.0), (1e12, 0.0), (1.0, -12.0), (1.0, 25.0)]
)
def test_ends_of_softplus_and_sixth_powers_beyond_float32(factor, scale):
    case = make_case((3, 5), 1, 16, 3, factor=factor)
    case.tensors[4] += scale
    check(case)


@pytest.mark.parametrize("dtype", [*SLOW_DTYPES, torch.bfloat16])
def test_rows_without_a_positive_entry_and_zero_rows(dtype):
    case = make_case((3, 7), 2, 16, 3, dtype)
    q, k, v, positions, *_ = case.tensors
    q[0, :3] = -1
    q[1, 4] = 0
    k[0, 2:9] = -1
    k[1] = -50
    v[0, 5] = 0
    positions[0, 2:9] = 0
    check(case)


@pytest.mark.parametrize("dtype", [*SLOW_DTYPES, torch.bfloat16])
@pytest.mark.parametrize("hw_shape", [pytest.param((1, 1), marks=pytest.mark.slow), (3, 5)])
def test_constant_maps(dtype, hw_shape):
    """Attention over equal tokens is their value, but for the eps: gradients of q and k are tiny."""
    case = make_case(hw_shape, 2, 16, 3, dtype)
    for x in case.tensors[:4]:
        x[:] = x[:, :1].clone()
    check(case)


def test_negative_keys_everywhere_and_batches_of_positions():
    case = make_case((3, 5), 2, 16, 3)
    case.tensors[1][:] = -100
    check(case)
    case = make_case((3, 5), 2, 16, 3)
    case.tensors[3] = torch.randn(2, 15, 32, generator=torch.Generator().manual_seed(1))
    check(case)


@pytest.mark.parametrize(
    ("num_heads", "dtype", "columns"),
    [
        (1, torch.float32, None),
        pytest.param(4, torch.float32, 4, marks=pytest.mark.slow),
        pytest.param(1, torch.bfloat16, 2, marks=pytest.mark.slow),
        pytest.param(4, torch.float16, None, marks=pytest.mark.slow),
    ],
)
def test_padding(num_heads, dtype, columns):
    """Each map as alone, whatever the padding holds: NaN here."""
    hw_shape, valid = (4, 5), [(4, 3), (2, 5), (1, 1)]
    case = make_case(hw_shape, num_heads, 16, 3, dtype, B=3)
    case.tensors[3] = torch.randn(3, 20, 16 * num_heads, generator=torch.Generator().manual_seed(1))
    for x in (*case.tensors[:4], case.grad):
        for image, (height, width) in zip(x.unflatten(1, hw_shape), valid, strict=True):
            image[height:] = image[:, width:] = torch.nan
    plan = plan_for(16 * num_heads, num_heads, dtype, 20, 5)
    if columns:
        plan = replace(plan, fused_convolution=False, columns=columns, depthwise_columns=columns)
    check(case, plan, valid)


def test_padding_of_maps_with_the_same_positions():
    case = make_case((3, 5), 1, 16, 0)
    check(case, valid=[(2, 4), (3, 5)])


def test_views_that_16_byte_accesses_cannot_read():
    case = make_case((3, 5), 1, 16, 3)
    case.tensors[0] = torch.randn(2, 15, 17)[..., 1:]
    case.tensors[2] = torch.randn(2, 16, 15).transpose(1, 2)
    case = case._replace(grad=torch.ones(()).expand(2, 15, 16))
    check(case)


def test_nan_is_not_hidden():
    case = make_case((3, 5), 1, 16, 3)
    case.tensors[0][0, 4, 2] = torch.nan
    out = run_kernels(case).out
    assert out[0, 4].isnan().all()
    assert out[1].isfinite().all()


def test_only_what_is_needed():
    case = make_case((2, 3), 1, 16, 3)
    _, *saved = gpu.forward(case.inputs())
    for index in range(7):
        needs = tuple(i == index for i in range(7))
        grads = gpu.backward(case.grad, case.inputs(), *saved, needs)
        assert [g is not None for g in grads] == list(needs)
    nothing = gpu.backward(case.grad, case.inputs(), *saved, (False,) * 7)
    assert nothing == (None,) * 7
