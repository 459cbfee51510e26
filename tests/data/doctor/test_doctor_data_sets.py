"""Which data sets of a config are checked, and what is taken from each."""

import os

import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from flatten_det.data.doctor import faults
from flatten_det.data.doctor.check import check_data, findings_of
from flatten_det.data.doctor.data_sets import INSTANCES, PANOPTIC, SEMANTIC, find_data_sets
from flatten_det.errors import UserError


@DATASETS.register_module()
class DataSetOfOnesOwn:
    """No data set of mmengine."""


@DATASETS.register_module()
class DataSetWithoutLaziness(BaseDataset):
    """One that would be loaded when it is built."""

    def __init__(self, ann_file, data_root, data_prefix, metainfo, pipeline):
        raise AssertionError("not built")


def names(cfg):
    return [(data_set.name, data_set.evaluated) for data_set in find_data_sets(cfg)]


def test_each_one_once(patient):
    cfg = patient.config("instances")
    assert names(cfg) == [("train", False), ("val, test", True)]
    cfg.train_dataloader.dataset = cfg.val_dataloader.dataset
    assert names(cfg) == [("train, val, test", True)]


def test_out_of_wrappers(patient):
    cfg = patient.config("instances")
    train, val = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    balanced = dict(type="ClassBalancedDataset", oversample_thr=0.1, dataset=val)
    joined = dict(type="ConcatDataset", datasets=[train, balanced])
    cfg.train_dataloader.dataset = dict(type="RepeatDataset", times=3, dataset=joined)
    assert names(cfg) == [("train[0]", False), ("train[1], val, test", True)]
    assert findings_of(check_data(cfg, 0)) == []


@pytest.mark.parametrize(
    ("task", "classes", "things", "folder"),
    [(INSTANCES, 6, 6, None), (PANOPTIC, 7, 6, "panoptic"), (SEMANTIC, 7, 0, "semantic")],
)
def test_tasks(patient, task, classes, things, folder):
    data_set = find_data_sets(patient.config(task))[0]
    assert data_set.task == task
    assert data_set.images == str(patient.path("train/images"))
    assert (len(data_set.classes), data_set.things) == (classes, things)
    assert data_set.label_maps == (folder and str(patient.path(f"train/{folder}")))


@pytest.mark.parametrize(
    "changes",
    [
        dict(type="XMLDataset", ann_subdir="Annotations", img_subdir="JPEGImages"),
        dict(type="DataSetOfOnesOwn"),
        dict(type="DataSetWithoutLaziness"),
        dict(backend_args=dict(backend="local")),
    ],
)
def test_what_is_not_known_is_said(patient, changes):
    found = patient.findings("instances", **changes)
    assert [(f.kind, f.data_set) for f in found] == [(faults.NOT_CHECKED, "train")]
    assert changes.get("type", "CocoDataset") in found[0].message


def test_pipelines_are_not_built(patient):
    """Their transforms may read files of their own."""
    pipeline = [dict(type="NoSuchTransform")]
    assert patient.findings("instances", pipeline=pipeline) == []


def test_data_sets_that_cannot_be_built(patient):
    with pytest.raises(UserError, match=r"the train data set of the config cannot.*colour"):
        patient.findings("instances", colour="red")
    # MMSegmentation asserts that a folder is there.
    with pytest.raises(UserError, match="it refuses, perhaps as its files are not there"):
        patient.findings("semantic", type="DRIVEDataset", data_root="no/such", metainfo={})


def test_no_data(tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("model = dict()")
    with pytest.raises(UserError, match=f"{path} has no data loader"):
        find_data_sets(Config.fromfile(path))


def test_shapes_are_rendered_when_there_are_none(tmp_path, patient):
    cfg = patient.config("semantic")
    root = tmp_path / "new"
    cfg.train_dataloader.dataset = dict(
        type="ShapesSegDataset",
        data_root=str(root),
        image_size=32,
        object_size=(8, 10),
        num_images=dict(train=4, val=1),
    )

    def found():
        return {f.kind for f in findings_of(check_data(cfg, 0))}

    assert found() <= {faults.UNUSED_CATEGORY}
    # What is there is looked at as it is.
    os.truncate(root / "train/images/000002.jpg", 100)
    assert faults.IMAGE_UNREADABLE in found()
    # A training renders it anew.
    find_data_sets(cfg, render=True)
    assert faults.IMAGE_UNREADABLE not in found()
