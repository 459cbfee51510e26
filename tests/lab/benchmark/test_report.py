"""Tables, files of results, and results that come back from theirs or are refused."""

import csv
import json

import pytest
from rich.console import Console

from flatten_det.errors import UserError
from flatten_det.lab.benchmark.memory import Peak
from flatten_det.lab.benchmark.models import FORMAT, load_results, to_record
from flatten_det.lab.benchmark.run import Cost, Result, Setting
from flatten_det.lab.benchmark.sources import Size
from flatten_det.lab.output import make_markdown, make_table, number, write_csv, write_json

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


HOW = {"models": ["pvt-t", "swin-t"], "rounds": 3, "max-memory": None}
RESULTS = [
    Result(
        Setting(Size(8, 16), "training", "bf16", True, 2),
        "a",
        Cost(12, 34),
        (0.1, 0.2),
        Peak(5),
        host_seconds=0.25,
    ),
    Result(Setting(Size(8, 8)), "b", Cost(None, None, "not counted"), None, None, "out of memory"),
]


def save(path, **changes):
    content = {"format": FORMAT, "how": HOW, "cells": [to_record(r) for r in RESULTS]}
    write_json(content | changes, path)
    return path


def test_results_come_back_as_they_were(tmp_path):
    assert load_results(save(tmp_path / "results.json"), HOW) == RESULTS
    assert load_results(tmp_path / "no.json", HOW) == []


def test_files_from_before_cuda_graphs(tmp_path):
    cells = [to_record(result) for result in RESULTS]
    for cell in cells:
        del cell["host_seconds"]
    path = save(tmp_path / "results.json", cells=cells)
    assert load_results(path, HOW | {"cuda-graphs": False})[1] == RESULTS[1]
    with pytest.raises(UserError, match="cuda-graphs: False, now True"):
        load_results(path, HOW | {"cuda-graphs": True})


def test_other_settings_are_named(tmp_path):
    path = save(tmp_path / "results.json")
    with pytest.raises(UserError) as raised:
        load_results(path, HOW | {"rounds": 5, "models": ["pvt-t"]})
    assert "models: pvt-t swin-t, now pvt-t; rounds: 3, now 5" in str(raised.value)
    assert "--fresh" in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [
        {"format": "something else"},
        {"cells": [{"name": "a"}]},
        {"cells": [to_record(RESULTS[0]) | {"cost": {"flops": 1}}]},
        {"cells": [to_record(RESULTS[0]) | {"setting": {"size": [1, 2], "mode": "backward"}}]},
        *("", "[]", '{"cells": ['),
    ],
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "results.json"
    if isinstance(content, str):
        path.write_text(content)
    else:
        save(path, **content)
    with pytest.raises(UserError, match=r"results\.json is not of this tool"):
        load_results(path, HOW)
