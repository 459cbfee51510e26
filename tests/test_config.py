"""Command-line options on configs."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from flatten_det.config import (
    build_runner,
    datasets_under_test,
    enable_auto_scale_lr,
    load_config,
    type_name,
)
from flatten_det.errors import UserError
from flatten_det.train.optimizer import enable_amp, use_amp_of_cpu
from flatten_det.train.resume import resume_from


def write(folder: Path, text: str) -> Path:
    path = folder / "my-config.py"
    path.write_text(text)
    return path


def test_work_dir_command_line_before_config_before_name(tmp_path):
    path = write(tmp_path, "work_dir = 'own'")
    assert load_config(path, work_dir="given").work_dir == "given"
    assert load_config(path).work_dir == "own"
    assert Path(load_config(write(tmp_path, "a = 1")).work_dir) == Path("work_dirs/my-config")


def test_options_override_nested_fields(tmp_path):
    path = write(tmp_path, "a = dict(b=[dict(c=1), dict(c=2)])")
    assert load_config(path, {"a.b.1.c": 3}).a.b[1].c == 3
    with pytest.raises(UserError, match=r"--cfg-options does not fit config file .*my-config\.py"):
        load_config(path, {"a.b.2.c": 3})


@pytest.mark.parametrize(
    "text",
    ["a = (", "a = unknown", "_base_ = './missing.py'", "custom_imports = dict(imports='x')"],
)
def test_broken_config_is_named(tmp_path, text):
    with pytest.raises(UserError, match=r"my-config\.py cannot be read: \w+Error") as caught:
        load_config(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_amp_on_cpu_casts_to_bf16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = Config({"optim_wrapper": {"type": "AmpOptimWrapper", "loss_scale": 512.0}})
    enable_amp(cfg)
    assert cfg.optim_wrapper == {"type": "CPUAmpOptimWrapper"}


@pytest.mark.parametrize(
    ("wrapper", "dtype", "expected"),
    [
        ({}, "fp16", {"dtype": "float16"}),
        ({}, "bf16", {"dtype": "bfloat16"}),
        ({"dtype": "float16", "loss_scale": 8.0}, None, {"dtype": "float16", "loss_scale": 8.0}),
        ({"dtype": "float16", "loss_scale": 8.0}, "bf16", {"dtype": "bfloat16"}),
        ({"type": "CPUAmpOptimWrapper"}, "fp16", {"dtype": "float16"}),
        ({"type": "AmpOptimWrapper", "use_fsdp": True}, None, {}),
    ],
)
def test_amp_dtype_on_cpu(monkeypatch, wrapper, dtype, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = Config({"optim_wrapper": wrapper})
    enable_amp(cfg, dtype)
    assert cfg.optim_wrapper == {"type": "CPUAmpOptimWrapper", **expected}


@pytest.mark.parametrize(
    ("wrapper", "dtype", "expected"),
    [
        ({}, "fp16", {"dtype": "float16", "loss_scale": "dynamic"}),
        ({}, "bf16", {"dtype": "bfloat16", "loss_scale": {"enabled": False}}),
        ({"loss_scale": 8.0}, "fp16", {"dtype": "float16", "loss_scale": 8.0}),
        ({"loss_scale": 8.0}, None, {"loss_scale": 8.0}),
        ({"dtype": "bfloat16"}, None, {"dtype": "bfloat16", "loss_scale": "dynamic"}),
        ({"type": "AmpOptimWrapper"}, None, {"loss_scale": "dynamic"}),
    ],
)
@pytest.mark.parametrize("has_bf16", [True, False])
def test_amp_dtype_on_cuda(monkeypatch, wrapper, dtype, expected, has_bf16):
    pretend_cuda(monkeypatch, has_bf16)
    cfg = Config({"optim_wrapper": wrapper})
    enable_amp(cfg, dtype)
    assert cfg.optim_wrapper == {"type": "AmpOptimWrapper", **expected}


@pytest.mark.parametrize(
    ("has_bf16", "expected"),
    [
        (True, {"dtype": "bfloat16", "loss_scale": {"enabled": False}}),
        (False, {"dtype": "float16", "loss_scale": "dynamic"}),
    ],
)
@pytest.mark.parametrize("kind", ["OptimWrapper", "CPUAmpOptimWrapper"])
def test_amp_on_cuda_is_bf16_where_the_gpu_has_it(monkeypatch, kind, has_bf16, expected):
    pretend_cuda(monkeypatch, has_bf16)
    cfg = Config({"optim_wrapper": {"type": kind}})
    enable_amp(cfg)
    assert cfg.optim_wrapper == {"type": "AmpOptimWrapper", **expected}


def pretend_cuda(monkeypatch, has_bf16: bool) -> None:
    """A GPU that computes in bf16, or only emulates it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: has_bf16 or including_emulation,
    )


def test_only_mmengines_wrapper_is_replaced_on_a_cpu():
    for config in ({}, {"optim_wrapper": {"optimizer": {"type": "SGD"}}}):
        cfg = Config(config)
        use_amp_of_cpu(cfg)
        assert cfg.to_dict() == config


def test_amp_refuses_other_wrappers():
    cfg = Config({"optim_wrapper": {"type": "ApexOptimWrapper"}})
    with pytest.raises(UserError, match="not with this config's ApexOptimWrapper"):
        enable_amp(cfg)


def test_auto_scale_lr_needs_a_base_batch_size():
    cfg = Config({"auto_scale_lr": {"enable": False, "base_batch_size": 16}})
    enable_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr.enable is True
    for incomplete in ({}, {"auto_scale_lr": {"enable": False}}):
        with pytest.raises(UserError, match="base_batch_size"):
            enable_auto_scale_lr(Config(incomplete))


def test_resume_from_nothing(tmp_path):
    cfg = Config({"work_dir": str(tmp_path)})
    with pytest.raises(UserError, match=f"no checkpoint to resume in work dir {tmp_path}"):
        resume_from(cfg, "auto")


def test_datasets_under_test_looks_into_wrappers():
    inner = {"type": "CocoDataset", "pipeline": []}
    mixed = {
        "type": "MultiImageMixDataset",
        "dataset": inner,
        "pipeline": [{"type": "PackDetInputs"}],
    }
    wrapped = {"datasets": [{"dataset": inner}, {"dataset": {"datasets": [inner]}}, mixed]}
    cfg = Config({"test_dataloader": {"dataset": wrapped}})
    assert datasets_under_test(cfg) == [inner, inner, mixed]


def test_runner_type_is_honoured(tmp_path):
    with pytest.raises(KeyError, match="NoSuchRunner"):
        build_runner(Config({"runner_type": "NoSuchRunner", "work_dir": str(tmp_path)}))


def test_classes_in_place_of_their_names(tmp_path):
    """mmengine's pure-Python configs."""
    lines = [
        "from mmengine.optim import OptimWrapper",
        "from mmdet.models import RetinaNet",
        "model = dict(type=RetinaNet)",
        "optim_wrapper = dict(type=OptimWrapper)",
        "auto_scale_lr = dict(base_batch_size=4)",
        "train_dataloader = dict(dataset=dict(type='mmdet.CocoDataset'))",
    ]
    cfg = load_config(write(tmp_path, "\n".join(lines)), {"model.neck.type": "FPN"})
    assert cfg.default_scope == "mmdet"
    enable_amp(cfg, "bf16")
    enable_auto_scale_lr(cfg)
    assert "AmpOptimWrapper" in cfg.optim_wrapper.type
    assert cfg.auto_scale_lr.enable
    parts = (cfg.model, cfg.model.neck, cfg.train_dataloader.dataset, {})
    assert list(map(type_name, parts)) == ["RetinaNet", "FPN", "CocoDataset", ""]


@pytest.mark.parametrize("name", ["a.py", "a.json"])
def test_config_with_a_byte_order_mark(tmp_path, name):
    path = tmp_path / name
    path.write_text("{}", encoding="utf-8-sig")
    with pytest.raises(UserError, match=r"a byte order mark .*: save it as UTF-8 without one"):
        load_config(path)
