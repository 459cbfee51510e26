"""What is kept for a size is right as long as it is kept, and is not kept too long."""

import copy
import pickle
from contextlib import contextmanager

import pytest
import torch

from flatten_det.attention import eager
from flatten_det.attention.eager import SizeCache, keeping_nothing


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
    monkeypatch.setattr(eager, "_ELEMENTS", 3)
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
