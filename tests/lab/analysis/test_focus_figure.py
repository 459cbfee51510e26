"""The figure of vectors that the focused map pulls to their axes."""

import pytest
import torch
from matplotlib.image import imread

from flatten_det.lab.analysis.figures import draw_focus, fan


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
