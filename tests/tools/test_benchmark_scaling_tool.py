"""``benchmark --what scaling``: one-line errors, and the manual's command in two processes."""

import csv
import json

import pytest
import torch
from forked_ranks import Forker
from readme_commands import SCALING, words_of

NANO = "flatten-pvt-nano_semantic-fpn_shapes"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes", "0"], "argument --processes: must be at least 1"),
        (["--processes", "all"], "argument --processes: all is one process for each GPU"),
        (["--steps", "0"], "argument --steps: must be at least 1, got 0"),
        (["--rounds", "3"], "unrecognized arguments: --rounds"),
    ],
)
def test_usage_errors(benchmark_tool, capsys, options, message):
    with pytest.raises(SystemExit):
        benchmark_tool.main(["--what", "scaling", NANO, *options])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cfg-options", "train_dataloader=None"], f"{NANO} has no train_dataloader: give"),
        (["--processes", "1", "4"], "--processes 4: this machine has 2 GPUs: give fewer"),
    ],
)
def test_mistakes_are_one_line(benchmark_tool, capsys, monkeypatch, options, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert benchmark_tool.main(["--what", "scaling", NANO, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_the_manuals_command(tmp_path):
    """With few images."""
    few = ["--batch", 2, "--cfg-options", "train_dataloader.dataset.num_images.train=16"]
    with Forker() as forker:
        command = forker.run(tmp_path / "run", *words_of(SCALING)[1:], *few)
        assert command.output.count("Training of") == 1
        assert {p.name for p in command.folder.iterdir() if p.is_dir()} == {"data", "outputs"}
        wrong = [*few, "model.backbone.arch=nothing"]
        failed = forker.start(tmp_path / "wrong", *words_of(SCALING)[1:], *wrong)
        assert forker.wait(failed) == 2
        assert "nothing" in failed.errors.splitlines()[-1]
    out = command.folder / "outputs" / "scaling"
    content = json.loads((out / "results.json").read_text())
    assert [world["processes"] for world in content["worlds"]] == [1, 2]
    assert [len(world["step"]) for world in content["worlds"]] == [5, 5]
    one, two = content["figures"]
    assert one["efficiency"] == 1
    assert one["gradient_bytes"] == two["gradient_bytes"] == 4 * 2_115_783
    two_processes = content["worlds"][1]
    assert len(two_processes["alone"]) == len(two_processes["all_reduce"]) == 5
    assert min(two_processes["all_reduce"]) < min(two_processes["alone"])
    assert two["predicted_step_s"] > min(two_processes["alone"])
    for figures in (one, two):
        # Weights, gradients and AdamW's states at least.
        assert figures["peak_bytes"] > 4 * figures["gradient_bytes"]
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["step_s"]) for row in rows] == [one["step_s"], two["step_s"]]
    assert "\n| 2 | " in (out / "table.md").read_text()
