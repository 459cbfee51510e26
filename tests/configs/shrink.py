"""Real configs at a size that a test can afford: only sizes, paths and the schedule change."""

from pathlib import Path

from mmengine.config import Config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SCALE, CROP = (96, 64), (64, 64)


def shrunk(config: Path, data_root: Path, work_dir: Path) -> Config:
    """The config for one training step on the data set at ``data_root``, from random weights."""
    cfg = Config.fromfile(config)
    cfg.work_dir = str(work_dir)
    cfg.model.backbone.init_cfg = None
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        loader = cfg[name]
        loader.update(num_workers=0, persistent_workers=False)
        # MMSegmentation does not pad images of different sizes into one test batch.
        loader.batch_size = 2 if name == "train_dataloader" else 1
        loader.dataset.data_root = f"{data_root}/"
        for step in loader.dataset.pipeline:
            _shrink_step(step)
    for name in ("val_evaluator", "test_evaluator"):
        if "ann_file" in cfg[name]:
            cfg[name].ann_file = str(data_root / "annotations" / "instances_val2017.json")
    if "size" in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = CROP
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=1, val_interval=10)
    return cfg


def _shrink_step(step: dict) -> None:
    if "scale" in step:
        step["scale"] = SCALE
    if "crop_size" in step:
        step["crop_size"] = CROP
