"""tools/ablate.py on a tiny grid: outcome, going on after an interruption, clear errors."""

import errno
import json
import os
import signal
from unittest.mock import Mock

import pytest
import torch
from ablations import few_images
from PIL import Image
from rich.progress import Progress
from tool_modules import load_tool

from flatten_det.lab.ablation import run as run_module
from flatten_det.lab.ablation.grid import make_grid

NOTE_PROCESS = """
import os
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class NoteProcess(Hook):
    def before_train(self, runner):
        with open(os.path.join(runner.work_dir, "process.txt"), "w") as file:
            file.write(f"{os.getpid()} {torch.get_num_threads()}")
"""
VARIANTS = ("p1-k0", "p3-k5")


@pytest.fixture(scope="module")
def tool():
    return load_tool("ablate")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("legend") / "shapes"


def _arguments(data, out, *variants):
    """Two variants, one seed, and options that make a training one of two iterations."""
    return [
        *("--variants", *(variants or VARIANTS), "--out", str(out), "--seeds", "0"),
        *("--cfg-options", *few_images(data)),
        *("train_cfg.max_iters=2", "train_cfg.val_interval=1"),
    ]


@pytest.fixture
def arguments(data, tmp_path):
    return _arguments(data, tmp_path / "out")


@pytest.fixture(scope="module")
def finished_grid(tool, data, tmp_path_factory):
    """Folder of a grid that was trained in this process, to be read only."""
    out = tmp_path_factory.mktemp("finished") / "out"
    assert tool.main(_arguments(data, out)) == 0
    return out


def _records(out):
    return {p.parent.parent.name: json.loads(p.read_text()) for p in out.glob("*/*/run.json")}


def _final(run):
    return run["validations"][-1]["metrics"]


def test_a_tiny_grid(tool, arguments, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert tool.main(arguments) == 0
    content = json.loads((out / "ablation.json").read_text())
    outcomes = {run["variant"]: run for run in content["runs"]}
    assert set(outcomes) == {"p1-k0", "p3-k5"}
    assert all(run["iterations"] == 2 and run["seconds"] > 0 for run in outcomes.values())
    # The convolutions: 25 weights and a bias for each of 32 channels, in two layers.
    assert outcomes["p3-k5"]["parameters"] - outcomes["p1-k0"]["parameters"] == 2 * 32 * 26
    values = [_final(outcomes[name])["mIoU"] for name in ("p1-k0", "p3-k5")]
    (paired,) = [v["paired"] for v in content["variants"] if v["paired"]]
    assert paired["difference"] == pytest.approx(values[1] - values[0])
    assert content["levels"]["guessing"] == pytest.approx(100 * (1 + 2 / 3) / 3)
    table = (out / "ablation.md").read_text()
    assert f"| p3-k5 | {outcomes['p3-k5']['parameters']:,} | {values[1]:.2f} |" in table
    assert table.strip() in capsys.readouterr().out
    with Image.open(out / "ablation.png") as figure:
        assert figure.width > 600
    for variant, outcome in outcomes.items():
        (scalars,) = (out / variant).rglob("vis_data/scalars.json")
        records = [json.loads(line) for line in scalars.read_text().splitlines()]
        assert records[-1]["mIoU"] == pytest.approx(_final(outcome)["mIoU"])
        assert [v["iteration"] for v in outcome["validations"]] == [1, 2]
    # Repeated, nothing is trained again.
    monkeypatch.setattr(run_module, "train", None)
    assert tool.main(arguments) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_interrupted_and_gone_on(tool, arguments, tmp_path, capsys, monkeypatch, number, code):
    train, trained = run_module.train, []

    def interrupted_train(cfg, hooks, **options):
        trained.append(cfg.work_dir)
        if len(trained) == 2:  # The first run is finished.
            (watch,) = hooks
            watch.before_train_iter = lambda *args, **others: os.kill(os.getpid(), number)
        return train(cfg, hooks=hooks, **options)

    monkeypatch.setattr(run_module, "train", interrupted_train)
    assert tool.main(arguments) == code
    errors = capsys.readouterr().err
    assert "p3-k5, seed 0: " in errors
    assert "to continue, repeat the command" in errors
    assert "--resume" not in errors
    records = _records(tmp_path / "out")
    assert records["p1-k0"]["finished"]
    assert records["p3-k5"]["finished"] is None
    spent = records["p3-k5"]["seconds"]

    seen = []

    def resumed_train(cfg, **options):
        seen.append((cfg.work_dir, cfg.resume))
        return train(cfg, **options)

    monkeypatch.setattr(run_module, "train", resumed_train)
    assert tool.main(arguments) == 0
    assert seen == [(str(tmp_path / "out" / "p3-k5" / "seed0"), True)]
    record = _records(tmp_path / "out")["p3-k5"]
    assert record["finished"]["iterations"] == 2
    assert record["seconds"] > spent


def test_a_full_disk_ends_it_with_what_to_do(tool, arguments, tmp_path, capsys, monkeypatch):
    train = run_module.train

    def train_on_a_full_disk(cfg, hooks, **options):
        (watch,) = hooks
        full = OSError(errno.ENOSPC, "No space left on device")
        watch.before_train_iter = Mock(side_effect=[None, full])
        return train(cfg, hooks=hooks, **options)

    monkeypatch.setattr(run_module, "train", train_on_a_full_disk)
    assert tool.main([*arguments, "default_hooks.checkpoint.interval=1"]) == 2
    (error,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert error.startswith("error: p1-k0, seed 0: the disk is full")
    last = tmp_path / "out" / "p1-k0" / "seed0" / "iter_1.pth"
    assert error.endswith(f"The last checkpoint is {last}: to go on from there, repeat the command")


def test_without_a_validation_nothing_is_trained(tool, arguments, tmp_path, capsys):
    none = [f"val_{part}=None" for part in ("cfg", "dataloader", "evaluator")]
    assert tool.main([*arguments, *none]) == 2
    assert "error: the config has no validation to compare runs by" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("scalars.json"))


def test_a_folder_of_other_options_is_left_alone(tool, data, finished_grid, capsys):
    arguments = _arguments(data, finished_grid)
    assert tool.main([*arguments, "optim_wrapper.optimizer.lr=0.1"]) == 2
    assert "holds a run with another config" in capsys.readouterr().err


@pytest.mark.slow
def test_two_runs_side_by_side(tool, data, finished_grid, tmp_path, monkeypatch, capsys):
    """The second variant is a config file of one's own, whose module the other process must import."""
    config = tmp_path / "own.py"
    config.write_text(
        f"_base_ = {str(tool.CONFIGS / 'ablation' / 'p3-k5.py')!r}\n"
        "custom_imports = dict(imports=['own_hooks'], allow_failed_imports=False)\n"
        "custom_hooks = [dict(type='NoteProcess')]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_hooks.py").write_text(NOTE_PROCESS)
    bars = []
    monkeypatch.setattr(Progress, "update", lambda self, task, **fields: bars.append(fields))
    out = tmp_path / "out"
    assert tool.main(["--jobs", "2", *_arguments(data, out, "p1-k0", str(config))]) == 0
    content = json.loads((out / "ablation.json").read_text())
    expected = json.loads((finished_grid / "ablation.json").read_text())
    assert [run["variant"] for run in content["runs"]] == ["p1-k0", "own"]
    assert [v["variant"] for v in content["variants"]] == ["p1-k0", "own"]
    for run, alone in zip(content["runs"], expected["runs"], strict=True):
        assert _final(run) == pytest.approx(_final(alone), abs=0.5, nan_ok=True)
        assert run["iterations"] == 2
        assert run["parameters"] == alone["parameters"]
        record = json.loads((out / run["variant"] / "seed0" / "run.json").read_text())
        assert record["validations"] == run["validations"]
        assert record["seconds"] == run["seconds"]
    pid, threads = map(int, (out / "own" / "seed0" / "process.txt").read_text().split())
    assert pid != os.getpid()
    assert threads == max(1, torch.get_num_threads() // 2)
    assert bars[-1] == {"total": 4, "completed": 4, "description": "2 of 2 trained"}
    assert "| own |" in capsys.readouterr().out


def test_without_options_it_is_five_variants_with_three_seeds(tool, tmp_path):
    args = tool.parse_args([])
    assert len(make_grid(args.variants, args.seeds, tool.CONFIGS / "ablation", tmp_path)) == 15


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_jobs_is_a_number_of_runs(tool, number, capsys):
    with pytest.raises(SystemExit, match="2"):
        tool.main([f"--jobs={number}"])
    assert f"argument --jobs: {number}: give a number of runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variants", "p5-k5"], "variant p5-k5 not found: choose among p1-k0"),
        (["--variants", "p1-k0", "p1-k0"], "variant p1-k0 is given twice"),
        (["--seeds", "1", "1"], "seeds must be different numbers"),
        (["--baseline", "p2-k5"], "--baseline p2-k5: not among the variants"),
    ],
)
def test_mistakes_are_named(tool, options, message, tmp_path, capsys):
    assert tool.main([*options, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
