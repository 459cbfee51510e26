"""The wheel, installed apart from the checkout: commands, configs by name, other projects' tools."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from readme_commands import INSTALLED

ROOT = Path(__file__).parents[1]
QUICKSTART = "mask-rcnn_flatten-pvt-nano_fpn_shapes"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Runs what is installed in an empty folder, which knows nothing of the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    site, here = folder / "site", folder / "here"
    here.mkdir()
    for command in (
        ["uv", "build", "--quiet", "--wheel", "--out-dir", folder, ROOT],
        ["uv", "pip", "install", "--quiet", "--no-deps", "--target", site, "flatten-det"]
        + ["--find-links", folder, "--no-index"],
    ):
        subprocess.run(command, check=True, cwd=ROOT)
    environment = os.environ | {"PYTHONPATH": str(site), "COLUMNS": "200"}

    def run(*arguments: str, code: int = 0) -> str:
        program = [sys.executable, *arguments] if arguments[0] == "-c" else arguments
        program = [site / "bin" / program[0], *program[1:]] if program is arguments else program
        done = subprocess.run(
            program, cwd=here, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr[-3000:]
        return done.stdout + done.stderr

    run.here = here
    return run


def test_the_package_is_the_installed_one(installed):
    printed = installed("-c", "import flatten_det; print(flatten_det.__file__)")
    assert re.fullmatch(r".*/site/flatten_det/__init__\.py\n", printed)


def test_readme_commands(installed):
    """The training with two iterations, whose checkpoint goes by the name of the full one."""
    models, train, infer = (shlex.split(command) for command in INSTALLED)
    printed = installed(*models)
    assert re.search(r"mask-rcnn_flatten-pvt-t_fpn_1x_coco .* 31\.8 .* box AP 38\.2", printed)
    fields = ["train_cfg.max_iters=2", "train_cfg.val_interval=2"]
    fields += [
        f"{split}_dataloader.dataset.num_images={{'train':24,'val':4}}"
        for split in ("train", "val", "test")
    ]
    assert "Training finished." in installed(*train, "--cfg-options", *fields)
    checkpoint, image = (installed.here / path for path in infer[-2:])
    (checkpoint.parent / "iter_2.pth").rename(checkpoint)
    shutil.copy(next((installed.here / "data").glob("shapes*/val/images/*")), image)
    installed(*infer, "--device", "cpu")
    assert (installed.here / "outputs" / "preds" / "my_image.json").is_file()


def test_typo_is_answered_with_the_name(installed):
    printed = installed("flatten-det", "train", "mask-rcnn_flaten-pvt-nano_fpn_shapes", code=2)
    assert f"did you mean {QUICKSTART}" in printed
    assert len(printed.splitlines()) == 1


USES = """
import flatten_det
from mmdet.apis import DetInferencer
from mmengine.config import Config
from pathlib import Path
Path("mine.py").write_text("_base_ = 'flatten_det::mask_rcnn/mask-rcnn_flatten-pvt-t_fpn_1x_coco.py'")
cfg = Config.fromfile("mine.py")
print(cfg.model.backbone.type, cfg.default_scope)
inferencer = DetInferencer(%r, device="cpu")
print(type(inferencer.model.backbone).__name__)
"""


def test_other_projects_find_configs_by_name(installed):
    printed = installed("-c", USES % QUICKSTART)
    assert "FLattenPVT mmdet\n" in printed
    assert "\nFLattenPVT\n" in printed
