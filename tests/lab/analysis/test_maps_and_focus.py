"""The map of one query, and the figure of vectors that the focused map pulls to their axes."""

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from nano_backbones import build_nano

from flatten_det.lab.analysis.figures import draw_focus, fan
from flatten_det.lab.analysis.layers import attention_layers, capture
from flatten_det.lab.analysis.matrices import LayerWeights, query_token


def first_call(family, **options):
    backbone = build_nano(family, **options).eval()
    layers = attention_layers(backbone)[1:2]
    (call,) = capture(backbone, layers, torch.randn(1, 3, 64, 72))
    return call


def test_query_token():
    assert query_token((0, 0), (4, 5)) == 0
    assert query_token((1, 1), (4, 5)) == 19
    assert query_token((0.5, 0.3), (4, 5)) == 5 + 2


def test_convolution_is_around_the_query():
    call = first_call("FLattenPVT")
    found = LayerWeights(call).maps(0, query_token((0.5, 0.5), call.hw_shape))
    maps = {m.variant.name: m for m in found}
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
    softmax = LayerWeights(call).maps(0, query_token((0, 0), call.hw_shape))[0].weights
    assert softmax.shape == (16, 18)
    seen = ~np.isnan(softmax)
    assert 0 < seen.sum() <= 49
    assert np.nansum(softmax) == pytest.approx(1)
    reduced = first_call("FLattenPVT", attn_types="SSSS")
    assert LayerWeights(reduced).maps(0, 5)[0].weights.shape == (2, 3)


def test_heads_that_are_not_there():
    with pytest.raises(ValueError, match=r"layer 1\.2 has no head 3"):
        LayerWeights(first_call("FLattenPVT")).maps(3, 0)


def test_the_fan_has_unit_vectors_off_the_axes_and_the_diagonal():
    vectors = fan(12)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(12, dtype=torch.float64))
    assert (vectors > 0).all()
    assert ((vectors[:, 0] - vectors[:, 1]).abs() > 0.05).all()


def test_draws_one_panel_for_each_power(tmp_path):
    draw_focus(tmp_path / "two.png", powers=(1, 3))
    draw_focus(tmp_path / "four.png")
    two, four = imread(tmp_path / "two.png"), imread(tmp_path / "four.png")
    assert four.shape[1] > 1.5 * two.shape[1]
    assert four[..., :3].min() < 0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [({"powers": ()}, "powers"), ({"count": 3}, "even"), ({"count": 0}, "even")],
)
def test_names_a_wrong_option(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        draw_focus(tmp_path / "none.png", **options)
