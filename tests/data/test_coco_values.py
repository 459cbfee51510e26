"""What values of COCO files are taken for."""

import pytest

from flatten_det.data.coco import is_id, is_number, is_size, stays_inside


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("a.jpg", True),
        ("day 1/a.jpg", True),
        ("a..b.jpg", True),
        ("../a.jpg", False),
        ("day/../../a.jpg", False),
        ("day\\..\\a.jpg", False),
        ("/a.jpg", False),
        ("\\a.jpg", False),
        ("C:a.jpg", False),
        ("https://example.org/a.jpg", False),
        ("a\0.jpg", False),
    ],
)
def test_names_that_stay_inside(name, inside):
    assert stays_inside(name) is inside


def test_numbers():
    good, bad = (0, -1.5, 1e300), (None, True, "1", float("nan"), float("inf"), -(10**400))
    assert all(map(is_number, good))
    assert not any(map(is_number, bad))


def test_ids_and_sizes():
    assert [is_id(value) for value in (0, "a", True, 1.0, None, [])] == [True] * 2 + [False] * 4
    assert [is_size(value) for value in (1, 0, -1, True, 1.0, "1")] == [True] + [False] * 5
