import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoPanopticMetric
from mmdet.structures.mask import BitmapMasks
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from mmengine.structures import PixelData

from flatten_det.data.shapes.options import CLASSES, ShapesOptions
from flatten_det.data.shapes.render import render

OPTIONS = {
    "image_size": (64, 80),
    "num_images": {"train": 8, "val": 6},
    "object_size": [8, 48],
    "objects_per_image": [0, 4],
}
BACKGROUND = len(CLASSES)


@pytest.fixture(autouse=True)
def _default_scope():
    """Find transforms as under a config's ``default_scope``."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("data") / "shapes")


def _build(data_root: str, **changes):
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadPanopticAnnotations"},
        {"type": "PackDetInputs"},
    ]
    config = {"type": "ShapesPanopticDataset", "data_root": data_root, "pipeline": pipeline}
    return DATASETS.build(config | OPTIONS | changes)


@pytest.mark.parametrize("split", ["train", "val"])
def test_pipeline_gives_what_was_drawn(data_root, split):
    dataset = _build(data_root, split=split)
    assert len(dataset) == OPTIONS["num_images"][split]
    for index, packed in enumerate(dataset):
        drawn = render(ShapesOptions(**OPTIONS), split, index)
        sample = packed["data_samples"]
        np.testing.assert_array_equal(sample.gt_instances.labels, drawn.labels)
        assert isinstance(sample.gt_instances.masks, BitmapMasks)
        expected = drawn.owner == np.arange(len(drawn.labels))[:, None, None]
        np.testing.assert_array_equal(sample.gt_instances.masks.masks, expected)
        np.testing.assert_array_equal(
            sample.gt_sem_seg.sem_seg[0], np.append(drawn.labels, BACKGROUND)[drawn.owner]
        )


def test_an_object_over_the_whole_image_leaves_no_background(tmp_path):
    """A segment without pixels would be a false negative whatever is predicted."""
    options = {"image_size": 16, "object_size": (16, 16), "objects_per_image": (1, 1)}
    dataset = _build(str(tmp_path / "shapes"), num_images={"train": 200, "val": 1}, **options)
    without = 0
    for index in range(len(dataset)):
        drawn = render(ShapesOptions(**(OPTIONS | options)), "train", index)
        categories = [s["category"] for s in dataset.get_data_info(index)["segments_info"]]
        assert (BACKGROUND in categories) == bool((drawn.owner < 0).any())
        without += BACKGROUND not in categories
    assert without


@pytest.mark.parametrize("from_file", [True, False])
def test_quality_of_perfect_and_of_wrong_predictions(data_root, from_file):
    dataset = _build(data_root, split="val", test_mode=True)
    whole, half = (
        _quality(dataset, data_root, from_file, wrong_images) for wrong_images in ((), (0, 1, 2))
    )
    for name in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"):
        assert whole[f"coco_panoptic/{name}"] == pytest.approx(100)
    # Only images with another class are wrong; the background stays right.
    assert half["coco_panoptic/PQ_st"] == pytest.approx(100)
    assert half["coco_panoptic/PQ_th"] < 100


def _quality(dataset, data_root: str, from_file: bool, wrong_images: tuple[int, ...]) -> dict:
    """Evaluate the annotations as predictions, with other thing classes in ``wrong_images``."""
    metric = CocoPanopticMetric(
        ann_file=f"{data_root}/annotations/panoptic_val.json" if from_file else None,
        seg_prefix=f"{data_root}/val/panoptic",
    )
    metric.dataset_meta = dataset.metainfo
    for index, packed in enumerate(dataset):
        drawn = render(ShapesOptions(**OPTIONS), "val", index)
        labels = (drawn.labels + (index in wrong_images)) % len(CLASSES)
        ids = np.append(labels + 1000 * (1 + np.arange(len(labels))), BACKGROUND)
        sample = packed["data_samples"]
        sample.pred_panoptic_seg = PixelData(sem_seg=torch.from_numpy(ids[drawn.owner])[None])
        # What the evaluation without an annotation file reads from the samples.
        info = dataset.get_data_info(index)
        sample.set_metainfo({"segments_info": info["segments_info"]})
        metric.process(pseudo_collate([packed]), [sample.to_dict()])
    return metric.evaluate(len(dataset))
