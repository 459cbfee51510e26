"""DINO and Mask2Former learn Shapes without a compiled mmcv, from the zoo's configs."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmcv import _ext
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from panopticapi.utils import rgb2id
from shrink import CONFIGS, shrunk

import flatten_det
from flatten_det.data.shapes import CLASSES
from flatten_det.predict.infer import InferOptions, infer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DINO = "dino/dino-4scale_flatten-swin-t_8xb2-12e_coco.py"
INSTANCE = "mask2former/mask2former_flatten-swin-t_8xb2-lsj-50e_coco.py"
PANOPTIC = "mask2former/mask2former_flatten-swin-t_8xb2-lsj-50e_coco-panoptic.py"


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data") / "shapes"


def on_shapes(name: str, data_root: Path, work_dir: Path, iterations: int) -> Config:
    """A zoo config at test size with Shapes as its data."""
    cfg = shrunk(Config.fromfile(CONFIGS / name), data_root, work_dir)
    cfg.experiment_name = work_dir.name
    kind = "ShapesPanopticDataset" if name == PANOPTIC else "ShapesDetDataset"
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset = dict(
            type=kind,
            data_root=str(data_root),
            split="train" if loader is cfg.train_dataloader else "val",
            image_size=96,
            num_images=dict(train=4, val=4),
            object_size=(24, 48),
            pipeline=loader.dataset.pipeline,
        )
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        if name == PANOPTIC:
            evaluator.update(
                ann_file=f"{data_root}/annotations/panoptic_val.json",
                seg_prefix=f"{data_root}/val/panoptic",
            )
        else:
            evaluator.ann_file = f"{data_root}/annotations/instances_val.json"
    _set_classes(cfg.model)
    cfg.train_dataloader.sampler = dict(type="InfiniteSampler", shuffle=True)
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=iterations, val_interval=iterations)
    cfg.default_hooks.checkpoint = dict(type="CheckpointHook", by_epoch=False, interval=iterations)
    cfg.log_processor = dict(type="LogProcessor", by_epoch=False)
    cfg.randomness = dict(seed=0)
    return cfg


def _set_classes(model) -> None:
    if model.type == "DINO":
        model.bbox_head.num_classes = len(CLASSES)
        model.test_cfg.max_per_img = model.num_queries
        return
    stuff = 1 if model.panoptic_head.num_stuff_classes else 0
    for head in (model.panoptic_head, model.panoptic_fusion_head):
        head.num_things_classes, head.num_stuff_classes = len(CLASSES), stuff
    weights = [1.0] * (len(CLASSES) + stuff) + [0.1]
    model.panoptic_head.loss_cls.class_weight = weights


class Losses(Hook):
    """Keeps the losses of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.steps.append({name: value.item() for name, value in outputs.items()})


def train(cfg: Config) -> list[dict[str, float]]:
    """Train and return the losses of every step."""
    runner, losses = Runner.from_cfg(cfg), Losses()
    runner.register_hook(losses)
    runner.train()
    return losses.steps


@pytest.mark.parametrize(("name", "iterations"), [(DINO, 4), (INSTANCE, 25), (PANOPTIC, 4)])
def test_losses_are_finite_and_fall(name, iterations, data_root, tmp_path):
    assert Path(_ext.__file__).is_relative_to(Path(flatten_det.__file__).parent)
    steps = train(on_shapes(name, data_root, tmp_path, iterations))
    assert len(steps) == iterations
    for step in steps:
        assert len(step) > 3
        assert np.isfinite(list(step.values())).all()
    if iterations >= 25:
        first, last = (np.mean([s["loss"] for s in part]) for part in (steps[:5], steps[-5:]))
        print(f"{name}: loss {first:.2f} -> {last:.2f}")
        assert last < 0.9 * first


@pytest.mark.parametrize("least_score", [0.0, 1.0])
def test_panoptic_prediction_as_files(least_score, data_root, tmp_path):
    cfg = on_shapes(PANOPTIC, data_root, tmp_path, 1)
    cfg.model.test_cfg.update(object_mask_thr=least_score, iou_thr=0.0)
    init_default_scope("mmdet")
    DATASETS.build(cfg.val_dataloader.dataset)
    options = InferOptions(str(tmp_path))
    torch.manual_seed(0)  # Of random weights, some see nothing but void.
    infer(cfg, None, [str(data_root / "val" / "images")], options, device="cpu", batch_size=2)
    found = sorted((tmp_path / "preds").glob("*.json"))
    assert len(found) == 4
    for path in found:
        content = json.loads(path.read_text())
        ids = rgb2id(cv2.imread(str(path.with_name(content["panoptic_map"])))[..., ::-1])
        assert ids.shape == (content["height"], content["width"]) == (96, 96)
        areas = {segment["id"]: segment["area"] for segment in content["segments"]}
        assert bool(areas) == (least_score == 0)
        for id_, area in zip(*np.unique(ids, return_counts=True), strict=True):
            assert id_ == 0 or areas.pop(int(id_)) == area
        assert not areas
        for segment in content["segments"]:
            assert segment["class_name"] == (*CLASSES, "background")[segment["label"]]
        assert (tmp_path / "vis" / f"{path.stem}.jpg").is_file()
