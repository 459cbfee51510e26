"""Which images an input means, and what their results are called."""

import pytest

from flatten_det.errors import UserError
from flatten_det.files.images import find_images, output_names


@pytest.fixture
def tree(tmp_path):
    for name in ("a/1.jpg", "a/2.PNG", "a/notes.txt", "a/deep/1.jpg", "b/1.jpg", "b/odd.dat"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["a"], ["a/1.jpg", "a/2.PNG"]),
        (["a/**"], ["a/1.jpg", "a/2.PNG", "a/deep/1.jpg"]),
        (["*/1.jpg"], ["a/1.jpg", "b/1.jpg"]),
        (["b/odd.dat"], ["b/odd.dat"]),
        (["b/1.jpg", "b", "a/../b/1.jpg"], ["b/1.jpg"]),
    ],
)
def test_inputs(tree, inputs, expected):
    found = find_images([str(tree / each) for each in inputs])
    assert found == [str(tree / each) for each in expected]


@pytest.mark.parametrize("given", ["none", "b/*.png", "empty"])
def test_inputs_without_images(tree, given):
    (tree / "empty").mkdir()
    with pytest.raises(UserError, match=f"{given.replace('*', '.')}: no image found"):
        find_images([str(tree / "a"), str(tree / given)])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/1.jpg"], ["1"]),
        (["x/1.jpg", "x/2.jpg"], ["1", "2"]),
        (["x/1.jpg", "y/1.jpg"], ["x/1", "y/1"]),
        (["x/1.jpg", "x/1.png", "x/2.png"], ["1.jpg", "1.png", "2"]),
        (["x/1.jpg", "x/1.png", "x/1.jpg.png"], ["1.jpg", "1.png", "1.jpg_"]),
        (["x/1.jpg", "./1.jpg"], ["x/1", "1"]),
        (["a/x.png", "b/x.png", "b/x.jpg"], ["a/x", "b/x.png", "b/x.jpg"]),
        (["x/A.jpg", "x/a.jpg", "x/a.png"], ["A.jpg", "a.jpg_", "a.png"]),
        (["X/1.jpg", "x/1.jpg"], ["X/1.jpg", "x/1.jpg_"]),
        (["x/\u00e9.jpg", "x/e\u0301.png"], ["\u00e9.jpg", "e\u0301.png"]),
        (["x/..jpg", "x/.jpg", "x/a.b.jpg"], ["..jpg", ".jpg", "a.b"]),
        ([], []),
    ],
)
def test_names(paths, names):
    assert list(output_names(paths).values()) == names


def test_reserved_names_are_left_to_others():
    names = output_names(["x/analysis.json.jpg", "x/b.jpg"], reserved=["Analysis.JSON"])
    assert list(names.values()) == ["analysis.json_", "b"]
