"""Patches reach what they are for, and nothing else; public names of old are found in their old places."""

import importlib
import os
import shutil
import sys
import sysconfig

import pytest
import torch
from mmengine.fileio import get_file_backend
from mmengine.model import BaseModel
from mmengine.runner import runner as mmengine_runner
from torch import nn

from flatten_det.backbones import build_backbone
from flatten_det.compat import model_calls
from flatten_det.compat.moved import MOVED
from flatten_det.compat.patches import atomic_local_files


class Model(BaseModel):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs, data_samples=None, mode="tensor"):
        return inputs


def test_models_without_a_backbone_of_ours_are_called_as_ever(monkeypatch):
    told = []
    valid_regions = model_calls.valid_regions
    monkeypatch.setattr(
        model_calls, "valid_regions", lambda *args: told.append(args) or valid_regions(*args)
    )
    images = torch.zeros(1, 3, 32, 32)
    assert Model(nn.Identity())(images, None, mode="tensor") is images
    assert not told
    assert Model(build_backbone("flatten-pvt-t"))(images, None, mode="tensor") is images
    assert told == [(images, None)]


def test_an_absent_compiler_is_not_complained_of(monkeypatch, capfd, tmp_path):
    for program in ("sh", "git"):
        (tmp_path / program).symlink_to(shutil.which(program))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sysconfig.get_config_vars(), "CC", "gcc -pthread")
    assert mmengine_runner.collect_env()["GCC"] == "n/a"
    assert capfd.readouterr().err == ""
    os.write(2, b"said later")
    assert capfd.readouterr().err == "said later"


def test_clients_of_other_services_outlive_a_run():
    client = get_file_backend("https://host/a.pth", enable_singleton=True)
    with atomic_local_files():
        assert get_file_backend("https://host/b.pth", enable_singleton=True) is client
    assert get_file_backend("https://host/a.pth", enable_singleton=True) is client


@pytest.mark.parametrize("old", MOVED)
def test_public_names_are_still_found_where_they_were(old, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)  # Another test may have imported it.
    with pytest.warns(DeprecationWarning, match=f"{old} has moved: import from flatten_det"):
        module = importlib.import_module(old)
    for name, place in MOVED[old].items():
        assert getattr(module, name) is getattr(importlib.import_module(place), name)
    assert set(module.__all__) == set(MOVED[old])
