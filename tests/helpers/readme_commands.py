"""What the README and the manual tell to type, and a folder and a way to run it."""

import multiprocessing
import os
import re
import runpy
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from flatten_det.config import find_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {"README": README} | {
    path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))
}


def _blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


# By page.
COMMANDS = {
    page: [line for block in _blocks("bash", text) for line in block.splitlines()]
    for page, text in PAGES.items()
}
PYTHON = {page: _blocks("python", text) for page, text in PAGES.items()}
# What cannot be run here, such as what needs a cluster.
OTHER = [text for page in PAGES.values() for text in _blocks("text", page)]

QUICKSTART, TESTS = COMMANDS["README"][:2]
PACKAGE, *INSTALLED = COMMANDS["README"][2:6]
OWN_DATA = COMMANDS["detection-data"][:2]
(FINE_TUNE,) = COMMANDS["fine-tune"]
PREPARE_MASKS, TRAIN_MASKS = COMMANDS["segmentation-data"]
(INSTALL,) = (c for c in COMMANDS["install"] if "--no-deps" in c)
MODELS_COMMAND = "pip install uv && uv run flatten-det models nano"
CHECK_COCO, *ON_WEIGHTS, TRAIN_COCO = COMMANDS["public-data"]
(SEVERAL,) = (c for c in COMMANDS["gpu"] if "--processes" in c)
ON_COCO = [TRAIN_COCO, *(c for c in COMMANDS["gpu"] if c.startswith("flatten-det train"))]
ON_COCO.remove(SEVERAL)
ON_GPU = "uv run pytest -m gpu"
ON_QUICKSTART = [
    c
    for page in ("quickstart", "detection-data", "look")
    for c in COMMANDS[page]
    if re.match(r"flatten-det \w+ \S*mask-rcnn_flatten-pvt-nano_fpn_shapes", c)
    and not c.startswith("flatten-det train")
]
(LOGGED,) = (c for c in COMMANDS["look"] if c.startswith("flatten-det train "))
ON_LARGE_IMAGES = [c for c in COMMANDS["high-resolution"] if "my_large_image.jpg" in c]
ON_PHOTOS = COMMANDS["predict"]
ON_MIXED_SIZES = [c for c in COMMANDS["high-resolution"] if "_shapes-mixed" in c]
ON_TREES = COMMANDS["trees"]
EXPORTS = COMMANDS["export"]
BENCHMARK, BENCHMARK_ATTENTION, FLOPS, FLOPS_OF_PAPER, BENCHMARK_DATA = COMMANDS["speed"]
(SCALING,) = COMMANDS["scaling"]
ANALYSE = [c for c in COMMANDS["evidence"] if c.startswith("flatten-det analyze")]
ABLATE = [c for c in COMMANDS["evidence"] if c.startswith("flatten-det ablate")]
REQUESTS = COMMANDS["serve"]
*IN_CI, UPDATE_ZOO = COMMANDS["development"]

# Commands start in processes that have imported the frameworks, which takes longer than most of them.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["mmdet.apis", "mmseg.apis"])


def workspace(folder: Path) -> Path:
    """A checkout's tools and configs, with data and results of its own."""
    for name in ("configs", "tools"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def few_images(number: int) -> list[str]:
    """Options for so many rendered images, in training and validation."""
    return [
        f"{split}_dataloader.dataset.num_images.{part}={number}"
        for split in ("train", "val", "test")
        for part in ("train", "val")
    ]


def save_random_weights(config: str, checkpoint: Path) -> None:
    """What a training of a README config leaves would take minutes."""
    cfg = Config.fromfile(find_config(config))
    init_default_scope(cfg.default_scope)
    checkpoint.parent.mkdir(parents=True)
    torch.save({"state_dict": MODELS.build(cfg.model).state_dict()}, checkpoint)


def words_of(command: str) -> list[str]:
    """``flatten-det`` or a file in ``tools/``, and its arguments."""
    words = shlex.split(command.removeprefix("pip install uv && "))
    return words[2:] if words[:2] == ["uv", "run"] else words


def run(command: str, cwd: Path, *more: str) -> str:
    """Run a command as this Python would and return what it printed."""
    words = words_of(command)
    assert words[0] == "flatten-det" or words[0].startswith("tools/")
    with TemporaryDirectory() as folder:
        printed, errors = Path(folder, "stdout"), Path(folder, "stderr")
        process = FORKS.Process(target=_run, args=([*words, *more], cwd, printed, errors))
        process.start()
        try:
            process.join()
        finally:
            process.kill()
        out = printed.read_text()
        assert process.exitcode == 0, f"{command}\n{out[-2000:]}\n{errors.read_text()[-3000:]}"
    return out


def run_python(example: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _run(words: list[str], cwd: Path, printed: Path, errors: Path) -> None:
    os.chdir(cwd)
    for number, path in ((1, printed), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = words
    if words[0] == "flatten-det":
        sys.exit(import_module("flatten_det.commands").main())
    script = cwd / words[0]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
