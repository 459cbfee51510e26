"""What is kept for a size is right as long as it is kept, and is not kept too long."""

import copy
import pickle
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from flatten_det.attention import FocusedLinearAttention, grid, resize_grid, size_cache
from flatten_det.attention.grid import ResizedGrids
from flatten_det.attention.size_cache import SizeCache, keeping_nothing


@pytest.fixture
def resized(monkeypatch):
    """Sizes to which a grid was resized, in order."""
    sizes = []

    def counting(positions, from_hw, to_hw):
        sizes.append(to_hw)
        return resize_grid(positions, from_hw, to_hw)

    monkeypatch.setattr(grid, "resize_grid", counting)
    return sizes


def test_the_last_sizes_are_kept():
    cache = SizeCache()
    made = []

    def tensor_of(key):
        return cache(key, lambda: made.append(key) or torch.full((1,), float(key)))

    for key in (1, 2, 3, 4, 1, 5, 1, 2):
        assert tensor_of(key) == key
    assert made == [1, 2, 3, 4, 5, 2]
    assert len(cache) == 4


def test_large_tensors_are_not_kept(monkeypatch):
    monkeypatch.setattr(size_cache, "_ELEMENTS", 3)
    cache = SizeCache()
    assert cache("key", lambda: torch.ones(4)).sum() == 4
    assert len(cache) == 0


def test_copies_begin_empty():
    cache = SizeCache()
    cache("key", lambda: torch.ones(1))
    assert len(copy.deepcopy(cache)) == len(pickle.loads(pickle.dumps(cache))) == 0


@pytest.fixture(params=["to be captured", "captured"])
def capture(request, monkeypatch):
    """What a CUDA graph is made of: by us, or by somebody who captures."""
    if request.param == "to be captured":
        return keeping_nothing

    @contextmanager
    def capturing():
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_initialized", lambda: True)
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            yield

    return capturing


def test_a_graph_has_tensors_of_its_own(capture):
    """Replays would read what was dropped and given to others, and others what only replays write."""
    cache, made = SizeCache(), iter(range(9))

    def tensor_of(key):
        return int(cache(key, lambda: torch.tensor(next(made))))

    assert tensor_of("a") == 0
    with capture():
        assert tensor_of("a") == 1
        assert tensor_of("b") == 2
    assert tensor_of("a") == 0
    assert tensor_of("b") == 3


def test_inference_tensors_are_not_kept():
    cache = SizeCache()
    with torch.inference_mode():
        cache("key", lambda: torch.ones(1))
    kept = cache("key", lambda: None)
    (kept * torch.ones(1, requires_grad=True)).backward()


@torch.no_grad()
def test_a_grid_follows_its_weights(resized):
    positions, grids = nn.Parameter(torch.randn(1, 6, 4)), ResizedGrids()

    def check(count):
        found = grids(positions, (2, 3), (5, 7))
        assert torch.equal(found, resize_grid(positions, (2, 3), (5, 7)))
        assert len(resized) == count

    check(1)
    check(1)
    positions.add_(1)
    check(2)
    positions.data = positions.data * 2
    check(3)
    with torch.enable_grad():
        grids(positions, (2, 3), (5, 7)).sum().backward()
    assert positions.grad is not None
    grids.clear()
    check(5)


def test_training_forgets_the_grid(resized, monkeypatch):
    monkeypatch.setenv("FLATTEN_DET_ATTENTION", "reference")
    layer = FocusedLinearAttention(16, 1, (2, 3)).eval()
    x = torch.randn(1, 35, 16)
    with torch.no_grad():
        for _ in range(2):
            layer(x, (5, 7))
        layer.positional_encoding.data.add_(1)
        layer.train().eval()
        found = layer(x, (5, 7))
    assert len(resized) == 2
    torch.testing.assert_close(found, layer(x, (5, 7)))
