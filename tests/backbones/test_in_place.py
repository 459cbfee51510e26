"""At inference the backbones compute in place; nobody can tell."""

import pytest
import torch
from mmengine.registry import MODELS
from nano_backbones import NANO
from torch import nn

from flatten_det.attention import tiles
from flatten_det.backbones.blocks import as_contiguous_image


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    monkeypatch.setattr(tiles, "TILE_TOKENS", 60)
    monkeypatch.setattr(tiles, "_LEAST_TOKENS", 1)


def build(family: str, **options) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS.build(dict(type=family, arch=NANO[family], **options)).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            nn.init.uniform_(parameter, 0.5, 2)
        elif parameter.dim() < 2 or "pos" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("attn_types", [("L",) * 4, ("L", "L", "S", "S"), ("S",) * 4])
@pytest.mark.parametrize("family", NANO)
def test_same_outputs(family, attn_types):
    model = build(family, attn_types=attn_types)
    for size in ((96, 128), (75, 101), (32, 300)):
        image = torch.randn(2, 3, *size)
        before, expected = image.clone(), model(image)
        with torch.no_grad():
            found = model(image)
        with torch.inference_mode():
            model(image)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
            assert a.is_contiguous()
        assert torch.equal(image, before)


@pytest.mark.parametrize("listens_to", [None, nn.LayerNorm, nn.Linear, nn.Conv2d, nn.ModuleList])
@pytest.mark.parametrize("family", NANO)
def test_hooks_see_what_is_not_overwritten(family, listens_to):
    """``None``: to all modules of the process, as counters do; ``ModuleList``: to the blocks."""
    model, seen = build(family), []

    def keep(module, inputs, output):
        if isinstance(output, torch.Tensor):
            seen.extend((x, x.clone()) for x in (inputs[0], output))

    if listens_to is None:
        handles = [nn.modules.module.register_module_forward_hook(keep)]
    elif listens_to is nn.ModuleList:
        lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
        handles = [part.register_forward_hook(keep) for parts in lists for part in parts]
    else:
        own = [m for m in model.modules() if isinstance(m, listens_to)]
        handles = [m.register_forward_hook(keep) for m in own]
    with torch.no_grad():
        model(torch.randn(1, 3, 75, 101))
    for handle in handles:
        handle.remove()
    assert seen
    assert all(torch.equal(x, before) for x, before in seen)


def test_a_block_overwrites_only_what_it_may():
    block = build("FLattenPVT").block1[0]
    x = torch.randn(1, 300, 16)
    with torch.no_grad():
        kept = x.clone()
        out = block(x, (15, 20))
        assert torch.equal(x, kept)
        overwritten = block(x, (15, 20), inplace=True)
    assert overwritten.data_ptr() == x.data_ptr()
    torch.testing.assert_close(overwritten, out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_contiguous_images(dtype):
    tokens = torch.randn(2, 7 * 13, 16).to(dtype)
    expected = tokens.view(2, 7, 13, 16).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        found = as_contiguous_image(tokens, (7, 13))
    assert found.is_contiguous()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", NANO)
def test_autocast_and_half(family, dtype):
    """The result of norms stays float32 under autocast, and a half model half."""
    model, image = build(family), torch.randn(1, 3, 75, 101)
    with torch.no_grad():
        exact = model(image)
        with torch.autocast("cpu", dtype=dtype):
            under_autocast = model(image)
        if dtype == torch.bfloat16:
            half = model.to(dtype)(image.to(dtype))
            assert all(x.dtype == dtype for x in half)
    for a, b in zip(under_autocast, exact, strict=True):
        assert (a.float() - b).norm() / b.norm() < (0.05 if dtype == torch.bfloat16 else 0.01)
