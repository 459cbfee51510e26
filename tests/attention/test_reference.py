"""The reference against the definition: explicit N x N attention, loop by loop, in float64."""

import pytest
import torch
import torch.nn.functional as F
from attention_cases import make_inputs, reference, relative_error

from flatten_det.attention.reference import depthwise_values


def explicit_attention(q, k, v, num_heads, positions, scale, p, eps):
    """Rows of the attention matrix one by one, as Eq. 3 and Eq. 5 write them."""

    def phi(x):
        x = (x.clamp_min(0) + eps) / torch.log1p(torch.exp(scale))
        return x.norm(dim=-1, keepdim=True) * x**p / (x**p).norm(dim=-1, keepdim=True)

    q, k = phi(q), phi(k + positions)
    out = torch.zeros_like(q)
    d = q.shape[-1] // num_heads
    for b in range(q.shape[0]):
        for h in range(num_heads):
            channels = slice(h * d, (h + 1) * d)
            for i in range(q.shape[1]):
                weights = k[b, :, channels] @ q[b, i, channels]
                weights = weights / (weights.sum() + eps * k.shape[1])
                out[b, i, channels] = weights @ v[b, :, channels]
    return out


def explicit_depthwise(v, weight, bias, num_heads, hw_shape):
    """The convolution pixel by pixel."""
    B, _, C = v.shape
    H, W = hw_shape
    K = weight.shape[-1]
    image = F.pad(v.view(B, H, W, C), (0, 0, K // 2, K // 2, K // 2, K // 2))
    kernel = weight[:, 0].repeat(num_heads, 1, 1).permute(1, 2, 0)  # [K, K, C]
    out = torch.zeros(B, H, W, C, dtype=v.dtype)
    for y in range(H):
        for x in range(W):
            out[:, y, x] = (image[:, y : y + K, x : x + K] * kernel).sum((1, 2))
    return out.view(B, H * W, C) + bias.repeat(num_heads)


@pytest.mark.parametrize(
    ("hw_shape", "num_heads", "d", "p", "K"),
    [((3, 5), 1, 8, 3, 5), ((1, 1), 2, 4, 3, 5), ((7, 4), 3, 4, 2, 3), ((2, 9), 2, 16, 4, 7)],
)
def test_values_and_gradients_equal_the_explicit_matrix(hw_shape, num_heads, d, p, K):
    inputs = make_inputs(hw_shape, num_heads, d, kernel_size=K)
    inputs = {name: x.double().requires_grad_() for name, x in inputs.items()}
    out = reference(**inputs, num_heads=num_heads, hw_shape=hw_shape, focusing_factor=p)
    q, k, v, positions, scale, weight, bias = inputs.values()
    expected = explicit_attention(q, k, v, num_heads, positions, scale, p, eps=1e-6)
    expected = expected + explicit_depthwise(v, weight, bias, num_heads, hw_shape)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)

    grad = torch.randn_like(out)
    ours = torch.autograd.grad(out, list(inputs.values()), grad)
    theirs = torch.autograd.grad(expected, list(inputs.values()), grad)
    for name, a, b in zip(inputs, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("factor", [1e-4, 1e-2, 1.0, 1e2, 1e3])
def test_finite_and_close_in_every_precision(dtype, factor):
    """The original is NaN in float16 from x10 on, and for rows without a positive entry."""
    inputs, options = make_inputs((6, 5), 2, 8, dtype=dtype), dict(num_heads=2, hw_shape=(6, 5))
    for name in "qkv":
        inputs[name] = inputs[name] * factor
    inputs["q"][0, 3] = -factor
    inputs["k"][1] = -factor
    inputs["v"][1, 0] = 0
    exact = reference(**{name: x.double() for name, x in inputs.items()}, **options)
    out = reference(**inputs, **options)
    assert out.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert relative_error(out, exact) < tolerance


def test_autocast_does_not_reach_the_cubes():
    inputs = make_inputs((4, 4), 2, 8)
    inputs["q"] *= 1e3
    kwargs = dict(num_heads=2, hw_shape=(4, 4))
    with torch.autocast("cpu", dtype=torch.float16):
        out = reference(**inputs, **kwargs)
    torch.testing.assert_close(out, reference(**inputs, **kwargs))


def test_fewer_values_than_queries_are_resized_along_the_token_axis():
    v = torch.arange(4.0).view(1, 4, 1)
    identity = torch.ones(1, 1, 1, 1)
    out = depthwise_values(v, identity, None, num_heads=1, hw_shape=(2, 4))
    expected = F.interpolate(v.view(1, 1, 4), size=8, mode="linear").view(1, 8, 1)
    torch.testing.assert_close(out, expected)
