"""Finding the attention layers of a backbone, and what goes into them."""

import pytest
import torch
from mmengine.registry import MODELS
from nano_backbones import NANO, build_nano
from torch import nn

from flatten_det.errors import UserError
from flatten_det.lab.analysis.layers import attention_layers, capture, choose_layers
from flatten_det.lab.analysis.measure import Measures, measure_layer


@pytest.mark.parametrize("attn_types", ["LLLL", "SSSS"])
@pytest.mark.parametrize("family", NANO)
def test_matrices_of_whole_backbones(family, attn_types):
    backbone = build_nano(family, attn_types=attn_types).eval()
    layers = attention_layers(backbone)
    assert [layer.name for layer in layers[:3]] == ["1.1", "1.2", "2.1"]
    with torch.no_grad():
        image = torch.randn(1, 3, 72, 100)
        before = backbone(image)
        calls = capture(backbone, layers, image)
        for level, again in zip(before, backbone(image), strict=True):
            torch.testing.assert_close(level, again)
    assert [call.hw_shape for call in calls][:3] == [(18, 25), (18, 25), (9, 13)]
    for call in calls:
        result = measure_layer(call, Measures())
        assert result.error < 1e-5
        assert [measured.is_own for measured in result.variants].count(True) == 1
        for measured in result.variants:
            assert sorted(measured.heads) == list(range(call.layer.heads))
            # The mask of shifted windows cuts them into up to four parts, each with a rank of its own.
            parts = 4 if getattr(call.layer.module, "shift_size", 0) else 1
            is_linear = measured.variant.power is not None and not measured.variant.convolution
            for found in measured.spectra:
                assert not (is_linear and found.spectrum.rank > parts * result.bound)


@pytest.mark.parametrize(
    "side", [14, *(pytest.param(side, marks=pytest.mark.slow) for side in (28, 56))]
)
def test_convolution_restores_the_rank(side):
    # As it is initialised: the rank depends on the scale of the weights.
    torch.manual_seed(0)
    backbone = MODELS.build(dict(type="FLattenSwin", arch=NANO["FLattenSwin"])).eval()
    image = torch.randn(1, 3, 4 * side, 4 * side)
    (call,) = capture(backbone, attention_layers(backbone)[:1], image)
    variants = {m.variant.name: m for m in measure_layer(call, Measures()).variants}
    for name in ("plain linear", "focused linear"):
        assert variants[name].spectra[0].spectrum.rank <= 16
    own = variants["focused + conv."]
    assert own.is_own
    (found,) = own.record()["spectra"]
    assert found["rank"] + found["short_of_full_rank"] == side**2
    # The smallest of 3136 singular values lie just below the tolerance: those of the kernel itself.
    assert found["short_of_full_rank"] <= (0.005 * side**2 if side == 56 else 0)


def test_what_is_too_large_is_sampled(monkeypatch):
    backbone = build_nano("FLattenPVT").eval()
    (call,) = capture(backbone, attention_layers(backbone)[:1], torch.randn(1, 3, 64, 64))
    whole = measure_layer(call, Measures())
    monkeypatch.setattr("flatten_det.lab.analysis.measure.LARGEST_MATRIX", 100 * 256)
    sampled = measure_layer(call, Measures())
    assert (whole.sampled, sampled.sampled, sampled.error) == (False, True, None)
    for of_all, of_some in zip(whole.variants, sampled.variants, strict=True):
        assert of_some.mean.entropy == pytest.approx(of_all.mean.entropy, rel=0.02)
        assert of_some.mean.entropy != of_all.mean.entropy
        found = of_some.spectra[0].spectrum
        if of_some.variant.convolution:
            assert found.is_lower_bound
            assert (found.shape, found.rank) == ((100, 256), 100)
        if of_some.variant.name == "focused linear":
            # Its factors are small: nothing to sample.
            assert found == of_all.spectra[0].spectrum


def test_windows_and_heads_that_are_measured():
    backbone = build_nano("FLattenSwin", attn_types="SSSS").eval()
    layer = attention_layers(backbone)[2]
    (call,) = capture(backbone, [layer], torch.randn(1, 3, 128, 128))
    softmax = measure_layer(call, Measures(heads=(1, 7), windows=2)).variants[0]
    assert list(softmax.heads) == [1]
    assert [(s.head, s.window) for s in softmax.spectra] == [(1, 2), (1, 6)]


def test_choosing_layers():
    layers = attention_layers(build_nano("FLattenPVT").eval())
    names = [layer.name for layer in layers]
    assert names == ["1.1", "1.2", "2.1", "3.1", "4.1"]
    assert [layer.name for layer in choose_layers(layers, None)] == ["1.2", "2.1", "3.1", "4.1"]
    assert [layer.name for layer in choose_layers(layers, ["2", "1.1"])] == ["1.1", "2.1"]
    assert choose_layers(layers, ["all"]) == layers
    with pytest.raises(UserError, match=r"--layers 5: no such stage or block; there are 1\.1 1\.2"):
        choose_layers(layers, ["5"])


def test_what_cannot_be_analysed():
    with pytest.raises(UserError, match="Conv2d has no attention to analyse"):
        attention_layers(nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="one image at a time, got 2"):
        capture(nn.Identity(), [], torch.zeros(2, 3, 32, 32))
