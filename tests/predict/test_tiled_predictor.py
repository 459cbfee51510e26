"""Tiles through the whole engine, with a detector that finds coloured rectangles exactly."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_cases import make_truth
from colour_finder import HEIGHT, WIDTH, ColourFinder, config, paint
from pycocotools import mask as coco_mask

from flatten_det.errors import UserError
from flatten_det.predict.evaluate import evaluate
from flatten_det.predict.inputs import GivenImage
from flatten_det.predict.tiles import TiledPredictor, Tiling, at_full_size


def rectangles(rng: np.random.Generator) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Labels and boxes with a pixel and more between them; one is larger than a tile of 200 px."""
    found = [(0, (150, 20, 480, 90)), (1, (300, 120, 340, 490))]
    for _ in range(400):
        width, height = rng.integers(3, 75, 2)
        x, y = rng.integers(0, WIDTH - width), rng.integers(0, HEIGHT - height)
        box = tuple(map(int, (x, y, x + width, y + height)))
        if all(
            box[0] > other[2] or box[2] < other[0] or box[1] > other[3] or box[3] < other[1]
            for _, other in found
        ):
            found.append((int(rng.integers(2)), box))
    assert len(found) > 40
    return found


def given(path: str) -> GivenImage:
    return GivenImage(path, path)


def predictor(tiling: Tiling, **test_cfg) -> TiledPredictor:
    cfg = config(**({"max_per_img": 1000} | test_cfg))
    return TiledPredictor(cfg, None, "cpu", tiling, full_size=True)


@pytest.mark.parametrize("tiling", [Tiling(200, 0.4), Tiling(160, 0.5), Tiling(1000)])
@pytest.mark.parametrize("seed", range(3))
def test_every_object_once_and_as_a_whole(tmp_path, tiling, seed):
    objects = rectangles(np.random.default_rng(seed))
    image = given(paint(tmp_path / "image.png", objects))
    (predicted,) = predictor(tiling)([image], batch_size=4)
    found = predicted.sample.pred_instances
    boxes = [tuple(map(int, box)) for box in found.bboxes.tolist()]
    assert sorted(zip(found.labels.tolist(), boxes, strict=True)) == sorted(objects)
    for (left, top, right, bottom), rle in zip(boxes, found.masks, strict=True):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[top:bottom, left:right] = True
        np.testing.assert_array_equal(coco_mask.decode(rle), mask)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_batches_of_tiles_and_progress(tmp_path):
    done = []
    cfg = config(max_per_img=10)
    path = paint(tmp_path / "image.png", [(0, (5, 5, 50, 50))])
    tell = lambda *progress: done.append(progress)  # noqa: E731
    tiled = TiledPredictor(cfg, None, "cpu", Tiling(300, 0), tell, full_size=True)
    (predicted,) = tiled([given(path)], batch_size=4)
    assert predicted.milliseconds > 0
    assert tiled.model.batch_sizes == [4, 2]
    assert done == [(count, 6) for count in range(7)]


@pytest.mark.parametrize("test_cfg", [{"max_per_img": 7}, {"rcnn": {"max_per_img": 7}, "rpn": {}}])
def test_as_many_as_the_config_allows(tmp_path, test_cfg):
    path = paint(tmp_path / "image.png", rectangles(np.random.default_rng(0)))
    cfg = config(**test_cfg)
    (predicted,) = TiledPredictor(cfg, None, "cpu", Tiling(200), full_size=True)([given(path)])
    assert len(predicted.sample.pred_instances) == 7


def test_nothing_to_find_and_a_broken_image(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    tiled = predictor(Tiling(200))
    image = given(paint(tmp_path / "image.png", []))
    (predicted,) = tiled([given(str(broken)), image])
    found = predicted.sample.pred_instances
    assert len(found) == 0
    assert found.masks == []
    assert "broken.png cannot be decoded" in tiled.broken[0]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tiling", [Tiling(200, 0.4), None])
def test_evaluation_at_full_size(tmp_path, monkeypatch, tiling):
    """Of two images of a COCO file; the whole ones are the model's own business."""
    sizes = set()
    forward = ColourFinder.forward

    def note(model, inputs, data_samples, mode="predict"):
        sizes.update(image.shape[1:] for image in inputs)
        return forward(model, inputs, data_samples, mode)

    monkeypatch.setattr(ColourFinder, "forward", note)
    truth = [rectangles(np.random.default_rng(seed)) for seed in range(2)]
    for number, objects in enumerate(truth, start=1):  # Exact colours, by the names of make_truth.
        Path(paint(tmp_path / f"{number}.png", objects)).rename(tmp_path / f"{number}.jpg")
    boxes = [
        (label + 1, [left, top, right - left, bottom - top], number)
        for number, objects in enumerate(truth, start=1)
        for label, (left, top, right, bottom) in objects
    ]
    names = [{"id": 1, "name": "blue"}, {"id": 2, "name": "green"}]
    content = make_truth(boxes, images=2, size=(HEIGHT, WIDTH)).dataset | {"categories": names}
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    cfg = config(max_per_img=1000)
    files = {"ann_file": str(path), "data_prefix": {"img": f"{tmp_path}/"}, "test_mode": True}
    cfg.test_dataloader.dataset.update(files)
    cfg.test_dataloader |= {
        "batch_size": 2,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
    }
    cfg.test_cfg = {"type": "TestLoop"}
    cfg.test_evaluator = {"type": "CocoMetric", "ann_file": str(path), "metric": "bbox"}
    cfg.work_dir = str(tmp_path / "run")
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, tmp_path / "weights.pth")
    at_full_size(cfg, True, tiling)
    pictures = str(tmp_path / "pictures") if tiling else None
    metrics = evaluate(cfg, str(tmp_path / "weights.pth"), show_dir=pictures)
    assert metrics["coco/bbox_mAP_50"] == 1
    assert len(list(tmp_path.glob("pictures/*.jpg"))) == (2 if tiling else 0)
    assert sizes == {(HEIGHT, WIDTH) if tiling is None else (200, 200)}


def test_a_pipeline_that_does_not_start_with_an_image():
    cfg = config()
    cfg.test_dataloader.dataset.pipeline.insert(0, {"type": "Resize", "scale": (5, 5)})
    with pytest.raises(UserError, match="first step is Resize"):
        TiledPredictor(cfg, None, "cpu", Tiling(200))
