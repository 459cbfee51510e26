import importlib
import importlib.util

import numpy as np
import pytest
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import DefaultScope
from mmseg.evaluation import IoUMetric
from mmseg.registry import DATASETS

import flatten_det.data
from flatten_det.data import ShapesDetDataset, ShapesSegDataset
from flatten_det.data.shapes.options import CLASSES, ShapesOptions
from flatten_det.data.shapes.render import render

OPTIONS = {
    "image_size": (64, 80),
    "num_images": {"train": 6, "val": 4},
    "object_size": [8, 48],
    "seed": 2,
}
PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations"},
    {"type": "PackSegInputs"},
]


@pytest.fixture(autouse=True)
def _default_scope():
    """Find transforms as under a config's ``default_scope``."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("data") / "shapes")


def _build(data_root, **changes):
    config = {"type": "ShapesSegDataset", "data_root": data_root, "pipeline": PIPELINE, **OPTIONS}
    return DATASETS.build(config | changes)


def test_is_found_from_every_scope():
    assert DATASETS.get("ShapesSegDataset") is ShapesSegDataset
    assert ROOT_DATASETS.get("ShapesSegDataset") is ShapesSegDataset


@pytest.mark.parametrize("split", ["train", "val"])
def test_pipeline_gives_what_was_drawn(data_root, split):
    dataset = _build(data_root, split=split)

    assert len(dataset) == OPTIONS["num_images"][split]
    assert dataset.metainfo["classes"] == ("background", *CLASSES)
    assert len(dataset.metainfo["palette"]) == len(CLASSES) + 1
    for index, packed in enumerate(dataset):
        drawn = render(ShapesOptions(**OPTIONS), split, index)
        assert packed["inputs"].shape == (3, 64, 80)
        np.testing.assert_array_equal(
            packed["data_samples"].gt_sem_seg.data[0],
            np.append(drawn.labels + 1, 0)[drawn.owner],
        )


def test_ground_truth_scores_full_marks_in_iou_metric(data_root):
    dataset = _build(data_root, split="val", test_mode=True)
    metric = IoUMetric(iou_metrics=["mIoU"])
    metric.dataset_meta = dataset.metainfo
    for packed in dataset:
        sample = packed["data_samples"].to_dict()
        metric.process({}, [sample | {"pred_sem_seg": sample["gt_sem_seg"]}])

    assert metric.evaluate(len(dataset))["aAcc"] == 100


def test_shares_its_folder_with_the_detection_data_set(data_root, capsys):
    _build(data_root)
    capsys.readouterr()
    detection = ShapesDetDataset(data_root=data_root, **OPTIONS)

    assert len(detection) == 6
    assert "Rendering" not in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="is in use"):
        _build(data_root, seed=3)


def test_lazy_init_renders_nothing(tmp_path):
    dataset = _build(str(tmp_path / "shapes"), lazy_init=True)

    assert dataset.metainfo["classes"] == ("background", *CLASSES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("missing", "registered"),
    [("mmdet", ["ShapesSegDataset"]), ("mmseg", ["ShapesDetDataset", "ShapesPanopticDataset"])],
)
def test_one_framework_is_enough(monkeypatch, missing, registered):
    find_spec = importlib.util.find_spec
    try:
        with monkeypatch.context() as context:
            context.setattr(
                importlib.util,
                "find_spec",
                lambda name, *args: None if name == missing else find_spec(name, *args),
            )
            assert importlib.reload(flatten_det.data).__all__ == registered
    finally:
        importlib.reload(flatten_det.data)
    assert len(flatten_det.data.__all__) == 3
