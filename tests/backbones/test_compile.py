"""``compile=True`` in a config: the same outputs and gradients, over images of several sizes."""

import copy

import pytest
import torch
from attention_cases import use_tiles_of
from nano_backbones import build_nano
from torch._dynamo.testing import CompileCounterWithBackend

from flatten_det.backbones.blocks import TransformerBlock

SIZES = [(96, 128), (75, 101), (224, 64)]


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Other tests' compilations count neither here nor against the limit."""
    torch.compiler.reset()


def build(family: str, compile, attn_types: str | None = None) -> torch.nn.Module:
    return build_nano(family, attn_types, compile=compile).eval()


def outputs_and_gradients(model, image):
    outs = model(image)
    model.zero_grad()
    sum(o.square().mean() for o in outs).backward()
    return [*outs, *(p.grad for p in model.parameters() if p.grad is not None)]


def check(family: str, compile, rtol: float, atol: float, attn_types: str | None = None) -> None:
    plain, model = (build(family, kind, attn_types) for kind in (False, compile))
    for size in SIZES:
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(model(image), plain(image), rtol=rtol, atol=atol)
    image = torch.randn(1, 3, 80, 96)
    found, expected = (outputs_and_gradients(m, image) for m in (model, plain))
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


# Windows of symbolic sizes keep the compiler busy.
@pytest.mark.parametrize(
    ("family", "attn_types"),
    [
        ("FLattenPVT", None),
        ("FLattenPVTv2", None),
        ("FLattenDeiT", "L"),
        ("FLattenDeiT", "S"),
        pytest.param("FLattenSwin", None, marks=pytest.mark.slow),
        pytest.param("FLattenCSwin", None, marks=pytest.mark.slow),
    ],
)
def test_compiled_equals_plain(family, attn_types):
    compile = dict(dynamic=True, backend="eager", fullgraph=True)
    check(family, compile, rtol=1e-3, atol=1e-4, attn_types=attn_types)


@pytest.mark.slow
def test_compiled_with_padding():
    """As on CUDA, in one pass for all images."""
    options = dict(dynamic=True, backend="eager", fullgraph=True)
    plain, model = (build("FLattenPVT", compile) for compile in (False, options))
    for images, sizes in (
        (torch.randn(2, 3, 96, 128), [(96, 64), (75, 128)]),
        (torch.randn(3, 3, 64, 96), [(64, 96), (50, 50), (33, 96)]),
    ):
        with torch.no_grad():
            found, expected = (m.forward_images(images, sizes) for m in (model, plain))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compiled_by_inductor():
    check("FLattenPVT", True, rtol=1e-2, atol=1e-3)


def test_equal_blocks_and_other_sizes_compile_once():
    counter = CompileCounterWithBackend("eager")
    model = build("FLattenPVT", dict(dynamic=True, fullgraph=True, backend=counter))
    with torch.no_grad():
        for size in SIZES:
            model(torch.randn(2, 3, *size))
    assert counter.frame_count == 4


def test_large_maps_are_not_compiled_in_portions(monkeypatch):
    """What saves fresh memory without a compiler would be a graph of hundreds of parts."""
    use_tiles_of(1, monkeypatch)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    model = build("FLattenPVT", dict(dynamic=True, fullgraph=True, backend=backend))
    with torch.no_grad():
        model(torch.randn(1, 3, 128, 128))
    assert max(len(graph.graph.nodes) for graph in graphs) < 150


def test_state_and_copies_are_the_plain_module():
    model, plain = build("FLattenPVT", True), build("FLattenPVT", False)
    blocks = [m for m in model.modules() if isinstance(m, TransformerBlock)]
    assert len(blocks) == 5
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert copy.deepcopy(model).block1[0]._compiled_call_impl is None
