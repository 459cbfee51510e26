"""Outside implementations of the attention, most of them wrong."""

import sys

import pytest

PEERS = """
from functools import partial
import torch
from flatten_det.attention import focused_linear_attention

right = partial(focused_linear_attention, implementation="reference")

def wrong(*args, positions, **options):
    return right(*args, positions=1.01 * positions, **options)

def scaled(*args, **options):
    return 1.1 * right(*args, **options)

def forgetful(*args, dwc_bias, **options):
    return right(*args, dwc_bias=None, **options)

def undefined(*args, **options):
    return right(*args, **options) * float("nan")

def short(*args, **options):
    return right(*args, **options)[:, :1]

def greedy(*args, **options):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 99 GiB")
"""


@pytest.fixture
def peers(tmp_path, monkeypatch):
    """``some_peers``, a module in the working directory."""
    (tmp_path / "some_peers.py").write_text(PEERS)
    (tmp_path / "broken_peers.py").write_text("import some_package_that_nobody_has")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("some_peers", None)
