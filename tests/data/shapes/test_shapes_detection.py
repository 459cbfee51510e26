import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import DefaultScope
from pycocotools import mask as coco_mask

from flatten_det.data import ShapesDetDataset
from flatten_det.data.shapes.options import CLASSES, ShapesOptions
from flatten_det.data.shapes.render import render

OPTIONS = {
    "image_size": (64, 80),
    "num_images": {"train": 12, "val": 8},
    "object_size": [8, 48],
    "objects_per_image": [0, 4],
}
PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
    {"type": "PackDetInputs"},
]


@pytest.fixture(autouse=True)
def _default_scope():
    """Find transforms as under a config's ``default_scope``."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("data") / "shapes")


def _build(data_root, **changes):
    config = {"type": "ShapesDetDataset", "data_root": data_root, "pipeline": PIPELINE, **OPTIONS}
    return DATASETS.build(config | changes)


def test_is_found_from_every_scope():
    assert DATASETS.get("ShapesDetDataset") is ShapesDetDataset
    assert ROOT_DATASETS.get("ShapesDetDataset") is ShapesDetDataset


@pytest.mark.parametrize("split", ["train", "val"])
def test_pipeline_gives_what_was_drawn(data_root, split):
    dataset = _build(data_root, split=split)

    assert len(dataset) == OPTIONS["num_images"][split]
    assert dataset.metainfo["classes"] == CLASSES
    for index, packed in enumerate(dataset):
        drawn = render(ShapesOptions(**OPTIONS), split, index)
        objects = packed["data_samples"].gt_instances
        assert packed["inputs"].shape == (3, 64, 80)
        np.testing.assert_array_equal(objects.labels, drawn.labels)
        masks = objects.masks.masks.astype(bool)
        expected = drawn.owner == np.arange(len(drawn.labels))[:, None, None]
        np.testing.assert_array_equal(masks, expected)
        boxes = objects.masks.get_bboxes("hbox").tensor if len(masks) else torch.zeros(0, 4)
        torch.testing.assert_close(objects.bboxes.tensor, boxes)


def test_semantic_masks_load_too(data_root):
    load = {
        "type": "LoadAnnotations",
        "with_bbox": True,
        "with_seg": True,
        "imdecode_backend": "pillow",
    }
    dataset = _build(data_root, pipeline=[PIPELINE[0], load, PIPELINE[2]])

    drawn = render(ShapesOptions(**OPTIONS), "train", 0)
    semantic = dataset[0]["data_samples"].gt_sem_seg.sem_seg[0].numpy()
    np.testing.assert_array_equal(semantic, np.append(drawn.labels + 1, 0)[drawn.owner])


def test_the_usual_options_of_coco_datasets(data_root):
    whole = _build(data_root)
    filled = _build(data_root, filter_cfg={"filter_empty_gt": True})
    stars = _build(data_root, metainfo={"classes": ("star",)})

    objects = [len(whole.get_data_info(i)["instances"]) for i in range(len(whole))]
    assert len(filled) == np.count_nonzero(objects) < len(whole)
    assert len(_build(data_root, indices=3)) == 3
    labels = [label for i in range(len(whole)) for label in whole.get_cat_ids(i)]
    found = [label for i in range(len(stars)) for label in stars.get_cat_ids(i)]
    assert found == [0] * labels.count(CLASSES.index("star"))


def test_ground_truth_scores_full_marks_in_coco_metric(data_root):
    dataset = _build(data_root, split="val", test_mode=True)
    metric = CocoMetric(
        ann_file=f"{data_root}/annotations/instances_val.json", metric=["bbox", "segm"]
    )
    metric.dataset_meta = dataset.metainfo
    for packed in dataset:
        sample = packed["data_samples"]
        truth = sample.gt_instances
        sample.pred_instances = truth.new(
            bboxes=truth.bboxes.tensor,
            labels=truth.labels,
            scores=torch.ones(len(truth)),
            masks=torch.from_numpy(truth.masks.masks.astype(bool)),
        )
        metric.process(pseudo_collate([packed]), [sample.to_dict()])
    scores = metric.evaluate(len(dataset))

    assert scores["coco/bbox_mAP"] == 1
    assert scores["coco/segm_mAP"] == 1


def test_masks_are_in_the_form_that_pycocotools_writes(data_root):
    for i in range(4):
        for instance in _build(data_root).get_data_info(i)["instances"]:
            mask = coco_mask.decode(instance["mask"])
            assert (
                coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
                == (instance["mask"]["counts"])
            )


def test_lazy_init_renders_nothing(tmp_path):
    dataset = _build(str(tmp_path / "shapes"), lazy_init=True)

    assert dataset.metainfo["classes"] == CLASSES
    assert not list(tmp_path.iterdir())


def test_bad_options_are_named_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="splits train, val, not 'test'"):
        _build(str(tmp_path / "shapes"), split="test")
    with pytest.raises(ValueError, match="object_size is"):
        _build(str(tmp_path / "shapes"), object_size=(40, 8))
    assert not list(tmp_path.iterdir())
