"""``tools/ablate.py --jobs 2`` in a process of its own that is interrupted, or killed."""

import json
import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
from ablations import ablations, few_images, group_of, wait_until

ITERATIONS = 300
VARIANTS = ("p1-k0", "p3-k0")


@pytest.fixture
def command(tmp_path):
    """Two runs of some seconds each."""
    return [
        *("--jobs", "2", "--variants", *VARIANTS, "--seeds", "0"),
        *("--out", str(tmp_path / "out"), "--cfg-options", *few_images(tmp_path / "data")),
        "default_hooks.logger.interval=1",
        *(f"train_cfg.max_iters={ITERATIONS}", f"train_cfg.val_interval={ITERATIONS}"),
    ]


@pytest.fixture
def start(command):
    with ablations() as start:
        yield partial(start, command)


def _steps(out: Path, variant: str) -> list[int]:
    """Iterations that were logged, in all parts of the training."""
    files = sorted((out / variant).rglob("vis_data/scalars.json"))
    lines = [line for file in files for line in file.read_text().splitlines()]
    return [json.loads(line)["iter"] for line in lines if '"loss"' in line]


def _wait_for_end_of_group(process: subprocess.Popen, patience: float = 5) -> None:
    # The one of multiprocessing that cleans up ends a moment after the others.
    end = time.monotonic() + patience
    while living := group_of(process):
        assert time.monotonic() < end, [Path(f"/proc/{pid}/cmdline").read_text() for pid in living]
        time.sleep(0.05)


@pytest.mark.slow
def test_ctrl_c(start, tmp_path):
    out = tmp_path / "out"
    process = start()
    wait_until(process, lambda: all(len(_steps(out, variant)) > 2 for variant in VARIANTS))
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    _wait_for_end_of_group(process)
    lines = errors.strip().splitlines()[-2:]
    assert lines[-1].endswith("; to continue, repeat the command")
    for variant, line in zip(VARIANTS, sorted(lines), strict=True):
        saved = out / variant / "seed0" / "interrupted.pth"
        start_of_line, rest = line.split(", saved ")
        assert rest.removesuffix("; to continue, repeat the command") == str(saved)
        assert saved.exists()
        assert start_of_line.startswith(f"{variant}, seed 0: interrupted after iteration ")
        assert 2 < int(start_of_line.rsplit(" ", 1)[1]) < ITERATIONS


@pytest.mark.slow
def test_stop_of_processes_that_import(start, tmp_path):
    """They are not waited for: none gets as far as to train and save."""
    process = start()
    # The tool's own, that of multiprocessing which cleans up, and two that have just begun.
    wait_until(process, lambda: len(group_of(process)) == 4)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "interrupted; to continue, repeat the command"
    assert not list((tmp_path / "out").rglob("*.pth"))
    _wait_for_end_of_group(process)


@pytest.mark.slow
def test_kill_9_leaves_checkpoints_to_go_on_from_and_no_process(start, tmp_path):
    out = tmp_path / "out"
    process = start()
    wait_until(process, lambda: all(len(_steps(out, variant)) > 2 for variant in VARIANTS))
    process.kill()
    _wait_for_end_of_group(process, patience=60)
    for variant in VARIANTS:
        assert (out / variant / "seed0" / "interrupted.pth").exists()
        assert len(_steps(out, variant)) < ITERATIONS

    process = start()
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    for variant in VARIANTS:
        assert _steps(out, variant) == list(range(1, ITERATIONS + 1))
    assert len(json.loads((out / "ablation.json").read_text())["runs"]) == 2
