"""At inference the backbones compute in place; nobody can tell."""

import pytest
import torch
from attention_cases import use_tiles_of
from nano_backbones import KINDS, NANO, build_nano
from torch import nn


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    use_tiles_of(60, monkeypatch)


@pytest.mark.parametrize(("family", "attn_types"), KINDS)
def test_same_outputs(family, attn_types):
    model = build_nano(family, attn_types).eval()
    for size in ((96, 128), (75, 101), (32, 300)):
        image = torch.randn(2, 3, *size)
        before, expected = image.clone(), model(image)
        with torch.no_grad():
            found = model(image)
        with torch.inference_mode():
            model(image)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        assert all(out.is_contiguous() for out in found)
        assert torch.equal(image, before)


@pytest.mark.parametrize("listens_to", [None, nn.LayerNorm, nn.Linear, nn.Conv2d, nn.ModuleList])
@pytest.mark.parametrize("family", NANO)
def test_hooks_see_what_is_not_overwritten(family, listens_to):
    """``None``: to all modules of the process, as counters do; ``ModuleList``: to the blocks."""
    model, seen = build_nano(family).eval(), []

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
    block = build_nano("FLattenPVT").eval().block1[0]
    x = torch.randn(1, 300, 16)
    with torch.no_grad():
        kept = x.clone()
        out = block(x, (15, 20))
        assert torch.equal(x, kept)
        overwritten = block(x, (15, 20), inplace=True)
    assert overwritten.data_ptr() == x.data_ptr()
    torch.testing.assert_close(overwritten, out)
