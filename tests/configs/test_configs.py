"""Every config parses and builds; the real ones train a step and predict on tiny data sets."""

import re
from copy import deepcopy
from functools import cache
from unittest.mock import Mock

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from shrink import CONFIGS, shrunk

from flatten_det.config import enable_auto_scale_lr, load_config

ALL = sorted(
    p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob("*.py") if "_base_" not in p.parts
)
REAL = [name for name in ALL if not name.startswith(("quickstart/", "ablation/"))]


@cache
def _parsed(name: str) -> Config:
    return Config.fromfile(CONFIGS / name)


def parsed(name: str) -> Config:
    """A config to read or to change; parsing its bases takes longer than a copy."""
    return deepcopy(_parsed(name))


@cache
def is_variant(name: str) -> bool:
    """Whether a config only changes another one's backbone, schedule or sizes."""
    return '_base_ = "./' in (CONFIGS / name).read_text()


def is_for_ci(name: str) -> bool:
    """Whether the training step of a config is left to the slow tests.

    Variants differ from their parents in what is shrunk here; of a method's other configs, one will do.
    """
    folder = name.split("/")[0]
    firsts = [n for n in sorted(REAL) if n.startswith(f"{folder}/") and not is_variant(n)]
    return folder == "cascade_mask_rcnn" or name != firsts[0]


def zoo(pattern: str) -> set[str]:
    """Names with every ``{a,b}`` group spelt out."""
    head, brace, rest = pattern.partition("{")
    if not brace:
        return {head}
    group, _, tail = rest.partition("}")
    return {head + choice + end for choice in group.split(",") for end in zoo(tail)}


# Batch sizes that learning rates are for, where a file's name does not say "<GPUs>xb<images>".
BATCH_SIZES = {
    "_lsj-100e_": 64,  # of mmdet's common/lsj-100e
    "_lsj-1536-100e_": 64,
    "_1x_cityscapes": 8,  # half of mmdet's 1e-4 at 16
    "_trees": 4,
    "_shapes": 12,
}


def _batch_size(name: str) -> int:
    """What a config's learning rate is for; else that of mmdet's schedules and of the ablations."""
    if in_name := re.search(r"_(\d+)xb(\d+)-", name):
        return int(in_name[1]) * int(in_name[2])
    return next((size for part, size in BATCH_SIZES.items() if part in name), 16)


@pytest.mark.parametrize("name", ALL)
def test_learning_rates_scale_with_the_batch_size(name):
    """By --auto-scale-lr, as mmengine does it, with two processes."""
    cfg = load_config(CONFIGS / name)
    enable_auto_scale_lr(cfg)
    runner = Mock(world_size=2, _train_dataloader=cfg.train_dataloader, param_schedulers=None)
    lr = cfg.optim_wrapper.optimizer.lr
    wrapper = OptimWrapper(torch.optim.AdamW([torch.zeros(1)], lr=lr))
    Runner.scale_lr(runner, wrapper, cfg.auto_scale_lr)
    batch_size = 2 * cfg.train_dataloader.batch_size
    assert wrapper.get_lr()["lr"] == [pytest.approx(lr * batch_size / _batch_size(name))]


def test_the_zoo_is_complete():
    ade, coco = "_ade20k-512x512.py", "_fpn_1x_coco.py"
    expected = [
        *(
            f"{folder}_{backbone}{coco}"
            for folder in ("retinanet/retinanet", "mask_rcnn/mask-rcnn")
            for backbone in (
                "flatten-pvt-{t,s,m,l}",
                "flatten-pvtv2-b{0,1,2,3,4}",
                "pvt-{t,s}",
                "pvtv2-b{0,1,2}",
            )
        ),
        "mask_rcnn/mask-rcnn_{flatten-,}swin-{t,s}_fpn_{1x,3x}_coco.py",
        "mask_rcnn/mask-rcnn_flatten-cswin-{t,s}_fpn_{1x,3x}_coco.py",
        "mask_rcnn/mask-rcnn_flatten-swin-t_fpn_lsj-{,1536-}100e_coco.py",
        "mask_rcnn/mask-rcnn_flatten-swin-t_fpn_1x_cityscapes.py",
        "mask_rcnn/mask-rcnn_flatten-deit-t_sfp_1x_coco.py",
        "cascade_mask_rcnn/cascade-mask-rcnn_flatten-swin-t_fpn_1x_coco.py",
        "cascade_mask_rcnn/cascade-mask-rcnn_flatten-swin-{t,s,b}_fpn_3x_coco.py",
        "cascade_mask_rcnn/cascade-mask-rcnn_flatten-cswin-{t,s}_fpn_3x_coco.py",
        "semantic_fpn/flatten-pvt-{t,s,m,l}_semantic-fpn_4xb4-80k" + ade,
        "semantic_fpn/flatten-pvtv2-b{0,1,2,3,4}_semantic-fpn_4xb4-80k" + ade,
        "semantic_fpn/pvt-{t,s}_semantic-fpn_4xb4-80k" + ade,
        "semantic_fpn/flatten-pvt-t_semantic-fpn_8xb1-80k_cityscapes-1024x2048.py",
        "upernet/flatten-{swin,cswin}-{t,s,b}_upernet_8xb2-160k" + ade,
        "upernet/{swin,cswin}-{t,s}_upernet_8xb2-160k" + ade,
        "upernet/flatten-swin-b-384_upernet_8xb2-160k_ade20k-640x640.py",
        "upernet/flatten-swin-t_upernet_8xb1-160k_cityscapes-1024x2048.py",
        "segformer/flatten-pvtv2-b2_segformer_8xb1-160k_cityscapes-1024x2048.py",
        "dino/dino-4scale_flatten-swin-t_8xb2-12e_coco.py",
        "deformable_detr/deformable-detr_flatten-pvtv2-b2_16xb2-50e_coco.py",
        "mask2former/mask2former_flatten-swin-t_8xb2-lsj-50e_coco{,-panoptic}.py",
        "mask2former/flatten-swin-t_mask2former_8xb2-160k" + ade,
    ]
    assert set(REAL) == set().union(*map(zoo, expected))


@pytest.fixture
def data_root(request, coco_folder, ade20k_folder, cityscapes_folder):
    """The data set that a config's name ends with."""
    name = request.getfixturevalue("name")
    if "cityscapes" in name:
        return cityscapes_folder
    return ade20k_folder if "ade20k" in name else coco_folder


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if is_for_ci(n) else []) for n in REAL],
)
def test_one_training_step_and_one_prediction(name, data_root, tmp_path):
    cfg = shrunk(parsed(name), data_root, tmp_path)
    cfg.experiment_name = tmp_path.name
    runner = Runner.from_cfg(cfg)
    model = runner.model
    before = {n: p.detach().clone() for n, p in model.backbone.named_parameters()}
    runner.train()
    logged = runner.message_hub.get_scalar("train/loss").current()
    assert torch.isfinite(torch.tensor(logged))
    moved = [n for n, p in model.backbone.named_parameters() if not torch.equal(p, before[n])]
    # Not all: a warm-up's first step is lost in the rounding of norms that start at 1.
    assert len(moved) > 0.5 * len(before)
    assert runner.iter == 1

    batch = next(iter(runner.build_dataloader(cfg.test_dataloader)))
    model.eval()
    with torch.no_grad():
        samples = model.test_step(batch)
    assert samples
    for sample in samples:
        if cfg.default_scope == "mmdet":
            if "panoptic" in name:
                assert sample.pred_panoptic_seg.sem_seg.shape[1:] == sample.ori_shape
            found = sample.pred_instances
            assert found.bboxes.shape == (len(found.scores), 4)
            assert found.bboxes.isfinite().all()
            if "mask" in name:
                assert found.masks.shape[1:] == sample.ori_shape
        else:
            assert sample.pred_sem_seg.data.shape[1:] == sample.ori_shape
            assert sample.seg_logits.data.shape[0] == (19 if "cityscapes" in name else 150)


@pytest.mark.parametrize("name", REAL)
def test_workers_stay_from_epoch_to_epoch(name):
    loaders = [parsed(name)[f"{split}_dataloader"] for split in ("train", "val", "test")]
    assert all(loader.num_workers and loader.persistent_workers for loader in loaders)


@pytest.mark.parametrize("name", REAL)
def test_recipe(name):
    """AdamW without a left-over of SGD, drop path, and weights that belong to the backbone's name."""
    cfg = parsed(name)
    assert cfg.optim_wrapper.optimizer.type == "AdamW"
    assert "momentum" not in cfg.optim_wrapper.optimizer
    backbone = cfg.model.backbone
    assert 0.1 <= backbone.drop_path_rate <= 0.6
    checkpoint = backbone.init_cfg.checkpoint
    if backbone.get("attn_types") == "SSSS":
        assert "flatten" not in name
        assert checkpoint.startswith("https://github.com/")
        return
    short = next(part for part in name.split("/")[1].split("_") if part.startswith("flatten-"))
    assert checkpoint == f"checkpoints/{short.replace('-', '_')}.pth"


@pytest.mark.parametrize("name", [n for n in REAL if "detr" not in n and "dino" not in n])
def test_norms_and_positions_do_not_decay(name):
    keys = parsed(name).optim_wrapper.paramwise_cfg.custom_keys
    assert keys["positional_encoding"].decay_mult == 0
    assert any("norm" in key and value.decay_mult == 0 for key, value in keys.items())


@pytest.mark.parametrize(
    ("name", "learning_rate"),
    [
        ("retinanet/retinanet_flatten-pvt-t_fpn_1x_coco.py", 1e-4),
        ("mask_rcnn/mask-rcnn_flatten-pvt-t_fpn_1x_coco.py", 2e-4),
        ("mask_rcnn/mask-rcnn_flatten-swin-t_fpn_1x_coco.py", 1e-4),
        ("cascade_mask_rcnn/cascade-mask-rcnn_flatten-swin-t_fpn_3x_coco.py", 1e-4),
        ("semantic_fpn/flatten-pvt-t_semantic-fpn_4xb4-80k_ade20k-512x512.py", 1e-4),
        ("upernet/flatten-swin-t_upernet_8xb2-160k_ade20k-512x512.py", 6e-5),
    ],
)
def test_published_learning_rates(name, learning_rate):
    assert parsed(name).optim_wrapper.optimizer.lr == learning_rate


@pytest.mark.parametrize("name", ALL)
def test_parses_and_builds_without_importing_flatten_det_by_hand(name):
    cfg = parsed(name)
    assert "flatten_det" in cfg.custom_imports["imports"]
    cfg.model.backbone.pop("init_cfg", None)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device("meta"):
        model = MODELS.build(cfg.model)
    assert type(model.backbone).__name__.startswith("FLatten")
    out_indices = model.backbone.out_indices
    dims = [model.backbone.feature_dims[i] for i in out_indices]
    head = model.neck if getattr(model, "neck", None) else getattr(model, "decode_head", None)
    expected = getattr(head, "in_channels", dims)
    assert list(expected) == dims
