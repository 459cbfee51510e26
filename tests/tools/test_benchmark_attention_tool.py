"""tools/benchmark_attention.py: its tables and files, and its one-line errors."""

import csv
import json

import pytest
from PIL import Image
from tool_modules import load_tool

QUICK = ["--shape", "32,2,9,7", "--rounds", "2", "--warmup", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def tool():
    return load_tool("benchmark_attention")


def test_tables_and_files(tool, tmp_path, capsys):
    out = tmp_path / "results"
    names = ["flatten_det", "eager", "sdpa"]
    command = [*QUICK, "--batch", "2", "--candidates", *names, "--out", str(out)]
    assert tool.main(command) == 0
    printed = capsys.readouterr().out
    assert f"uv run flatten-det benchmark-attention {' '.join(command)}" in printed
    assert "module, forward, fp32; speed-up over eager" in printed
    assert "module, forward+backward, fp32; speed-up over eager" in printed
    assert "other function" in printed

    content = json.loads((out / "results.json").read_text())
    assert content["command"].endswith(" ".join(command))
    assert content["machine"]["versions"]["torch"]
    assert content["copy_bandwidth"] > 1e8
    cells = content["cells"]
    assert [c["candidate"] for c in cells] == names * 2
    assert [c["mode"] for c in cells] == ["forward"] * 3 + ["forward+backward"] * 3
    for cell in cells:
        assert len(cell["seconds"]) == 2
        assert min(cell["seconds"]) <= cell["median_s"] <= max(cell["seconds"])
        assert cell["speedup"] > 0
        assert (cell["channels"], cell["heads"], cell["height"], cell["width"]) == (32, 2, 9, 7)
        assert cell["peak_units"] == cell["peak_bytes"] / (2 * 9 * 7 * 32 * 4)
        assert cell["check"] == ("other function" if cell["candidate"] == "sdpa" else "passed")
    assert cells[1]["speedup"] == 1
    # One output must be there at least.
    assert cells[4]["peak_units"] >= 1

    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["median_s"]) for r in rows] == [c["median_s"] for c in cells]
    assert set(rows[0]) == set(cells[0]) - {"seconds"}

    with Image.open(out / "figure.png") as figure:
        assert min(figure.size) > 500
        assert len(figure.convert("RGB").getcolors(2**24)) > 50


def test_core_level_without_memory(tool, tmp_path, capsys):
    command = [*QUICK, "--level", "core", "--no-memory", "--mode", "forward", "--dtype", "bf16"]
    candidates = ["--amp", "--candidates", "tiled", "reference", "--baseline", "reference"]
    out = tmp_path / "results"
    assert tool.main([*command, *candidates, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "core, forward, bf16 AMP; speed-up over reference" in printed
    cells = json.loads((out / "results.json").read_text())["cells"]
    assert [c["peak_bytes"] for c in cells] == [None, None]
    assert all(0 < c["floor_fraction"] < 10 for c in cells)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "64,3,8,8"], "C is a multiple of the heads"),
        (["--candidates", "tiled", "eager"], "--candidates tiled: at this level on cpu there are"),
        (["--candidates", "flatten_det"], "--baseline eager: not among the candidates"),
    ],
)
def test_mistakes_are_one_line(tool, capsys, arguments, message):
    assert tool.main([*QUICK, *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [["--rounds", "0"], ["--dtype", "int8"], ["--amp"], ["--threads", "0"], ["--mode", "backward"]],
)
def test_usage_errors(tool, arguments):
    with pytest.raises(SystemExit) as stopped:
        tool.main([*QUICK, *arguments])
    assert stopped.value.code == 2
