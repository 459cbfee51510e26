"""The map of one query: the right tokens at the right places."""

import numpy as np
import pytest
import torch
from nano_backbones import build_nano

from flatten_det.lab.analysis.layers import attention_layers, capture
from flatten_det.lab.analysis.matrices import query_token, weight_maps


def first_call(family, **options):
    backbone = build_nano(family, **options)
    layers = attention_layers(backbone)[1:2]
    (call,) = capture(backbone, layers, torch.randn(1, 3, 64, 72))
    return call


def test_query_token():
    assert query_token((0, 0), (4, 5)) == 0
    assert query_token((1, 1), (4, 5)) == 19
    assert query_token((0.5, 0.3), (4, 5)) == 5 + 2


def test_convolution_is_around_the_query():
    call = first_call("FLattenPVT")
    maps = {m.variant.name: m for m in weight_maps(call, 0, query_token((0.5, 0.5), call.hw_shape))}
    assert list(maps) == ["softmax", "plain linear", "focused linear", "focused + conv."]
    for name in ("softmax", "focused linear"):
        assert maps[name].weights.shape == (16, 18)
        assert maps[name].weights.sum() == pytest.approx(1, abs=1e-2)
    added = maps["focused + conv."].weights - maps["focused linear"].weights
    rows, columns = np.nonzero(np.abs(added) > 1e-12)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 10, 7, 11)
    assert maps["softmax"].channel is None
    assert maps["focused + conv."].channel is not None


def test_windows_leave_the_rest_empty_and_reduced_keys_have_their_own_map():
    call = first_call("FLattenSwin", attn_types="SSSS")
    softmax = weight_maps(call, 0, query_token((0, 0), call.hw_shape))[0].weights
    assert softmax.shape == (16, 18)
    seen = ~np.isnan(softmax)
    assert 0 < seen.sum() <= 49
    assert np.nansum(softmax) == pytest.approx(1)
    reduced = first_call("FLattenPVT", attn_types="SSSS")
    assert weight_maps(reduced, 0, 5)[0].weights.shape == (2, 3)


def test_heads_that_are_not_there():
    with pytest.raises(ValueError, match=r"layer 1\.2 has no head 3"):
        weight_maps(first_call("FLattenPVT"), 3, 0)
