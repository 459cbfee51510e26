"""Tables for the terminal and in Markdown, JSON and CSV as files."""

import csv
import json

import pytest
from rich.console import Console

from flatten_det.lab.benchmark.report import (
    make_markdown,
    make_table,
    number,
    write_csv,
    write_json,
)

COLUMNS = {"size": "left", "empty": "right", "ms": "right", "note": "left"}
ROWS = [["64", "", "1.5", ""], ["64", "", "2", "a | b"], ["128", "", "", "too slow"]]


def test_terminal():
    console = Console(width=100)
    with console.capture() as captured:
        console.print(make_table("title", COLUMNS, ROWS))
    printed = captured.get()
    assert "empty" not in printed
    assert printed.count("64") == 1
    # Header, and a line between the two sizes.
    assert printed.count("├") == 1
    assert "too slow" in printed


def test_markdown():
    assert make_markdown("title", COLUMNS, ROWS).splitlines() == [
        "**title**",
        "",
        "| size | ms | note |",
        "| --- | ---: | --- |",
        "| 64 | 1.5 |  |",
        "| 64 | 2 | a \\| b |",
        "| 128 |  | too slow |",
    ]
    assert number(1.234, ".1f", "x") == "1.2x"
    assert number(None, ".1f", "x") == ""


def test_json_is_valid_with_any_float_and_written_whole(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json({"a": [1.5, float("inf"), float("nan")], "b": (None, "x")}, path)
    content = {"a": [1.5, None, None], "b": [None, "x"]}
    assert json.loads(path.read_text()) == content
    with pytest.raises(TypeError):
        write_json({"new": object()}, path)
    assert json.loads(path.read_text()) == content
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_csv(tmp_path):
    path = tmp_path / "a.csv"
    write_csv([{"name": "a, b", "value": 0.1}, {"name": "c", "value": None}], path)
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["name", "value"], ["a, b", "0.1"], ["c", ""]]
