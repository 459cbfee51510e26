"""What the README tells to type, and a folder and a way to run it."""

import multiprocessing
import os
import re
import runpy
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]

QUICKSTART, TESTS = (
    "pip install uv && uv run tools/train.py "
    "configs/quickstart/mask-rcnn_flatten-pvt-nano_fpn_shapes.py",
    "pip install uv && uv run pytest",
)
IN_CI = [TESTS, "uv run ruff check", "uv run ruff format --check", "uv run pytest -m slow"]
ON_LARGE_IMAGES = [c for c in COMMANDS if "my_large_image.jpg" in c]
ON_MIXED_SIZES = [c for c in COMMANDS if "_shapes-mixed.py" in c]
ON_QUICKSTART = [
    c
    for c in COMMANDS
    if re.match(r"uv run tools/(test|infer|check_data)\.py configs/quickstart", c)
    and c not in ON_LARGE_IMAGES
    and c not in ON_MIXED_SIZES
]
ON_COCO = [c for c in COMMANDS if re.match(r"uv run tools/train\.py configs/(?!quickstart)", c)]
ON_WEIGHTS = [c for c in COMMANDS if c.startswith("uv run tools/convert_checkpoint.py ")]
OWN_DATA = [
    "uv run tools/prepare_data.py custom my_data --config "
    "configs/quickstart/mask-rcnn_flatten-pvt-nano_fpn_shapes.py --out my_config.py",
    "uv run tools/train.py my_config.py",
]
BENCHMARK_ATTENTION = "uv run tools/benchmark_attention.py --shape pvt-s1 --out outputs/attention"
BENCHMARK = (
    "uv run tools/benchmark.py --models flatten-pvt-t pvt-t mmdet:pvt-t --sizes 512 1024 2048 "
    "--out outputs/speed"
)
FLOPS, FLOPS_OF_PAPER = (
    "uv run tools/get_flops.py flatten-pvt-t --shape 800 1280",
    "uv run tools/get_flops.py --paper",
)
ANALYSE = [c for c in COMMANDS if c.startswith("uv run tools/analyze_attention.py ")]
ABLATE = [c for c in COMMANDS if c.startswith("uv run tools/ablate.py")]
ON_GPU = "uv run pytest -m gpu"
UPDATE_ZOO = "uv run tools/update_zoo.py --no-count"
INSTALLED = [c for c in COMMANDS if c.startswith("flatten-det ")]
PACKAGE = "pip install ."
INSTALL = "pip install timm && pip install --no-deps ."

# Commands start in processes that have imported the frameworks, which takes longer than most of them.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["mmdet.apis", "mmseg.apis"])


def workspace(folder: Path) -> Path:
    """A checkout's tools and configs, with data and results of its own."""
    for name in ("configs", "tools"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(command: str, cwd: Path, *more: str) -> str:
    """Run a README command as this Python would and return what it printed."""
    words = shlex.split(command.removeprefix("pip install uv && "))
    assert words[:2] == ["uv", "run"]
    with TemporaryDirectory() as folder:
        printed, errors = Path(folder, "stdout"), Path(folder, "stderr")
        process = FORKS.Process(target=_run, args=([*words[2:], *more], cwd, printed, errors))
        process.start()
        try:
            process.join()
        finally:
            process.kill()
        out = printed.read_text()
        assert process.exitcode == 0, f"{command}\n{out[-2000:]}\n{errors.read_text()[-3000:]}"
    return out


def _run(words: list[str], cwd: Path, printed: Path, errors: Path) -> None:
    os.chdir(cwd)
    for number, path in ((1, printed), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = words
    script = cwd / words[0]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
