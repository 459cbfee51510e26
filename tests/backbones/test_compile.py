"""``compile=True`` in a config: the same outputs and gradients, over images of several sizes."""

import copy

import pytest
import torch
from mmengine.registry import MODELS
from nano_backbones import NANO
from torch._dynamo.testing import CompileCounterWithBackend

from flatten_det.attention import tiles
from flatten_det.backbones.blocks import TransformerBlock

SIZES = [(96, 128), (75, 101), (224, 64)]


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Other tests' compilations count neither here nor against the limit."""
    torch.compiler.reset()


def build(family: str, compile, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    config = dict(type=family, arch=NANO[family], compile=compile, **options)
    return MODELS.build(config).eval()


def outputs_and_gradients(model, image):
    outs = model(image)
    model.zero_grad()
    sum(o.square().mean() for o in outs).backward()
    return [*outs, *(p.grad for p in model.parameters() if p.grad is not None)]


def check(family: str, compile, rtol: float, atol: float) -> None:
    plain, model = build(family, False), build(family, compile)
    for size in SIZES:
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(model(image), plain(image), rtol=rtol, atol=atol)
    image = torch.randn(1, 3, 80, 96)
    pairs = zip(*(outputs_and_gradients(m, image) for m in (model, plain)), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


# Windows of symbolic sizes keep the compiler busy.
@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[] if "PVT" in f else [pytest.mark.slow]) for f in NANO]
)
def test_compiled_equals_plain(family):
    check(family, dict(dynamic=True, backend="eager", fullgraph=True), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_compiled_with_padding():
    """As on CUDA, in one pass for all images."""
    plain, model = (
        build("FLattenPVT", False),
        build("FLattenPVT", dict(dynamic=True, backend="eager", fullgraph=True)),
    )
    for images, sizes in (
        (torch.randn(2, 3, 96, 128), [(96, 64), (75, 128)]),
        (torch.randn(3, 3, 64, 96), [(64, 96), (50, 50), (33, 96)]),
    ):
        with torch.no_grad():
            pairs = zip(*(m.forward_images(images, sizes) for m in (model, plain)), strict=True)
        for found, expected in pairs:
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
    monkeypatch.setattr(tiles, "TILE_TOKENS", 1)
    monkeypatch.setattr(tiles, "_LEAST_TOKENS", 1)
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
