"""Worker processes: everything once and in order, and none that dies in silence."""

import os
import signal

import pytest
import torch

from flatten_det.data.doctor.check import examine_all
from flatten_det.data.doctor.faults import Outcome
from flatten_det.errors import UserError


class Numbers:
    """Outcomes with their own numbers, of which one may end its process."""

    def __init__(self, length, deadly=None):
        self.length, self.deadly = length, deadly

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return Outcome([], {index})


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_all_in_order(workers):
    for length in (0, 1, 50):
        labels = [outcome.labels for outcome in examine_all(Numbers(length), workers, "train")]
        assert labels == [{index} for index in range(length)]


def test_dead_worker(monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    with pytest.raises(UserError, match="train: a worker process died at about image"):
        list(examine_all(Numbers(50, deadly=20), 1, "train"))


@pytest.mark.parametrize(("task", "number"), [("instances", 5), ("semantic", 2)])
def test_workers_find_the_same(patient, task, number):
    with patient.annotations() as content:
        content["annotations"][1]["segmentation"] = [[1, 2, 3]]
        content["images"][4]["width"] = 60
    patient.path("train/images/000005.jpg").write_bytes(b"no image")
    patient.path("val/images/000001.jpg").unlink()
    with patient.image("train/semantic/000002.png") as image:
        image["it"].putpixel((0, 0), 9)
    alone = patient.findings(task, workers=0)
    assert len(alone) >= number
    assert patient.findings(task, workers=2) == alone
