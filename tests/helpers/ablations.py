"""Short runs of an ablation: their options, and the processes that train them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "ablate.py"


def few_images(data_root: Path) -> list[str]:
    """For ``--cfg-options``: two small splits of the task in a folder, in batches of two."""
    fields = {"data_root": data_root, "num_images.train": 4, "num_images.val": 4}
    return [
        *(
            f"{loader}.dataset.{key}={value}"
            for loader in ("train_dataloader", "val_dataloader", "test_dataloader")
            for key, value in fields.items()
        ),
        "train_dataloader.batch_size=2",
    ]


@contextlib.contextmanager
def ablations() -> Iterator[Callable[..., subprocess.Popen]]:
    """What starts the tool in a process group of its own; what is left of these in the end is killed.

    It takes arguments, and variables of the environment by name.
    """
    started = []

    def start(arguments: list[str], **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, str(TOOL), *arguments], env=os.environ | environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            for pid in group_of(process):
                os.kill(pid, signal.SIGKILL)
            process.wait()


def group_of(process: subprocess.Popen) -> list[int]:
    """The living processes of its group."""
    living = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group, *_ = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:  # It has just ended.
            continue
        if int(group) == process.pid and state not in "ZX":
            living.append(int(stat.parent.name))
    return living


def wait_until(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Wait for a condition, as long as the process lives."""
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
