"""Statistics and spectra of matrices whose values are known, intervals over images, order of entropies."""

from math import inf, log, sqrt

import pytest
import torch

from flatten_det.lab.analysis.matrices import Variant, spectrum, spectrum_of_product
from flatten_det.lab.analysis.measure import (
    LayerResult,
    Measured,
    Sharpness,
    estimate,
    mean_sharpness,
    order_lines,
    sharpness_of_rows,
    summarise,
)


def test_equal_weights_and_one_key_alone():
    sharpness = mean_sharpness([sharpness_of_rows(torch.full((3, 40), 1 / 40))])
    assert sharpness.entropy == pytest.approx(log(40))
    assert sharpness.normalised_entropy == pytest.approx(1)
    assert sharpness.top_mass == pytest.approx(10 / 40)
    assert sharpness.effective_tokens == pytest.approx(40, rel=1e-5)
    assert sharpness.gini == pytest.approx(0, abs=1e-6)
    alone = mean_sharpness([sharpness_of_rows(torch.eye(40)[:7])])
    assert (alone.entropy, alone.normalised_entropy) == (0, 0)
    assert (alone.top_mass, alone.effective_tokens) == (1, 1)
    assert alone.gini == pytest.approx(39 / 40)
    # Where there is no other.
    assert sharpness_of_rows(torch.ones(2, 1)).tolist() == [[0, 0, 1, 1, 0]] * 2


def test_known_weights():
    # Figure 4 of the paper: 0.37, 0.19, 0.26, 0.18 becomes 0.75, 0.11, 0.09, 0.05.
    flat, sharp = sharpness_of_rows(
        torch.tensor([[0.37, 0.19, 0.26, 0.18], [0.75, 0.11, 0.09, 0.05]], dtype=torch.float64)
    )
    assert flat[0] == pytest.approx(-sum(w * log(w) for w in (0.37, 0.19, 0.26, 0.18)))
    assert sharp[0] < flat[0]
    assert flat[4] == pytest.approx((2 * (0.18 + 2 * 0.19 + 3 * 0.26 + 4 * 0.37) - 5) / 4)


def test_signs_scale_and_portions_do_not_count(monkeypatch):
    rows = torch.rand(50, 30, dtype=torch.float64)
    whole = sharpness_of_rows(rows)
    signs = torch.where(torch.rand(50, 30) < 0.5, -3.0, 3.0)
    torch.testing.assert_close(sharpness_of_rows(rows * signs), whole)
    monkeypatch.setattr("flatten_det.lab.analysis.measure._ENTRIES", 70)
    torch.testing.assert_close(sharpness_of_rows(rows), whole)


def test_rank_of_a_product_without_the_product():
    torch.manual_seed(0)
    a, b = torch.rand(90, 12, dtype=torch.float64), torch.rand(40, 12, dtype=torch.float64)
    fast, dense = spectrum_of_product(a, b), spectrum(a @ b.T)
    assert fast.rank == dense.rank == 12
    assert fast.shape == dense.shape == (90, 40)
    assert (fast.full_rank, len(fast.values)) == (40, 40)
    assert fast.values == pytest.approx(dense.values, abs=1e-12)
    # More channels than keys.
    assert spectrum_of_product(b[:5], b).values == pytest.approx(spectrum(b[:5] @ b.T).values)


def test_ranks():
    found = spectrum(torch.diag(torch.tensor([2.0, 1e-4, 1e-6], dtype=torch.float64)))
    assert found.values == pytest.approx((1, 5e-5, 5e-7))
    assert found.rank == 2


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
