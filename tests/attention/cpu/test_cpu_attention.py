"""The tiled implementation against the reference in float64: values and all gradients."""

import pytest
import torch
from attention_cases import (
    MAPS,
    TOLERANCES,
    exact,
    make_inputs,
    reference,
    relative_error,
    use_tiles_of,
    with_gradients,
)

from flatten_det.attention import focused_linear_attention, tiles


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Unwritten memory is NaN."""
    empty = torch.empty

    def nan_empty(*args, **kwargs):
        return empty(*args, **kwargs).fill_(float("nan"))

    monkeypatch.setattr(torch, "empty", nan_empty)


ATTENDING = ("q", "k", "positions", "scale")


def check(inputs, hw_shape, num_heads, dtype=torch.float32, skipped=()):
    """Output and gradients within the tolerance; all but those of ``skipped``, which are returned."""
    B, N, C = inputs["q"].shape
    grad = torch.randn(B, N, C, generator=torch.Generator().manual_seed(1)).to(dtype)
    options = dict(num_heads=num_heads, hw_shape=hw_shape)
    out, gradients = with_gradients(
        focused_linear_attention, inputs, grad, **options, implementation="tiled"
    )
    expected, expected_gradients = exact(inputs, grad, **options)
    assert out.dtype == dtype
    assert relative_error(out, expected) <= TOLERANCES[dtype]
    for name, gradient in gradients.items():
        assert gradient.dtype == inputs[name].dtype
        assert gradient.isfinite().all()
        if name not in skipped:
            error = relative_error(gradient, expected_gradients[name])
            assert error <= TOLERANCES[dtype], name
    return {name: (gradients[name], expected_gradients[name]) for name in skipped}


@pytest.mark.parametrize("tokens", [n for n in MAPS if n > 1])
@pytest.mark.parametrize(("num_heads", "head_dim"), [(1, 64), (2, 32), (3, 32), (8, 16), (4, 24)])
def test_float32(tokens, num_heads, head_dim):
    hw_shape = MAPS[tokens]
    check(make_inputs(hw_shape, num_heads, head_dim), hw_shape, num_heads)


def test_one_token():
    """The attention of one token is its value whatever q and k are: their gradients are rounding.

    Only eps moves them, by some 1e-6 of what cancels.
    """
    found = check(make_inputs((1, 1), 2, 16), (1, 1), 2, skipped=ATTENDING)
    for gradient, expected in found.values():
        assert (gradient - expected).abs().max() < 1e-5


@pytest.mark.parametrize("factor", [1e-4, 1.0, 1e3])
def test_constant_map(factor):
    """Equal values have an average that q and k cannot change: what remains of equal terms is rounding."""
    inputs = make_inputs((9, 7), 2, 32, factor=factor, rows="constant")
    found = check(inputs, (9, 7), 2, skipped=ATTENDING)
    usual = make_inputs((9, 7), 2, 32, factor=factor)
    _, scales = exact(usual, torch.randn(2, 63, 64), num_heads=2, hw_shape=(9, 7))
    for name, (gradient, expected) in found.items():
        assert (gradient - expected).norm() < 1e-5 * scales[name].norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [49, 63, 3136])
def test_half_precision(dtype, tokens):
    hw_shape = MAPS[tokens]
    check(make_inputs(hw_shape, 2, 32, dtype=dtype), hw_shape, 2, dtype)


@pytest.mark.parametrize("factor", [1e-4, 1e-2, 1e2, 1e3])
@pytest.mark.parametrize("rows", ["random", "zero"])
def test_range(factor, rows):
    check(make_inputs((9, 7), 2, 32, factor=factor, rows=rows), (9, 7), 2)


@pytest.mark.parametrize("factor", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_rows_without_a_positive_entry(factor, dtype):
    inputs = make_inputs((9, 7), 2, 32, factor=factor, rows="negative", dtype=dtype)
    check(inputs, (9, 7), 2, dtype)


@pytest.mark.parametrize("kernel_size", [0, 3, 7])
@pytest.mark.parametrize("hw_shape", [(1, 40), (40, 1), (2, 2), (13, 31)])
def test_convolution(kernel_size, hw_shape):
    check(make_inputs(hw_shape, 2, 16, kernel_size=kernel_size), hw_shape, 2)


@pytest.mark.parametrize("tile_tokens", [1, 20, 100])
def test_tiles_of_any_size(tile_tokens, monkeypatch):
    """Borders of tiles show in nothing, also where a tile is lower than the convolution reaches."""
    use_tiles_of(tile_tokens, monkeypatch)
    check(make_inputs((13, 11), 2, 16, batch=3), (13, 11), 2)


def test_several_small_maps_make_one_tile():
    first = next(iter(tiles.tiles(100, (7, 7), 64)))
    assert first.batch.stop > 50
    covered = torch.zeros(100, 49)
    for tile in tiles.tiles(100, (7, 7), 64):
        covered[tile.batch, tile.tokens] += 1
    assert (covered == 1).all()
    check(make_inputs((7, 7), 2, 32, batch=100), (7, 7), 2)


@pytest.mark.parametrize(
    "missing", [("positions",), ("scale",), ("positions", "scale"), ("dwc_bias",)]
)
def test_optional_inputs(missing):
    inputs = make_inputs((9, 7), 2, 16) | dict.fromkeys(missing)
    check(inputs, (9, 7), 2)


def test_positions_of_each_map():
    inputs = make_inputs((9, 7), 2, 16, batch=3)
    inputs["positions"] = inputs["positions"] + torch.randn(3, 63, 32)
    check(inputs, (9, 7), 2)


def test_fewer_keys_than_queries():
    inputs = make_inputs((8, 6), 2, 16)
    for name in ("k", "v", "positions"):
        inputs[name] = inputs[name][:, :12]
    check(inputs, (8, 6), 2)


def test_twice_the_same():
    inputs, grad = make_inputs((56, 56), 2, 32), torch.randn(2, 3136, 64)
    options = dict(num_heads=2, hw_shape=(56, 56), implementation="tiled")
    first, second = (
        with_gradients(focused_linear_attention, inputs, grad, **options) for _ in range(2)
    )
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


def test_what_needs_no_gradient_gets_none():
    inputs = make_inputs((9, 7), 2, 16)
    q = inputs["q"].detach().requires_grad_()
    out = focused_linear_attention(
        **(inputs | {"q": q}), num_heads=2, hw_shape=(9, 7), implementation="tiled"
    )
    out.sum().backward()
    assert q.grad.isfinite().all()
    assert all(x.grad is None for name, x in inputs.items() if name != "q")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_reach_the_products(dtype):
    inputs = make_inputs((9, 7), 2, 16, factor=1e3)
    options = dict(num_heads=2, hw_shape=(9, 7))
    with torch.autocast("cpu", dtype=dtype):
        out = focused_linear_attention(**inputs, **options, implementation="tiled")
    assert relative_error(out, reference(**inputs, **options)) < 1e-5
