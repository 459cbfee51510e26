"""``ablate --engine``: what Ray and submitit train, stop, queue again and fail at; ``--sweep``."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from ablations import TOOL, ablations, few_images, wait_until
from tool_modules import load_tool

from flatten_det.errors import UserError
from flatten_det.lab.ablation.grid import Run, make_grid
from flatten_det.lab.ablation.jobs import PROGRESS, RunInHand
from flatten_det.train.run import LOCK_NAME

CONFIGS = TOOL.parents[1] / "configs"
ITERATIONS = 60
OPTIONS = {"submitit": ["--engine-options", "cluster=local"], "ray": []}
# One fails as soon as the other run trains; no machine is too fast for Ctrl-C.
HOOKS = f"""
import time
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class TakeTime(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        time.sleep(0.1)

@HOOKS.register_module()
class BreakDown(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if "p3-k5" not in runner.work_dir:
            time.sleep(1)
            return
        while not Path(runner.work_dir, "../../p1-k0/seed0/{PROGRESS}").exists():
            time.sleep(0.1)
        time.sleep(2)  # Until that is known to the command.
        raise ZeroDivisionError("a bug")
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("legend") / "shapes"


def _options(data: Path, out: Path, custom_hooks: str, jobs: int) -> list[str]:
    """Of two short runs."""
    return [
        *("--jobs", str(jobs), "--variants", "p1-k0", "p3-k5", "--seeds", "0", "--out", str(out)),
        *("--cfg-options", *few_images(data)),
        *(f"train_cfg.max_iters={ITERATIONS}", f"train_cfg.val_interval={ITERATIONS}"),
        *(f"custom_hooks={custom_hooks}", "custom_imports.imports=[flatten_det,engine_hooks]"),
    ]


@pytest.fixture
def start(data, tmp_path):
    """Starts two runs by an engine, with one thread each."""

    def start(engine: str, out: Path, hook: str = "TakeTime") -> subprocess.Popen:
        options = _options(data, out, f"[{{'type': '{hook}'}}]", jobs=2)
        (tmp_path / "engine_hooks.py").write_text(HOOKS)
        python_path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        arguments = ["--engine", engine, *OPTIONS[engine], *options]
        return start_process(arguments, OMP_NUM_THREADS="1", PYTHONPATH=python_path)

    with ablations() as start_process:
        yield start


def _trained(out: Path, variant: str) -> int:
    try:
        return json.loads((out / variant / "seed0" / PROGRESS).read_text())[0]
    except FileNotFoundError:
        return 0


def _validations(out: Path) -> dict[str, list[dict]]:
    runs = json.loads((out / "ablation.json").read_text())["runs"]
    return {run["variant"]: run["validations"] for run in runs}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["submitit", "ray"])
def test_an_engine_stops_and_goes_on_to_the_same_numbers(
    engine, start, data, tmp_path, monkeypatch
):
    pytest.importorskip(engine)
    out = tmp_path / "out"
    process = start(engine, out)
    wait_until(process, lambda: _trained(out, "p1-k0") and _trained(out, "p3-k5"))
    time.sleep(2)  # Until that is known to the command.
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    for variant in ("p1-k0", "p3-k5"):
        assert f"{variant}, seed 0: interrupted after iteration " in errors
        assert (out / variant / "seed0" / "interrupted.pth").exists()
    assert errors.endswith("; to continue, repeat the command\n")

    process = start(engine, out)
    if engine == "submitit":
        # Pre-empted: it is queued again.
        wait_until(process, lambda: _trained(out, "p1-k0") > 0)
        lock = (out / "p1-k0" / "seed0" / LOCK_NAME).read_text()
        os.kill(int(re.search(r"\d+", lock)[0]), signal.SIGUSR1)
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    assert not list(out.glob(f"*/*/{PROGRESS}"))
    if engine == "submitit":
        logs = "".join(log.read_text() for log in (out / "jobs").glob("*.out"))
        assert logs.count("Requeued job") == 1

    monkeypatch.syspath_prepend(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        options = _options(data, tmp_path / "local", "[]", jobs=1)
        assert load_tool("ablate").main(options) == 0
    finally:
        torch.set_num_threads(threads)
    assert _validations(out) == _validations(tmp_path / "local")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["submitit", "ray"])
def test_a_run_that_fails_stops_the_others_with_checkpoints(engine, start, tmp_path):
    pytest.importorskip(engine)
    process = start(engine, tmp_path / "out", "BreakDown")
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 1, errors
    # The traceback of the other process is the cause.
    assert "in before_train_iter" in errors
    assert errors.endswith("RuntimeError: p3-k5, seed 0: ZeroDivisionError: a bug\n")
    assert (tmp_path / "out" / "p1-k0" / "seed0" / "interrupted.pth").exists()


class DeadJob:
    """Of an engine whose process was killed."""

    def done(self) -> bool:
        return True

    def result(self) -> None:
        raise RuntimeError("the node is gone\nand this is its log")


def test_a_job_without_an_outcome_is_a_failure_in_one_line(tmp_path):
    run = Run("p1-k0", 0, tmp_path / "run", None)
    error = RunInHand(run, lambda run: DeadJob()).look(advance=None).as_error(run)
    assert isinstance(error, UserError)
    assert str(error) == (
        "p1-k0, seed 0: its job failed: RuntimeError: the node is gone; to continue, repeat the command"
    )
    assert "this is its log" in str(error.__cause__)
    assert list(run.folder.iterdir()) == []


@pytest.mark.parametrize("engine", ["submitit", "ray"])
def test_a_missing_package_is_named_with_its_extra(engine, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, engine, None)
    tool = load_tool("ablate")
    assert tool.main(["--engine", engine, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.strip() == (
        f"error: --engine {engine} needs the package {engine}: pip install 'flatten-det[{engine}]'"
    )


def test_a_cluster_of_ray_that_is_not_there(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert load_tool("ablate").main(["--engine", "ray", "--out", str(tmp_path)]) == 2
    assert (
        capsys.readouterr()
        .err.lstrip()
        .startswith("error: RAY_ADDRESS=127.0.0.1:9: no cluster of Ray answers there (")
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["cluster=local", "queue=gpu"], "queue"),
        (["cluster=moon"], "moon"),
        (["cluster=local", "gpus_per_node=one"], "gpus_per_node"),
    ],
)
def test_options_that_submitit_does_not_know(options, message, tmp_path, capsys):
    pytest.importorskip("submitit")
    tool = load_tool("ablate")
    command = ["--engine", "submitit", "--out", str(tmp_path), "--engine-options", *options]
    assert tool.main(command) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: --engine-options: ")
    assert message in line


def test_options_need_an_engine(capsys):
    with pytest.raises(SystemExit, match="2"):
        load_tool("ablate").main(["--engine-options", "cluster=local"])
    assert "--engine-options: give an --engine that has options" in capsys.readouterr().err


def test_a_sweep_is_every_variant_with_every_combination(tmp_path):
    args = load_tool("ablate").parse_args(
        ["--sweep", "optim_wrapper.optimizer.lr=1e-4,3e-4", "model.backbone.kernel_size=3"]
    )
    runs = make_grid(
        ["p1-k5", "p3-k5"], [0], CONFIGS / "ablation", tmp_path, None, None, args.sweep
    )
    assert [run.variant for run in runs] == [
        f"{variant},lr={lr},kernel_size=3"
        for lr in ("0.0001", "0.0003")
        for variant in ("p1-k5", "p3-k5")
    ]
    assert [run.cfg.optim_wrapper.optimizer.lr for run in runs] == [1e-4, 1e-4, 3e-4, 3e-4]
    assert all(run.cfg.model.backbone.kernel_size == 3 for run in runs)
    assert len({run.fingerprint for run in runs}) == 4
    assert runs[0].folder == tmp_path / "p1-k5,lr=0.0001,kernel_size=3" / "seed0"


def test_a_sweep_of_a_config_leaves_its_attention_as_it_is(tmp_path):
    config = CONFIGS / "quickstart" / "flatten-pvt-nano_semantic-fpn_shapes.py"
    sweep = ["a.lr=1,2", "b.lr=x/y"]
    args = load_tool("ablate").parse_args(["--config", str(config), "--sweep", *sweep])
    runs = make_grid(args.variants, [0], CONFIGS, tmp_path, None, args.config, args.sweep)
    assert [run.variant for run in runs] == [
        f"{config.stem},a.lr={value},b.lr=x_y" for value in (1, 2)
    ]
    with pytest.raises(UserError, match="lr=1 is given twice"):
        make_grid([], [0], CONFIGS, tmp_path, None, args.config, {"lr": [1, 1]})
