"""What is written as a config is read as the same values."""

import pytest
from mmengine.config import Config

from flatten_det.data.preparation.zoo_config import LINE_LENGTH, Code, assignments

NASTY = [
    "it's",
    'say "a"',
    "both ' and \"",
    "back\\slash",
    "\\",
    "Äpfel 苹果 🍎",
    "{{ fileDirname }}",
    "{{$HOME:x}}",
    "{{'$NO_SUCH:1'}}",
    "{{ _base_.model }}",
    "line\nbreak\u2028",
    '"""',
    "\ud800",
    "_delete_",
]


def read_back(text, tmp_path) -> dict:
    path = tmp_path / "config.py"
    path.write_text(text, encoding="utf-8")
    return Config.fromfile(path).to_dict()


@pytest.mark.parametrize("name", NASTY)
def test_strings_survive(name, tmp_path):
    values = {"classes": (name,), "names": [name, name]}
    assert read_back(assignments(values), tmp_path).items() >= values.items()


def test_nested_values_survive_in_short_lines(tmp_path):
    values = {
        "model": {"head": {"num_classes": 3, "weights": [0.5] * 40, "norm": None}},
        "palette": [(255, index, 0) for index in range(30)],
        "empty": {"a": {}, "b": [], "c": ()},
        "flag": True,
    }
    text = assignments(values)
    assert max(map(len, text.splitlines())) <= LINE_LENGTH
    assert read_back(text, tmp_path).items() >= values.items()


def test_code_is_written_as_it_is():
    assert assignments({"a": 1, "b": {"c": Code("a + 1")}}) == "a = 1\nb = dict(c=a + 1)\n"
