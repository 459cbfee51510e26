"""The whole layer in tiles, at inference, equals the layer built of the reference."""

import pytest
import torch
from attention_cases import make_layer, relative_error, use_tiles_of
from torch import nn

from flatten_det.attention import ops


@pytest.fixture
def operators(monkeypatch):
    """Names of the operators that ran, of ours."""
    called = []
    for name in ("layer", "attention"):
        inner = getattr(ops, name)

        def record(*args, _name=name, _inner=inner):
            called.append(_name)
            return _inner(*args)

        monkeypatch.setattr(ops, name, record)
    return called


@pytest.fixture(params=[1, 60, 4096])
def tile_tokens(request, monkeypatch):
    use_tiles_of(request.param, monkeypatch)


def by_reference(layer, x, hw_shape, monkeypatch):
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setenv("FLATTEN_DET_ATTENTION", "reference")
        return layer(x, hw_shape)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fused_qkv": False},
        {"qkv_bias": False},
        {"num_heads": 1},
        {"lepe_kernel_size": 3},
        {"kernel_size": 0},
        {"kernel_size": 0, "lepe_kernel_size": 7},
    ],
)
@pytest.mark.parametrize("hw_shape", [(6, 5), (13, 11), (1, 40), (40, 1), (3, 4), (2, 300)])
def test_equals_the_reference(options, hw_shape, operators, monkeypatch, tile_tokens):
    layer = make_layer(**options)
    x = torch.randn(2, hw_shape[0] * hw_shape[1], 32)
    expected = by_reference(layer, x, hw_shape, monkeypatch)
    assert not operators
    with torch.no_grad():
        found = layer(x, hw_shape)
    assert operators == ["layer"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"num_heads": 1}, {"lepe_kernel_size": 3}, {"kernel_size": 0}]
)
@pytest.mark.parametrize("hw_shape", [(6, 5), (13, 11), (1, 40), (40, 1), (2, 300)])
@pytest.mark.parametrize("inplace", [False, True])
def test_with_norm_and_sum(options, hw_shape, inplace, monkeypatch, tile_tokens):
    layer, norm = make_layer(**options), nn.LayerNorm(32)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, hw_shape[0] * hw_shape[1], 32) * 3 + 5
    x[0, 0] = 2.0  # No variance at all.
    before = x.clone()
    with torch.no_grad():
        expected = x + by_reference(layer, norm(x), hw_shape, monkeypatch)
        assert layer.adds_in_tiles(x, norm)
        found = layer.add_in_tiles(x, hw_shape, norm, inplace)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    assert (found.data_ptr() == x.data_ptr()) == inplace
    assert inplace or torch.equal(x, before)


def test_what_does_not_go_with_norm_and_sum():
    layer, norm, x = make_layer(), nn.LayerNorm(32), torch.randn(1, 30, 32)
    assert not layer.adds_in_tiles(x, norm)  # Gradients.
    with torch.no_grad():
        assert layer.adds_in_tiles(x, norm)
        assert not layer.adds_in_tiles(x, nn.LayerNorm(32, bias=False))
        assert not layer.adds_in_tiles(x, nn.LayerNorm(32, elementwise_affine=False))
        assert not layer.adds_in_tiles(x, nn.BatchNorm1d(32))
        assert not layer.adds_in_tiles(x.double(), norm)
        norm.register_forward_hook(lambda *_: None)
        assert not layer.adds_in_tiles(x, norm)


@pytest.mark.parametrize("options", [{"window_size": 4}, {"sr_ratio": 2, "fused_qkv": False}])
def test_layers_of_another_kind(options, operators, monkeypatch):
    layer, x = make_layer(**options), torch.randn(2, 60, 32)
    expected = by_reference(layer, x, (6, 10), monkeypatch)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, (6, 10)), expected, rtol=1e-4, atol=1e-5)
    assert operators == ["attention"]


def test_gradients_take_the_core_operator(operators):
    layer = make_layer()
    layer(torch.randn(1, 30, 32), (6, 5)).sum().backward()
    assert operators == ["attention"]
    assert all(p.grad is not None for p in layer.parameters())


def test_a_hooked_or_replaced_projection_is_called(operators):
    layer, seen = make_layer(), []
    layer.qkv.register_forward_hook(lambda *_: seen.append("qkv"))
    with torch.no_grad():
        layer(torch.randn(1, 30, 32), (6, 5))
    assert seen == ["qkv"]

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer, x = make_layer(), torch.randn(1, 30, 32)
    with torch.no_grad():
        once = layer(x, (6, 5))
        doubled = Doubled(32, 32)
        doubled.load_state_dict(layer.proj.state_dict())
        layer.proj = doubled
        torch.testing.assert_close(layer(x, (6, 5)), 2 * once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    layer, x = make_layer(), torch.randn(2, 143, 32)
    with torch.no_grad():
        exact = layer(x, (13, 11))
        with torch.autocast("cpu", dtype=dtype):
            found = layer(x, (13, 11))
    assert found.dtype == dtype
    assert relative_error(found, exact) < (2e-2 if dtype == torch.bfloat16 else 3e-3)
