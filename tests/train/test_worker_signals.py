"""Data workers live through SIGHUP, SIGUSR1 and a SIGTERM from outside, and die of their parent's."""

import os
import signal
import subprocess

import pytest
import torch
from forked_ranks import wait_for
from torch.utils.data import DataLoader, Dataset

from flatten_det.train.stop import SurviveSigterm


class WorkerPids(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return os.getpid()


def has_ended(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system hides the sender")
def test_only_the_parents_sigterm_counts():
    initialized = torch.zeros(1).share_memory_()
    init = SurviveSigterm(lambda worker_id: initialized.fill_(1))
    # Plain numbers: tensors are fetched from a thread of the worker, which fails at times under load.
    loader = DataLoader(
        WorkerPids(), batch_size=None, num_workers=1, prefetch_factor=1, worker_init_fn=init
    )
    items = iter(loader)
    pid = next(items)
    assert initialized.item() == 1
    for name in ("TERM", "HUP", "USR1"):
        subprocess.run(["sh", "-c", f"kill -{name} {pid}"], check=True)
    assert set(items) == {pid}

    items = iter(loader)
    pid = next(items)
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: has_ended(pid))
