"""Every config parses and builds; the real ones train a step and predict on tiny data sets."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from shrink import CONFIGS, shrunk

ALL = sorted(
    p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob("*.py") if "_base_" not in p.parts
)
REAL = [name for name in ALL if not name.startswith("quickstart/")]


def test_the_configs_of_the_foundation_are_there():
    assert {
        "mask_rcnn/mask-rcnn_flatten-pvt-t_fpn_1x_coco.py",
        "mask_rcnn/mask-rcnn_flatten-swin-t_fpn_1x_coco.py",
        "retinanet/retinanet_flatten-pvt-t_fpn_1x_coco.py",
        "semantic_fpn/flatten-pvt-t_semantic-fpn_4xb4-80k_ade20k-512x512.py",
        "upernet/flatten-swin-t_upernet_8xb2-160k_ade20k-512x512.py",
    } <= set(REAL)


@pytest.mark.parametrize("name", REAL)
def test_one_training_step_and_one_prediction(name, coco_folder, ade20k_folder, tmp_path):
    data_root = coco_folder if name.endswith("_coco.py") else ade20k_folder
    cfg = shrunk(CONFIGS / name, data_root, tmp_path)
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
        if name.endswith("_coco.py"):
            found = sample.pred_instances
            assert found.bboxes.shape == (len(found.scores), 4)
            assert found.bboxes.isfinite().all()
            if "mask" in name:
                assert found.masks.shape[1:] == sample.ori_shape
        else:
            assert sample.pred_sem_seg.data.shape[1:] == sample.ori_shape
            assert sample.seg_logits.data.shape[0] == 150


@pytest.mark.parametrize("name", REAL)
def test_recipe(name):
    """AdamW, no decay for norms and position parameters, drop path, official weights."""
    cfg = Config.fromfile(CONFIGS / name)
    assert cfg.optim_wrapper.optimizer.type == "AdamW"
    assert "momentum" not in cfg.optim_wrapper.optimizer
    undecayed = cfg.optim_wrapper.paramwise_cfg.custom_keys
    assert all(undecayed[key].decay_mult == 0 for key in ("norm", "positional_encoding"))
    backbone = cfg.model.backbone
    assert backbone.drop_path_rate == (0.1 if "pvt" in name else 0.2 if "mask" in name else 0.3)
    family = "pvt" if "pvt" in name else "swin"
    assert backbone.init_cfg.checkpoint == f"checkpoints/flatten_{family}_t.pth"
    learning_rate = {"retinanet": 1e-4, "semantic_fpn": 1e-4, "upernet": 6e-5}
    expected = learning_rate.get(name.split("/")[0], 2e-4 if family == "pvt" else 1e-4)
    assert cfg.optim_wrapper.optimizer.lr == expected


@pytest.mark.parametrize("name", ALL)
def test_parses_and_builds_without_importing_flatten_det_by_hand(name):
    cfg = Config.fromfile(CONFIGS / name)
    assert cfg.custom_imports["imports"] == ["flatten_det"]
    cfg.model.backbone.pop("init_cfg", None)
    from mmengine.registry import MODELS

    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    assert type(model.backbone).__name__.startswith("FLatten")
