"""What the data sets of Shapes give to MMDetection and MMSegmentation is what was drawn."""

import importlib
import importlib.util

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric, CocoPanopticMetric
from mmdet.registry import DATASETS as DET_DATASETS
from mmdet.structures.mask import BitmapMasks
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.registry import DATASETS as SEG_DATASETS
from pycocotools import mask as coco_mask

import flatten_det.data
from flatten_det.data.shapes.options import CLASSES, ShapesOptions
from flatten_det.data.shapes.render import render

OPTIONS = {
    "image_size": (64, 80),
    "num_images": {"train": 12, "val": 8},
    "object_size": [8, 48],
    "objects_per_image": [0, 4],
}
DET, PANOPTIC, SEG = "ShapesDetDataset", "ShapesPanopticDataset", "ShapesSegDataset"
LOAD = {
    DET: dict(
        type="LoadAnnotations",
        with_bbox=True,
        with_mask=True,
        with_seg=True,
        imdecode_backend="pillow",
    ),
    PANOPTIC: dict(type="LoadPanopticAnnotations"),
    SEG: dict(type="LoadAnnotations"),
}
BACKGROUND = len(CLASSES)
every_kind = pytest.mark.parametrize("kind", [DET, PANOPTIC, SEG])


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("data") / "shapes")


def build(kind: str, data_root, **changes):
    """A data set with transforms as under a config's ``default_scope``."""
    pack = dict(type="PackSegInputs" if kind == SEG else "PackDetInputs")
    pipeline = [dict(type="LoadImageFromFile"), LOAD[kind], pack]
    config = {"type": kind, "data_root": str(data_root), "pipeline": pipeline, **OPTIONS}
    with DefaultScope.overwrite_default_scope("mmseg" if kind == SEG else "mmdet"):
        return DATASETS.build(config | changes)


@every_kind
def test_is_found_from_every_scope(kind):
    registry = SEG_DATASETS if kind == SEG else DET_DATASETS
    assert registry.get(kind) is DATASETS.get(kind) is getattr(flatten_det.data, kind)


@every_kind
@pytest.mark.parametrize("split", ["train", "val"])
def test_pipeline_gives_what_was_drawn(data_root, kind, split):
    dataset = build(kind, data_root, split=split)
    assert len(dataset) == OPTIONS["num_images"][split]
    classes = {DET: CLASSES, PANOPTIC: (*CLASSES, "background"), SEG: ("background", *CLASSES)}
    assert dataset.metainfo["classes"] == classes[kind]
    assert len(dataset.metainfo["palette"]) == len(classes[kind])
    for index, packed in enumerate(dataset):
        drawn = render(ShapesOptions(**OPTIONS), split, index)
        assert packed["inputs"].shape == (3, 64, 80)
        sample = packed["data_samples"]
        semantic = sample.gt_sem_seg.data if kind == SEG else sample.gt_sem_seg.sem_seg
        labels = (
            np.append(drawn.labels, BACKGROUND)
            if kind == PANOPTIC
            else np.append(drawn.labels + 1, 0)
        )
        np.testing.assert_array_equal(semantic[0], labels[drawn.owner])
        if kind != SEG:
            objects = sample.gt_instances
            np.testing.assert_array_equal(objects.labels, drawn.labels)
            assert isinstance(objects.masks, BitmapMasks)
            expected = drawn.owner == np.arange(len(drawn.labels))[:, None, None]
            np.testing.assert_array_equal(objects.masks.masks.astype(bool), expected)
            boxes = objects.masks.get_bboxes("hbox").tensor if len(expected) else torch.zeros(0, 4)
            torch.testing.assert_close(objects.bboxes.tensor, boxes)


def test_the_usual_options_of_coco_datasets(data_root):
    whole = build(DET, data_root)
    filled = build(DET, data_root, filter_cfg={"filter_empty_gt": True})
    stars = build(DET, data_root, metainfo={"classes": ("star",)})
    objects = [len(whole.get_data_info(i)["instances"]) for i in range(len(whole))]
    assert len(filled) == np.count_nonzero(objects) < len(whole)
    assert len(build(DET, data_root, indices=3)) == 3
    labels = [label for i in range(len(whole)) for label in whole.get_cat_ids(i)]
    found = [label for i in range(len(stars)) for label in stars.get_cat_ids(i)]
    assert found == [0] * labels.count(CLASSES.index("star"))


def test_ground_truth_scores_full_marks_in_coco_metric(data_root):
    dataset = build(DET, data_root, split="val", test_mode=True)
    metric = CocoMetric(f"{data_root}/annotations/instances_val.json", metric=["bbox", "segm"])
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
    assert scores["coco/bbox_mAP"] == scores["coco/segm_mAP"] == 1


def test_ground_truth_scores_full_marks_in_iou_metric(data_root):
    dataset = build(SEG, data_root, split="val", test_mode=True)
    metric = IoUMetric(iou_metrics=["mIoU"])
    metric.dataset_meta = dataset.metainfo
    for packed in dataset:
        sample = packed["data_samples"].to_dict()
        metric.process({}, [sample | {"pred_sem_seg": sample["gt_sem_seg"]}])
    assert metric.evaluate(len(dataset))["aAcc"] == 100


@pytest.mark.parametrize("from_file", [True, False])
def test_quality_of_perfect_and_of_wrong_predictions(data_root, from_file):
    dataset = build(PANOPTIC, data_root, split="val", test_mode=True)
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


def test_an_object_over_the_whole_image_leaves_no_background(tmp_path):
    """A segment without pixels would be a false negative whatever is predicted."""
    options = {"image_size": 16, "object_size": (16, 16), "objects_per_image": (1, 1)}
    counts = {"train": 200, "val": 1}
    dataset = build(PANOPTIC, tmp_path / "shapes", num_images=counts, **options)
    without = 0
    for index in range(len(dataset)):
        drawn = render(ShapesOptions(**(OPTIONS | options)), "train", index)
        categories = [s["category"] for s in dataset.get_data_info(index)["segments_info"]]
        assert (BACKGROUND in categories) == bool((drawn.owner < 0).any())
        without += BACKGROUND not in categories
    assert without


def test_masks_are_in_the_form_that_pycocotools_writes(data_root):
    dataset = build(DET, data_root)
    for i in range(4):
        for instance in dataset.get_data_info(i)["instances"]:
            again = coco_mask.encode(np.asfortranarray(coco_mask.decode(instance["mask"])))
            assert again["counts"].decode() == instance["mask"]["counts"]


def test_one_folder_serves_all(data_root, capsys):
    build(DET, data_root)
    capsys.readouterr()
    assert len(build(SEG, data_root)) == len(build(PANOPTIC, data_root)) == 12
    assert "Rendering" not in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="is in use"):
        build(SEG, data_root, seed=3)


@every_kind
def test_nothing_is_rendered_before_it_is_needed(tmp_path, kind):
    assert len(build(kind, tmp_path / "shapes", lazy_init=True).metainfo["classes"]) >= 6
    with pytest.raises(ValueError, match="splits train, val, not 'test'"):
        build(kind, tmp_path / "shapes", split="test")
    with pytest.raises(ValueError, match="object_size is"):
        build(kind, tmp_path / "shapes", object_size=(40, 8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("missing", "registered"), [("mmdet", [SEG]), ("mmseg", [DET, PANOPTIC])])
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
