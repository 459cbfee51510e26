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


CPU, CUDA = {"type": "CPUAmpOptimWrapper"}, {"type": "AmpOptimWrapper"}
FP16, BF16 = {"dtype": "float16"}, {"dtype": "bfloat16"}
SCALED, DYNAMIC, NO_SCALE = ({"loss_scale": s} for s in (8.0, "dynamic", {"enabled": False}))
ON_CPU = [
    (CUDA | SCALED, None, {}),
    ({}, "fp16", FP16),
    ({}, "bf16", BF16),
    (FP16 | SCALED, None, FP16 | SCALED),
    (FP16 | SCALED, "bf16", BF16),
    (CPU, "fp16", FP16),
    (CUDA | {"use_fsdp": True}, None, {}),
]
ON_CUDA = [
    ({}, "fp16", FP16 | DYNAMIC),
    ({}, "bf16", BF16 | NO_SCALE),
    (SCALED, "fp16", FP16 | SCALED),
    (SCALED, None, SCALED),
    (BF16, None, BF16 | DYNAMIC),
    (CUDA, None, DYNAMIC),
]
OF_GPU = {"with bf16": BF16 | NO_SCALE, "without": FP16 | DYNAMIC}


@pytest.mark.parametrize(
    ("gpu", "wrapper", "dtype", "expected"),
    [
        *((None, *case) for case in ON_CPU),
        *((gpu, *case) for gpu in OF_GPU for case in ON_CUDA),
        *((gpu, w, None, e) for gpu, e in OF_GPU.items() for w in ({"type": "OptimWrapper"}, CPU)),
    ],
    ids=str,
)
def test_what_amp_makes_of_a_wrapper(monkeypatch, gpu, wrapper, dtype, expected):
    """Without a dtype of the user's or the config's, it is what a GPU has, and does not only emulate."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: gpu == "with bf16" or including_emulation,
    )
    cfg = Config({"optim_wrapper": dict(wrapper)})
    enable_amp(cfg, dtype)
    assert cfg.optim_wrapper == (CUDA if gpu else CPU) | expected


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
