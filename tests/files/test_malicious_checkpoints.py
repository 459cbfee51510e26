"""Whatever reads a checkpoint in a process with flatten_det: no command in it is run."""

from functools import partial
from pathlib import Path

import mmengine.runner.checkpoint as module
import pytest
import timm
import torch
from malicious_files import FORMS, OwnClass, save_command, save_text, served, state
from mmdet.apis import DetInferencer, init_detector
from mmdet.models.backbones import PyramidVisionTransformer
from mmdet.models.backbones import SwinTransformer as DetSwin
from mmengine.config import ConfigDict
from mmengine.infer.infer import BaseInferencer
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from mmengine.runner.checkpoint import _load_checkpoint_with_prefix
from mmseg.apis import MMSegInferencer, init_model
from mmseg.models.backbones import MAE, BEiT, VisionTransformer
from mmseg.models.backbones import SwinTransformer as SegSwin
from torch import nn
from toy_training import make_config

from flatten_det.backbones import build_backbone
from flatten_det.compat.patches import read_mmengine_checkpoints_as_data
from flatten_det.errors import CheckpointError
from flatten_det.files.checkpoints import load_local, read_checkpoint, trusted_checkpoints

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart"
DETECTOR = str(QUICKSTART / "retinanet_flatten-pvt-nano_fpn_shapes.py")
SEGMENTOR = str(QUICKSTART / "flatten-pvt-nano_semantic-fpn_shapes.py")
REFUSED = r"evil\.pth cannot be read.*could run code.*--trust-checkpoint"


def pretrained(path: str) -> ConfigDict:
    return ConfigDict(type="Pretrained", checkpoint=path)


class Detector(BaseModule):
    """Stands for any model of the frameworks that leaves its initialisation to mmengine."""

    def __init__(self, path: str, prefix: str | None = None) -> None:
        super().__init__(ConfigDict(pretrained(path), prefix=prefix))
        self.layer = nn.Linear(2, 2)


# Backbones of the frameworks, as small as they can be.
THEIRS = {
    "mmdet PVT": partial(PyramidVisionTransformer, num_layers=[1, 1, 1, 1]),
    "mmdet Swin": partial(DetSwin, depths=(1, 1, 1, 1), convert_weights=True),
    "mmseg Swin": partial(SegSwin, depths=(1, 1, 1, 1)),
    "mmseg ViT": partial(VisionTransformer, num_layers=1),
    "mmseg BEiT": partial(BEiT, num_layers=1),
    "mmseg MAE": partial(MAE, num_layers=1),
}
ENTRIES = {
    "load_checkpoint": lambda path: load_checkpoint(nn.Linear(2, 2), path),
    "CheckpointLoader": lambda path: CheckpointLoader.load_checkpoint(path, "cpu"),
    "prefix": lambda path: _load_checkpoint_with_prefix("backbone", path),
    "init_cfg": lambda path: Detector(path).init_weights(),
    "init_cfg with a prefix": lambda path: Detector(path, "backbone.").init_weights(),
    "our backbone": lambda path: build_backbone(
        "flatten-pvtv2-b0", init_cfg=pretrained(path)
    ).init_weights(),
    "init_detector": lambda path: init_detector(DETECTOR, path, device="cpu"),
    "init_model": lambda path: init_model(SEGMENTOR, path, device="cpu"),
    "DetInferencer": lambda path: DetInferencer(DETECTOR, path, device="cpu"),
    "DetInferencer without config": lambda path: DetInferencer(weights=path, device="cpu"),
    "MMSegInferencer": lambda path: MMSegInferencer(SEGMENTOR, path, device="cpu"),
    "read_checkpoint": read_checkpoint,
}


both_readers = pytest.mark.parametrize(
    "load",
    [lambda path: CheckpointLoader.load_checkpoint(path, "cpu"), read_checkpoint],
    ids=["CheckpointLoader", "read_checkpoint"],
)


def enter(entry: str, path: str) -> None:
    if entry in THEIRS:
        THEIRS[entry](init_cfg=pretrained(path)).init_weights()
    else:
        ENTRIES[entry](path)


@pytest.fixture
def served_folder(tmp_path, monkeypatch) -> Path:
    """A folder for :func:`served`, and a cache of downloads of its own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "served").mkdir()
    return tmp_path / "served"


@pytest.mark.parametrize("entry", [*ENTRIES, *THEIRS])
def test_no_entry_runs_a_command(entry, tmp_path, marker):
    path = save_command(tmp_path / "evil.pth", marker)
    refused = "comes without a config" if "without config" in entry else REFUSED
    with pytest.raises(CheckpointError, match=refused):
        enter(entry, str(path))


def test_timm_refuses_by_itself(tmp_path, marker):
    path = save_command(tmp_path / "evil.pth", marker)
    with pytest.raises(RuntimeError, match=r"posix\.system"):
        timm.models.load_checkpoint(nn.Linear(2, 2), str(path))


@pytest.mark.parametrize("form", FORMS)
@both_readers
def test_no_format_runs_a_command(form, load, tmp_path, marker):
    path = tmp_path / "evil.pth"
    FORMS[form](path, marker)
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        load(str(path))


@pytest.mark.parametrize("form", FORMS)
@both_readers
@pytest.mark.parametrize("trust", [False, True], ids=["", "trusted"])
def test_no_download_runs_a_command(form, load, trust, served_folder, marker):
    FORMS[form](served_folder / "evil.pth", marker)
    with (
        served(served_folder) as address,
        trusted_checkpoints(trust),
        pytest.raises(CheckpointError, match=rf"{address}/evil\.pth"),
    ):
        load(f"{address}/evil.pth")


def test_a_download_that_is_data_is_read(served_folder):
    torch.save(state({}), served_folder / "good.pth")
    with served(served_folder) as address:
        checkpoint = CheckpointLoader.load_checkpoint(f"{address}/good.pth", "cpu")
        assert checkpoint["state_dict"].keys() == {"weight", "bias"}
        with pytest.raises(CheckpointError, match=r"none\.pth cannot be read .*404"):
            CheckpointLoader.load_checkpoint(f"{address}/none.pth", "cpu")


@pytest.mark.parametrize("inferencer", [DetInferencer, MMSegInferencer])
def test_config_in_a_checkpoint_is_not_executed(inferencer, tmp_path, marker):
    path = save_text(tmp_path / "evil.pth", marker)
    options = dict(weights=str(path), device="cpu")
    if inferencer is MMSegInferencer:
        options["model"] = None
    with pytest.raises(CheckpointError, match=r"evil\.pth comes without a config: give the config"):
        inferencer(**options)


def test_config_in_a_trusted_checkpoint_is_used(tmp_path):
    text = "model = dict(type='NoSuchModel')"
    content = state({}) | {"meta": {"cfg": text}, "message_hub": {}}
    torch.save(content, tmp_path / "own.pth")
    with trusted_checkpoints(), pytest.raises(KeyError, match="NoSuchModel"):
        DetInferencer(weights=str(tmp_path / "own.pth"), device="cpu")


@pytest.mark.parametrize("resume", [False, True], ids=["load", "resume"])
def test_a_runner(resume, tmp_path, marker):
    path = save_command(tmp_path / "evil.pth", marker)
    cfg = make_config(tmp_path, by_epoch=True, changes={"load_from": str(path), "resume": resume})
    with pytest.raises(CheckpointError, match=REFUSED):
        Runner.from_cfg(cfg).train()


def test_resuming_executes_no_text(tmp_path, marker):
    """MMDetection 2 put its config into checkpoints, and mmengine runs it to count GPUs."""
    cfg = make_config(tmp_path, by_epoch=True)
    model = MODELS.build(cfg.model)
    path = save_text(tmp_path / "evil.pth", marker, model.state_dict())
    cfg.merge_from_dict({"load_from": str(path), "resume": True})
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 15  # It was resumed, not refused.


def test_trust_is_for_local_files_and_ends_with_the_block(tmp_path, capsys):
    path = tmp_path / "own.pth"
    torch.save(state(OwnClass()), path)
    with trusted_checkpoints():
        for _ in range(2):
            assert isinstance(load_local(path)["ema_state_dict"]["steps"], OwnClass)
        assert load_checkpoint(nn.Linear(2, 2), str(path), logger="silent")
        with trusted_checkpoints(False), pytest.raises(CheckpointError, match="OwnClass"):
            load_local(path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: checkpoint {path} holds more than data and is unpickled")
    with pytest.raises(CheckpointError, match="OwnClass"):
        load_local(path)


def test_trust_does_not_mend_a_damaged_file(tmp_path):
    path = tmp_path / "own.pth"
    path.write_bytes(b"no checkpoint")
    with trusted_checkpoints(), pytest.raises(CheckpointError, match="cannot be unpickled either"):
        load_local(path)


def test_original_mmengine_reads_as_data_too(tmp_path, marker, monkeypatch):
    """Its loader of local files, which has no second attempt, is replaced as a whole."""
    monkeypatch.delattr(module, "_safe_torch_load")
    monkeypatch.setattr(CheckpointLoader, "_schemes", dict(CheckpointLoader._schemes))
    monkeypatch.setattr(module, "load_url", module.load_url)
    monkeypatch.setattr(BaseInferencer, "_init_model", BaseInferencer._init_model)
    read_mmengine_checkpoints_as_data()
    with pytest.raises(CheckpointError, match=REFUSED):
        load_checkpoint(nn.Linear(2, 2), str(save_command(tmp_path / "evil.pth", marker)))
    torch.save(state({}), tmp_path / "good.pth")
    assert load_checkpoint(nn.Linear(2, 2), str(tmp_path / "good.pth"))["meta"]["iter"] == 5
    with pytest.raises(FileNotFoundError, match="can not be found"):
        load_checkpoint(nn.Linear(2, 2), str(tmp_path / "none.pth"))
