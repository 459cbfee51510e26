"""What happens to boxes that tiles cut."""

import pytest
import torch
from mmengine.structures import InstanceData

from flatten_det.predict.tiles import Window, merge, move_to_image

# Two tiles of an image of 100 x 180, which share columns 80 to 99.
LEFT, RIGHT = Window(0, 0, 100, 100), Window(80, 0, 180, 100)


def in_tile(
    window: Window, *found: tuple[list[float], float, int], size: tuple[int, int] = (100, 180)
) -> InstanceData:
    """Boxes given in the image, scores and labels, as a detector finds them in a tile."""
    boxes, scores, labels = zip(*found, strict=True) if found else ([], [], [])
    offset = torch.tensor([window.left, window.top] * 2)
    tile = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) - offset,
        scores=torch.tensor(scores),
        labels=torch.tensor(labels, dtype=torch.int64),
    )
    return move_to_image(tile, window, *size)


def merged(left: list, right: list, max_count: int = 100) -> list[tuple[list[float], float, int]]:
    found = merge([in_tile(LEFT, *left), in_tile(RIGHT, *right)], max_count)
    assert set(found.keys()) == {"bboxes", "scores", "labels"}
    scores = [round(score, 3) for score in found.scores.tolist()]
    return list(zip(found.bboxes.tolist(), scores, found.labels.tolist(), strict=True))


WHOLE, CUT = ([84, 10, 110, 30], 0.6, 0), ([84, 10, 100, 30], 0.9, 0)
OF_ANOTHER_CLASS = (WHOLE[0], 0.6, 1)
DOUBTFUL, ITS_PART = ([84, 10, 140, 30], 0.1, 0), ([78, 10, 100, 30], 0.9, 0)
ENDS, BEGINS = ([50, 10, 89, 60], 0.7, 0), ([91, 12, 120, 61], 0.8, 0)
ABOVE, BELOW = ([50, 10, 100, 40], 0.7, 0), ([80, 45, 120, 80], 0.8, 0)
LARGE, SMALL = ([0, 0, 60, 40], 0.5, 0), ([0, 0, 30, 40], 0.6, 0)
# Along a border: within the overlap of the tiles, each of them covers most of the next one.
CROWD_LEFT = [([50, 10, 100, 40], 0.9, 0), ([75, 18, 100, 48], 0.8, 0), ([50, 26, 100, 56], 0.7, 0)]
CROWD_RIGHT = [
    ([80, 11, 125, 41], 0.6, 0),
    ([80, 19, 108, 49], 0.5, 0),
    ([80, 27, 125, 57], 0.4, 0),
]
CROWD = [([50, 10, 125, 41], 0.9, 0), ([75, 18, 108, 49], 0.8, 0), ([50, 26, 125, 57], 0.7, 0)]
CASES = {
    "both tiles show it as a whole": (
        [([84, 10, 95, 20], 0.8, 0)], [([84, 10, 96, 20], 0.9, 0)], [([84, 10, 96, 20], 0.9, 0)],
    ),
    "a whole box replaces a cut one": ([CUT], [WHOLE], [WHOLE]),
    "not that of another class": ([CUT], [OF_ANOTHER_CLASS], [CUT, OF_ANOTHER_CLASS]),
    "not one that is hardly sure": ([ITS_PART], [DOUBTFUL], [ITS_PART, DOUBTFUL]),
    "parts are joined": (
        [([50, 10, 100, 60], 0.7, 0)], [([80, 12, 120, 61], 0.8, 0)], [([50, 10, 120, 61], 0.8, 0)],
    ),
    "crowds are joined one to one": (CROWD_LEFT, CROWD_RIGHT, CROWD),
    "one ends in the overlap where the other begins": (
        [ENDS, ([91, 12, 100, 61], 0.6, 0)], [BEGINS], [BEGINS, ENDS],
    ),
    "neighbours are not": ([ABOVE], [BELOW], [BELOW, ABOVE]),
    "the border of the image cuts nothing": ([LARGE, SMALL], [], [SMALL, LARGE]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_two_tiles(case):
    left, right, expected = CASES[case]
    assert merged(left, right) == expected


@pytest.mark.parametrize("missing", ["left", "right"])
def test_a_part_that_fits_best_elsewhere_is_left_alone(missing):
    one, two = ([50, 10, 100, 40], 0.9, 0), ([75, 18, 100, 48], 0.8, 0)
    other = ([80, 12, 125, 42], 0.6, 0)
    sides = {"left": [one, two], "right": [other]}
    if missing == "left":  # Mirrored: the image is 180 wide.
        sides = {
            side: [([180 - box[2], box[1], 180 - box[0], box[3]], *rest) for box, *rest in found]
            for side, found in (("right", [one, two]), ("left", [other]))
        }
    found = merged(**sides)
    assert [score for _, score, _ in found] == [0.9, 0.8]
    widths = [right - left for (left, _, right, _), _, _ in found]
    assert widths == [75, 25]


def test_objects_that_cross_in_a_corner_stay_two():
    """Of four tiles around a corner, each pair shares something."""
    windows = [Window(x, y, x + 100, y + 100) for y in (0, 80) for x in (0, 80)]
    # Two long objects that cross near the corner; the other tiles show one part of each.
    first = [[40, 82, 100, 98], [80, 82, 140, 98], [40, 82, 100, 97], [80, 82, 140, 97]]
    second = [[60, 90, 100, 100], [80, 90, 120, 100], [60, 90, 100, 112], [80, 90, 120, 112]]
    tiles = [
        in_tile(window, (one, 0.9, 0), (two, 0.8, 0), size=(180, 180))
        for window, one, two in zip(windows, first, second, strict=True)
    ]
    found = merge(tiles, 10)
    assert found.bboxes.tolist() == [[40, 82, 140, 98], [60, 90, 120, 112]]


def test_an_object_over_many_tiles_is_one():
    windows = [Window(x, 0, x + 100, 100) for x in (0, 80, 160, 240)]
    parts = [[30, 20, 100, 50], [80, 19, 180, 51], [160, 20, 260, 52], [240, 21, 310, 50]]
    tiles = [
        in_tile(window, (part, 0.5 + 0.1 * number, 0), size=(100, 340))
        for number, (window, part) in enumerate(zip(windows, parts, strict=True))
    ]
    found = merge(tiles, 10)
    assert found.bboxes.tolist() == [[30, 19, 310, 52]]
    assert found.scores.tolist() == pytest.approx([0.8])


def test_best_first_and_no_more_than_allowed():
    boxes = [([10.0 * i, 10, 10.0 * i + 8, 20], 0.1 + 0.1 * i, i % 2) for i in range(8)]
    assert merged(boxes, [])[0][1] == 0.8
    assert [score for _, score, _ in merged(boxes, [], 3)] == [0.8, 0.7, 0.6]


@pytest.mark.parametrize("max_count", [0, 5])
def test_nothing_found(max_count):
    assert merged([], [], max_count) == []
