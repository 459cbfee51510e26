"""Devices, and what is known about them."""

import os

import pytest
import torch

from flatten_det.errors import UserError
from flatten_det.lab.benchmark import timing
from flatten_det.lab.benchmark.machine import busy_remark, describe_machine, find_device
from flatten_det.lab.benchmark.timing import copy_bandwidth


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:99"])
def test_find_device(name):
    assert find_device("cpu") == torch.device("cpu")
    assert find_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match=f"--device {name}: "):
        find_device(name)


@pytest.mark.parametrize(("name", "index"), [(None, 0), ("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_has_an_index_which_torch_needs(name, index, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(device.index))
    assert find_device(name) == torch.device("cuda", index)
    assert chosen == [index]


def test_machine():
    machine = describe_machine(torch.device("cpu"))
    assert machine["threads"] == torch.get_num_threads()
    assert machine["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert machine["device"].startswith(machine["cpu"])


def test_copy_bandwidth_counts_both_directions(monkeypatch):

    monkeypatch.setitem(timing.COPIED_BYTES, "cpu", 1000)
    monkeypatch.setattr(timing, "clock_of", lambda device: lambda call: (call(), 0.5)[1])
    assert copy_bandwidth(torch.device("cpu")) == 2 * 1000 / 0.5


def test_a_busy_machine_is_told(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 8.0, 8.0))
    assert busy_remark() is None
    monkeypatch.setattr(os, "getloadavg", lambda: (3.14, 0.0, 0.0))
    assert busy_remark().startswith("this machine is busy: 3.1 processes on 4 processors")
