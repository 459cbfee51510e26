"""The frameworks' own inference functions, in fresh processes that never import flatten_det by hand."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart"
DETECTION = QUICKSTART / "mask-rcnn_flatten-pvt-nano_fpn_shapes.py"
SEGMENTATION = QUICKSTART / "flatten-pvt-nano_semantic-fpn_shapes.py"

# Of a framework in one process, as importing it takes most of the time.
SCRIPTS = {
    DETECTION: """
from mmdet.apis import DetInferencer, inference_detector, init_detector
for weights in (checkpoint, None):
    model = init_detector(config, weights, device="cpu")
    found = inference_detector(model, image).pred_instances
    assert found.bboxes.shape == (len(found.scores), 4)
    assert found.masks.shape[1:] == (90, 70)
    if weights:
        assert model.dataset_meta["classes"][0] == "circle"
        assert model.backbone.pos_embed1.mean().item() == 7
for weights in (checkpoint, None):
    result = DetInferencer(config, weights, device="cpu")(image, no_save_vis=True)
    assert set(result["predictions"][0]) >= {"bboxes", "labels", "scores", "masks"}
""",
    SEGMENTATION: """
from mmseg.apis import MMSegInferencer, inference_model, init_model
for weights in (checkpoint, None):
    model = init_model(config, weights, device="cpu")
    labels = inference_model(model, image).pred_sem_seg.data
    assert labels.shape == (1, 90, 70) and labels.max() < 7
    if weights:
        assert model.dataset_meta["classes"][1] == "circle"
        assert model.backbone.pos_embed1.mean().item() == 7
for weights in (checkpoint, None):
    result = MMSegInferencer(config, weights, device="cpu")(image)
    assert result["predictions"].shape == (90, 70)
""",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An image and a checkpoint of each config, as a Runner saves it; position grids are all 7."""
    from flatten_det.data import ShapesDetDataset, ShapesSegDataset

    folder = tmp_path_factory.mktemp("apis")
    pixels = np.random.default_rng(0).integers(0, 255, (90, 70, 3), np.uint8)
    cv2.imwrite(str(folder / "image.png"), pixels)
    for config, dataset in ((DETECTION, ShapesDetDataset), (SEGMENTATION, ShapesSegDataset)):
        cfg = Config.fromfile(config)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        torch.nn.init.constant_(model.backbone.pos_embed1, 7)
        meta = {"dataset_meta": dataset.METAINFO}
        torch.save({"state_dict": model.state_dict(), "meta": meta}, folder / f"{config.stem}.pth")
    return folder


@pytest.mark.parametrize("config", SCRIPTS, ids=["mmdet", "mmseg"])
def test_works_with_a_config_alone(config, files, tmp_path):
    arguments = dict(
        config=str(config),
        checkpoint=str(files / f"{config.stem}.pth"),
        image=str(files / "image.png"),
    )
    lines = [f"{key} = {value!r}" for key, value in arguments.items()]
    script = "\n".join([*lines, SCRIPTS[config]])
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
