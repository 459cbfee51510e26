"""tools/benchmark.py: its tables and files, going on from an earlier run, and its one-line errors."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from flatten_det.lab.benchmark import run

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart"
QUICK = ["--device", "cpu", "--rounds", "2", "--max-seconds", "60"]
BACKBONES = ["--models", "flatten-pvtv2-b0", "mmdet:pvtv2-b0"]


def read(folder):
    return json.loads((folder / "results.json").read_text())


def test_tables_and_files(benchmark_tool, tmp_path, capsys):
    out = tmp_path / "results"
    sizes = ["--sizes", "64x96", "32", "--fit-from", "32"]
    # Not MMDetection's, which every process that measures memory would import.
    names = ["flatten-pvtv2-b0", "pvtv2-b0"]
    command = [*QUICK, "--models", *names, *sizes, "--out", str(out)]
    assert benchmark_tool.main(command) == 0
    printed = capsys.readouterr().out
    assert f"uv run flatten-det benchmark {' '.join(command)}" in printed
    assert "inference, fp32; speed-up over flatten-pvtv2-b0" in printed

    content = read(out)
    assert content["machine"]["versions"]["onedl-mmdetection"]
    assert content["how"]["rounds"] == 2
    # Small images first, whatever the order on the command line.
    assert [(c["name"], c["setting"]["size"]) for c in content["cells"]] == [
        *((name, [32, 32]) for name in names),
        *((name, [64, 96]) for name in names),
    ]
    for cell in content["cells"]:
        assert cell["failure"] is None
        assert len(cell["seconds"]) == 2
        assert cell["peak"]["bytes"] > 0
        assert cell["figures"]["speedup"] > 0
    exponents = {(e["model"], e["quantity"]): e["exponent"] for e in content["exponents"]}
    assert len(exponents) == 6
    assert exponents["flatten-pvtv2-b0", "multiply-adds"] == pytest.approx(1, abs=0.05)
    assert {c["below"] for c in content["crossovers"]} == {"pvtv2-b0"}

    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == names * 2
    for row, cell in zip(rows, content["cells"], strict=True):
        assert float(row["median_s"]) == pytest.approx(sum(cell["seconds"]) / 2)
    table = (out / "table.md").read_text()
    assert table.count("\n| 64x96 | ") == 2
    with Image.open(out / "figure.png") as figure:
        width, height = figure.size
        assert height > width > 500
        assert len(figure.convert("RGB").getcolors(2**24)) > 50


def test_a_later_run_goes_on(benchmark_tool, tmp_path, capsys):
    out = tmp_path / "results"
    command = [*QUICK, *BACKBONES, "--no-memory", "--out", str(out)]
    assert benchmark_tool.main([*command, "--sizes", "32"]) == 0
    first = read(out)["cells"]
    capsys.readouterr()

    assert (
        benchmark_tool.main([*command, "--sizes", "32", "64", "--baseline", "mmdet:pvtv2-b0"]) == 0
    )
    assert "1 of 2 settings were there already" in capsys.readouterr().out
    content = read(out)
    assert [c["seconds"] for c in content["cells"][:2]] == [c["seconds"] for c in first]
    assert content["cells"][1]["figures"]["speedup"] == 1
    assert content["cells"][0]["figures"]["speedup"] != 1
    assert content["cells"][2]["setting"]["size"] == [64, 64]

    different = [*command, "--sizes", "32", "--warmup", "2"]
    assert benchmark_tool.main(different) == 2
    error = capsys.readouterr().err
    assert "warmup: 1, now 2" in error
    assert error.count("\n") == 1
    assert read(out) == content

    assert benchmark_tool.main([*different, "--fresh"]) == 0
    assert [c["seconds"] for c in read(out)["cells"]] != [c["seconds"] for c in first]


def test_an_interrupted_run_keeps_what_it_has(benchmark_tool, tmp_path, monkeypatch, capsys):
    out = tmp_path / "results"
    command = [*QUICK, *BACKBONES, "--no-memory", "--sizes", "32", "64", "--out", str(out)]
    measure = run.benchmark_setting

    def interrupted(setting, *args):
        if setting.case.height == 64:
            raise KeyboardInterrupt
        return measure(setting, *args)

    monkeypatch.setattr(run, "benchmark_setting", interrupted)
    assert benchmark_tool.main(command) == 130
    assert len(read(out)["cells"]) == 2
    monkeypatch.setattr(run, "benchmark_setting", measure)
    assert benchmark_tool.main(command) == 0
    assert "1 of 2 settings were there already" in capsys.readouterr().out
    assert len(read(out)["cells"]) == 4


def test_whole_models_in_training(benchmark_tool, tmp_path, capsys):
    config = QUICKSTART / "retinanet_flatten-pvt-nano_fpn_shapes.py"
    models = ["--models", "torchvision:resnet18", str(config)]
    command = [*QUICK, *models, "--sizes", "64", "--mode", "training", "--batch", "1", "2"]
    out = tmp_path / "results"
    assert benchmark_tool.main([*command, "--no-memory", "--rounds", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "training, fp32; speed-up over torchvision:resnet18" in printed
    assert "training, fp32, batch 2; speed-up" in printed
    cells = read(out)["cells"]
    assert [c["name"] for c in cells] == ["torchvision:resnet18", config.stem] * 2
    assert all(c["cost"]["macs"] and len(c["seconds"]) == 1 for c in cells)


def test_what_fails_is_told_and_the_rest_goes_on(benchmark_tool, tmp_path, capsys):
    models = ["torchvision:vit_b_16", "flatten-pvtv2-b0"]
    command = [*QUICK, "--no-memory", "--models", *models, "--sizes", "30"]
    command += ["--baseline", models[1], "--out", str(tmp_path)]
    assert benchmark_tool.main(command) == 0
    other, ours = read(tmp_path)["cells"]
    assert "vit_b_16 has no part that gives feature maps" in other["failure"]
    assert ours["figures"]["speedup"] == 1
    lines = capsys.readouterr().out.splitlines()
    assert any("flatten-pvtv2-b0" in line and "1.00x" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "no_such.py"], "config file no_such.py not found"),
        (["--models", "a/x.py", "b/x.py"], "config file a/x.py not found"),
        (["--baseline", "pvt-s"], "--baseline pvt-s: not among the models (flatten-pvtv2-b0"),
        (["--max-memory", "1", "--no-memory"], "drop --no-memory"),
        (["--cuda-graphs"], "--cuda-graphs: needs a GPU, and the device is cpu"),
    ],
)
def test_mistakes_are_one_line(benchmark_tool, capsys, arguments, message):
    assert benchmark_tool.main([*QUICK, *BACKBONES, "--sizes", "32", *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_two_configs_of_one_name(benchmark_tool, tmp_path, capsys):
    configs = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        configs.append(tmp_path / folder / "model.py")
        configs[-1].write_text("model = dict(backbone=dict())\n")
    assert benchmark_tool.main([*QUICK, "--models", *map(str, configs), "--sizes", "32"]) == 2
    assert "more than one would be called model" in capsys.readouterr().err


def test_graphs_get_the_warm_up_that_they_need(benchmark_tool):
    assert benchmark_tool.parse_args(["--cuda-graphs"]).warmup == 2
    assert benchmark_tool.parse_args(["--cuda-graphs", "--warmup", "3"]).warmup == 3
    args = benchmark_tool.parse_args(["--models", "pvt-t", "--cuda-graphs"])
    names = [str(candidate) for candidate in benchmark_tool.choose_candidates(args)]
    assert names == ["pvt-t", "pvt-t graphs"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rounds", "0"],
        ["--batch", "2", "0"],
        ["--dtype", "int8"],
        ["--amp"],
        ["--mode", "forward"],
        ["--compile", "--warmup", "0"],
        ["--cuda-graphs", "--mode", "inference", "training"],
        ["--max-memory", "0"],
        ["--max-seconds", "-1"],
    ],
)
def test_usage_errors(benchmark_tool, arguments):
    with pytest.raises(SystemExit) as stopped:
        benchmark_tool.main([*QUICK, *arguments])
    assert stopped.value.code == 2
