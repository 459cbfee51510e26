"""JSON and CSV as files."""

import csv
import json

import pytest

from flatten_det.lab.benchmark.report import write_csv, write_json


def test_json_is_valid_with_any_float(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json({"a": [1.5, float("inf"), float("nan")], "b": (None, "x")}, path)
    assert json.loads(path.read_text()) == {"a": [1.5, None, None], "b": [None, "x"]}


def test_csv(tmp_path):
    path = tmp_path / "a.csv"
    write_csv([{"name": "a, b", "value": 0.1}, {"name": "c", "value": None}], path)
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["name", "value"], ["a, b", "0.1"], ["c", ""]]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json({"old": 1}, path)
    with pytest.raises(TypeError):
        write_json({"new": object()}, path)
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
