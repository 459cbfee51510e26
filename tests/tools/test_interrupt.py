"""Ctrl-C as a user presses it, SIGTERM as Slurm sends it: to all processes, data workers included."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures import write_detector_config

TRAIN_TOOL = Path(__file__).parents[2] / "tools" / "train.py"


@pytest.mark.slow
def test_stop_and_resume(coco_folder, tmp_path):
    """By Ctrl-C, then by SIGTERM in the training that went on, and on to the end."""
    config = write_detector_config(tmp_path / "tiny.py", coco_folder)
    command, done = [sys.executable, str(TRAIN_TOOL), config.name], 0
    options = ["train_dataloader.num_workers=2", "train_dataloader.persistent_workers=True"]
    checkpoint = tmp_path / "work_dirs" / "tiny" / "interrupted.pth"
    for number, exit_code, name in (
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 0, "terminated (SIGTERM)"),
    ):
        log, resume = tmp_path / f"{exit_code}.txt", ["--resume"] * (done > 0)
        with log.open("w") as stdout:
            process = subprocess.Popen(
                [*command, *resume, "--cfg-options", *options, "train_cfg.max_epochs=10000"],
                cwd=tmp_path, stdout=stdout, stderr=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip
        try:
            while " s/iter " not in log.read_text():
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.2)
            os.killpg(process.pid, number)
            _, errors = process.communicate(timeout=120)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == exit_code, errors
        assert "Traceback" not in errors
        message = errors.splitlines()[-1]
        assert message.startswith(f"{name} after iteration ")
        assert f"saved {checkpoint}; to continue, repeat the command with --resume" in message
        before, done = done, int(message.removeprefix(f"{name} after iteration ").split(",")[0])
        assert done > before

    epochs = done // 3 + 1
    rest = ["--resume", "--cfg-options", *options, f"train_cfg.max_epochs={epochs}"]
    resumed = subprocess.run([*command, *rest], cwd=tmp_path, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    lines = max(checkpoint.parent.glob("*/vis_data/scalars.json")).read_text().splitlines()
    steps = [json.loads(line) for line in lines if '"loss"' in line]
    assert [step["iter"] for step in steps] == list(range(done + 1, 3 * epochs + 1))
    assert steps[-1]["epoch"] == epochs
    assert "Training finished." in resumed.stdout
