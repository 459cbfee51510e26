"""Real configs at a size that a test can afford: depths, sizes, paths and the schedule change."""

from pathlib import Path

from mmengine.config import Config
from mmengine.registry import MODELS

import flatten_det  # noqa: F401  registers the backbones

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SCALE, CROP = (128, 96), (64, 64)


def shrunk(cfg: Config, data_root: Path, work_dir: Path) -> Config:
    """Change a config, in place: one training step on the data at ``data_root`` from random weights."""
    cfg.work_dir = str(work_dir)
    backbone = cfg.model.backbone
    backbone.init_cfg = None
    named = backbone.arch if isinstance(backbone.arch, str) else "tiny"
    stages = len(MODELS.get(backbone.type).arch_zoo[named]["depths"])
    backbone.arch = dict(base=named, depths=(1,) * stages)
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        loader = cfg[name]
        loader.update(num_workers=0, persistent_workers=False)
        # MMSegmentation does not pad images of different sizes into one test batch.
        loader.batch_size = 2 if name == "train_dataloader" else 1
        dataset = loader.dataset
        while "pipeline" not in dataset:  # RepeatDataset
            dataset = dataset.dataset
        dataset.data_root = f"{data_root}/"
        for step in _flat(dataset.pipeline):
            _shrink_step(step)
    for name in ("val_evaluator", "test_evaluator"):
        # Cityscapes' own metric needs a package of its own.
        evaluator = cfg[name][0] if isinstance(cfg[name], list) else cfg[name]
        if "ann_file" in evaluator:
            evaluator.ann_file = str(data_root / cfg.val_dataloader.dataset.ann_file)
        if "seg_prefix" in evaluator:
            evaluator.seg_prefix = str(data_root / cfg.val_dataloader.dataset.data_prefix.seg)
        cfg[name] = evaluator
    preprocessor = cfg.model.data_preprocessor
    if preprocessor.get("size"):
        preprocessor.size = CROP
    for augment in preprocessor.get("batch_augments") or ():
        augment.size = CROP
    _shrink_regions(cfg.model)
    _shrink_widths(cfg.model)
    if cfg.model.type == "DINO":  # it picks its queries among the tokens, and there are few
        cfg.model.num_queries = 20
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=1, val_interval=10)
    cfg.default_hooks.checkpoint.save_last = False  # Half a gigabyte that nobody reads.
    return cfg


def _shrink_regions(model: Config) -> None:
    """Few regions for the heads of two-stage detectors, whose time goes with them."""
    training, test = model.get("train_cfg") or {}, model.get("test_cfg") or {}
    stages = training.get("rcnn", [])
    for stage in stages if isinstance(stages, list) else [stages]:
        stage.sampler.num = 32
    for proposals in (training.get("rpn_proposal"), test.get("rpn")):
        if proposals:
            proposals.max_per_img = 64


def _shrink_widths(model: Config) -> None:
    """Few channels within the heads that have most of a model's parameters: fully connected and UPerNet's."""
    heads = model.get("roi_head", {}).get("bbox_head", [])
    for head in heads if isinstance(heads, list) else [heads]:
        head.fc_out_channels = 32
    for name in ("decode_head", "auxiliary_head"):
        if model.get(name, {}).get("type") in ("UPerHead", "FCNHead"):
            model[name].channels = 32


def _flat(pipeline: list) -> list[dict]:
    """The steps of a pipeline and of the choices in it."""
    steps = []
    for step in pipeline:
        branches = step.get("transforms", []) if step["type"] == "RandomChoice" else []
        steps += [step, *(inner for branch in branches for inner in _flat(branch))]
    return steps


def _shrink_step(step: dict) -> None:
    if "scale" in step:
        # A list of scales is the range or the choice of a random resizing.
        step["scale"] = [SCALE, SCALE] if isinstance(step["scale"], list) else SCALE
    if "scales" in step:
        step["scales"] = [SCALE, CROP]
    if "crop_size" in step:
        step["crop_size"] = CROP
