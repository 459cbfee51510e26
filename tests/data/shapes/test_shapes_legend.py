"""Shapes with a legend: classes follow from the cell of the same hue, and from nothing else."""

import itertools

import numpy as np
import pytest

from flatten_det.data.shapes.options import LEGEND_HEIGHT, ShapesOptions
from flatten_det.data.shapes.render import guessing_iou, render

LEGEND = {
    "image_size": (128, 64),
    "object_size": (10, 15),
    "objects_per_image": (2, 5),
    "legend": (2, 6),
    "legend_classes": 3,
    "legend_distance": 72,
}


def _chroma(colour: np.ndarray) -> np.ndarray:
    """What of RGB ``(..., 3)`` is not grey."""
    return colour - colour.mean(axis=-1, keepdims=True)


def test_the_cell_of_an_objects_hue_tells_its_class():
    options = ShapesOptions(**LEGEND)
    seen = set()
    for index in range(80):
        drawn = render(options, "train", index)
        legend = drawn.image[:LEGEND_HEIGHT].mean(axis=0)  # [W, 3]
        # Without the pixels that lie in two cells.
        jumps = np.linalg.norm(np.diff(_chroma(legend), axis=0), axis=1) > 25
        assert 1 <= jumps.sum() <= 5
        for i, label in enumerate(drawn.labels):
            mask = drawn.owner == i
            assert np.nonzero(mask)[0].min() >= LEGEND_HEIGHT + 72
            colour = np.median(drawn.image[mask], axis=0)
            distance = np.linalg.norm(_chroma(legend) - _chroma(colour), axis=1)
            assert distance.min() < 15
            # Three classes: 90, 130, 170.
            assert round((legend[distance.argmin()].mean() - 90) / 40) == label
            seen.add((int(distance.argmin() * 3 // 64), int(label)))
    # Every class occurs everywhere in the legend.
    assert seen == set(itertools.product(range(3), range(3)))


def test_objects_and_their_surroundings_do_not_tell_the_class():
    options = ShapesOptions(**{**LEGEND, "legend_classes": 2})
    looks, labels = [], []
    for index in range(250):
        drawn = render(options, "train", index)
        around = drawn.image[LEGEND_HEIGHT : LEGEND_HEIGHT + 72].astype(float)
        # Grey only, but for the grain: its colours cancel over an image.
        assert np.ptp(around.mean(axis=(0, 1))) < 1
        for i, label in enumerate(drawn.labels):
            mask = drawn.owner == i
            looks.append(
                [*drawn.image[mask].mean(axis=0), mask.sum(), *np.argwhere(mask).mean(axis=0)]
            )
            labels.append(label)
    looks, labels = np.array(looks), np.array(labels)
    first, second = looks[labels == 0], looks[labels == 1]
    error = np.sqrt(first.var(axis=0) / len(first) + second.var(axis=0) / len(second))
    assert (np.abs(first.mean(axis=0) - second.mean(axis=0)) < 4 * error + 1e-6).all()
    assert abs(labels.mean() - 0.5) < 4 * 0.5 / np.sqrt(250)


def test_data_sets_without_a_legend_are_what_they_were():
    """Recorded before there were legends; other versions of OpenCV may round pixels differently."""
    options = ShapesOptions(
        image_size=128,
        object_size=(24, 30),
        objects_per_image=(8, 12),
        min_visible=0.9,
        texture_contrast=0.25,
        num_images={"train": 1, "val": 3},
    )
    drawn = [render(options, "val", i) for i in range(3)]
    assert [d.labels.tolist() for d in drawn] == [
        [3, 1, 0, 1, 1, 4, 0, 0, 2, 4],
        [5, 0, 4, 2, 3, 2, 5, 0, 4, 2],
        [1, 3, 1, 3, 2, 5, 4, 2, 4, 1, 1],
    ]
    assert [d.image.mean() for d in drawn] == pytest.approx([160.497, 120.371, 151.217], abs=0.01)
    assert [int((d.owner >= 0).sum()) for d in drawn] == pytest.approx([3894, 3963, 3738], abs=3)
    # What a folder stores: one that was rendered before must be found complete.
    names = ["image_size", "num_images", "seed", "object_size", "objects_per_image", "min_visible"]
    assert list(options.as_dict()) == [*names, "texture_contrast"]
    assert ShapesOptions(**LEGEND).as_dict()["legend"] == [2, 6]


def test_no_way_to_guess_has_a_higher_iou():
    """All shares of guesses in steps of 1/20, by counting, for three classes."""
    best = 0.0
    for a, b in itertools.product(range(21), repeat=2):
        if a + b <= 20:
            shares = np.array([a, b, 20 - a - b]) / 20
            hits, misses, false = shares / 3, (1 - shares) / 3, shares * 2 / 3
            best = max(best, (hits / (hits + misses + false)).mean())
    assert best <= guessing_iou(3) == pytest.approx(0.2)
    assert guessing_iou(2) == pytest.approx(1 / 3)
