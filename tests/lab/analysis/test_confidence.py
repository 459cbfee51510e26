"""Confidence intervals over images and the order of entropies."""

from math import inf, sqrt

import pytest

from flatten_det.lab.analysis.matrices import Variant
from flatten_det.lab.analysis.measure import (
    LayerResult,
    Measured,
    Sharpness,
    estimate,
    order_lines,
    summarise,
)

VARIANTS = {"softmax": None, "plain linear": 1, "focused linear": 3}


def result(**entropies) -> LayerResult:
    variants = []
    for name, power in VARIANTS.items():
        sharpness = Sharpness(1, entropies[name.split()[0]], 0.5, 2, 0.5)
        variants.append(Measured(Variant(name, power), False, {0: sharpness}, sharpness, ()))
    return LayerResult("1.1", "block1.0.attn", "X", (4, 4), 1, 16, 16, 8, False, 0, tuple(variants))


def test_estimate():
    found = estimate([1.0, 2.0, 4.0, 5.0])
    assert found.mean == 3
    assert found.half_width == pytest.approx(3.182 * sqrt(10 / 3) / 2, rel=1e-3)  # t of 3 degrees
    assert (found.sign, estimate([-1.0, -1.1, -0.9]).sign, estimate([-1.0, 1.1]).sign) == (1, -1, 0)
    assert estimate([2.0]).half_width == inf
    assert estimate([2.0]).sign == 0


def test_order_is_judged_image_by_image():
    # The images differ far more than the variants of one image do.
    results = [
        result(softmax=base, focused=base + 0.1 + noise, plain=base + 0.1 - noise / 2)
        for base, noise in ((0.1, 0.01), (0.5, 0.02), (0.8, 0.015))
    ]
    (summary,) = summarise(results)
    assert [step.verdict for step in summary.entropy_order] == ["holds", "is reversed"]
    first, second = order_lines([summary])
    assert first.startswith("layer 1.1: entropy of softmax < focused linear holds (+0.12 ± 0.012")
    assert "focused linear < plain linear is reversed (-0.02" in second
    assert summary.sharpness["softmax"]["normalised_entropy"].mean == pytest.approx(1.4 / 3)
    # One image decides nothing.
    (summary,) = summarise([result(softmax=0.1, focused=0.5, plain=0.9)])
    assert [step.verdict for step in summary.entropy_order] == ["is not decided"] * 2
