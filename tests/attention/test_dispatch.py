"""Which implementation is chosen, and how it is forced."""

import logging

import pytest
import torch
from attention_cases import make_inputs, relative_error

from flatten_det.attention import FocusedLinearAttention, dispatch, focused_linear_attention
from flatten_det.lab.complexity import count_macs

OPTIONS = dict(num_heads=2, hw_shape=(9, 7))


@pytest.fixture
def inputs():
    return make_inputs((9, 7), 2, 16)


@pytest.fixture(autouse=True)
def nothing_said_yet():
    for function in (dispatch._choose, dispatch._log):
        function.cache_clear()


def chosen(inputs, focusing_factor=3, implementation=None) -> str:
    q = inputs["q"]
    kind = dispatch.Kind(q.device, (q.dtype,) * 3, 32, 2, focusing_factor)
    return dispatch.choose(kind, implementation=implementation)


def test_choice_on_the_cpu(inputs):
    assert chosen(inputs) == "tiled"
    assert chosen(inputs, focusing_factor=4) == "reference"
    assert chosen({name: inputs[name].double() for name in "qkv"}) == "reference"
    assert chosen({name: inputs[name].to("meta") for name in "qkv"}) == "tiled"


def test_forcing(inputs, monkeypatch):
    assert chosen(inputs, implementation="reference") == "reference"
    monkeypatch.setenv("FLATTEN_DET_ATTENTION", "reference")
    assert chosen(inputs) == "reference"
    assert chosen(inputs, implementation="tiled") == "tiled"


def test_the_variable_is_for_the_device_of_what_it_names(inputs, monkeypatch):
    """A process that trains on a GPU may count or evaluate something on the CPU."""
    monkeypatch.setenv("FLATTEN_DET_ATTENTION", "triton")
    assert chosen(inputs) == "tiled"
    layer = FocusedLinearAttention(32, 2, grid_size=(2, 2)).to("meta")
    counted = count_macs(layer, lambda: layer(torch.ones(1, 4, 32, device="meta"), (2, 2)))
    assert counted.macs > 0


def test_other_powers_are_counted_without_values():
    layer = FocusedLinearAttention(32, 2, grid_size=(2, 2), focusing_factor=8).to("meta")
    with torch.no_grad():
        assert layer(torch.ones(1, 4, 32, device="meta"), (2, 2)).shape == (1, 4, 32)


def test_mistakes_are_named(inputs, monkeypatch):
    with pytest.raises(ValueError, match=r"implementation must be one of .*; got 'fast'"):
        chosen(inputs, implementation="fast")
    with pytest.raises(ValueError, match="'triton' cannot compute this: the inputs are on cpu"):
        chosen(inputs, implementation="triton")
    with pytest.raises(ValueError, match="'tiled' cannot compute this: focusing_factor is 2"):
        chosen(inputs, focusing_factor=2, implementation="tiled")
    monkeypatch.setenv("FLATTEN_DET_ATTENTION", "fast")
    with pytest.raises(ValueError, match="FLATTEN_DET_ATTENTION must be one of"):
        chosen(inputs)


def test_the_choice_is_logged_once(inputs, caplog):
    layer = FocusedLinearAttention(32, 2, grid_size=(2, 2))
    with caplog.at_level(logging.DEBUG, logger=dispatch.__name__), torch.no_grad():
        for _ in range(3):
            focused_linear_attention(**inputs, **OPTIONS)
        focused_linear_attention(**inputs, **OPTIONS, implementation="reference")
        layer(torch.ones(1, 4, 32), (2, 2))
    assert [record.getMessage() for record in caplog.records] == [
        f"focused linear attention on cpu, torch.float32, inference: {name}"
        for name in ("tiled", "reference", "tiled, the whole layer")
    ]


def test_traces_hold_plain_operations(inputs, monkeypatch):
    """Also where the variable names an implementation: mmengine counts operations by a trace."""
    monkeypatch.setenv("FLATTEN_DET_ATTENTION", "tiled")
    tensors = [inputs[name] for name in "qkv"]

    def function(q, k, v):
        return focused_linear_attention(q, k, v, **OPTIONS)

    traced = torch.jit.trace(function, tensors)
    assert "flatten_det::" not in str(traced.inlined_graph)
    assert relative_error(traced(*tensors), function(*tensors)) < 1e-5
