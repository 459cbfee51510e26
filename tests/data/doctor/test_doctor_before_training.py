"""The quick check at the beginning of a training."""

import json
import re
import shlex

import pytest
from mmengine.logging import MMLogger
from PIL import Image

from flatten_det import distributed
from flatten_det.data.doctor import check
from flatten_det.data.doctor.check import (
    check_before_training,
    check_command,
    check_data,
    findings_of,
)
from flatten_det.errors import UserError


@pytest.fixture
def logger():
    return MMLogger("doctor")


@pytest.fixture
def warnings(logger, monkeypatch):
    """What is logged as a warning."""
    lines = []
    monkeypatch.setattr(logger, "warning", lines.append)
    return lines


@pytest.mark.parametrize("task", ["instances", "panoptic", "semantic"])
def test_healthy_data_is_not_worth_a_word(patient, logger, warnings, task, monkeypatch):
    opened, real_open = {}, Image.open

    def recording_open(path, **options):
        opened[patient.root.joinpath(path).relative_to(patient.root).as_posix()] = True
        return real_open(path, **options)

    monkeypatch.setattr(Image, "open", recording_open)
    check_before_training(patient.config(task), logger)
    assert warnings == []
    # A label map, of which each set has one that shows something.
    maps = ["train/semantic/000000.png", "val/semantic/000000.png"]
    assert list(opened) == (maps if task == "semantic" else [])


def test_errors_end_it_with_one_line(patient, logger, warnings):
    with patient.annotations() as content:
        content["annotations"][1]["bbox"] = [90, 0, 5, 5]
        content["annotations"][2]["bbox"] = [90, 0, 5, 5]
    with pytest.raises(UserError) as caught:
        check_before_training(patient.config("instances"), logger)
    message = str(caught.value)
    assert message.startswith(
        f"the data has 2 errors, the first: {patient.path('annotations/instances_train.json')}: "
        "annotation 2 of image 0 has the box [90, 0, 5, 5], image 64x64 (box-outside: correct "
    )
    assert "The whole list: uv run flatten-det check" in message
    assert message.endswith("--no-data-check")
    assert "\n" not in message
    assert warnings == []


def test_the_command_that_shows_all_is_complete(patient, logger):
    no_annotations(patient, "train")
    options = ["classes=['traffic light']", "load_from=/my run/a.pth"]
    command = check_command("my config.py", options)
    with pytest.raises(UserError) as caught:
        check_before_training(patient.config("instances"), logger, command)
    (shown,) = re.findall("The whole list: (.*) ; to train", str(caught.value))
    start = ["uv", "run", "flatten-det", "check", "my config.py", "--cfg-options"]
    assert shlex.split(shown) == start + options


def test_warnings_are_logged_once_per_kind(patient, logger, warnings):
    with patient.annotations() as content:
        for row in range(5):
            content["annotations"][row]["bbox"] = [5, 5, 0, 5]
        content["categories"].append({"id": 9, "name": "hexagon"})
    check_before_training(patient.config("instances"), logger)
    of_category, of_boxes = warnings
    assert "category 9 (hexagon) is no class of the config" in of_category
    assert of_boxes.startswith("data: boxes without area, or less than a pixel wide or high: 5 (")
    assert "annotation 3 of image 0" in of_boxes
    assert "annotation 4 of image 0" not in of_boxes
    assert "... and 2 more" in of_boxes


def no_annotations(patient, split):
    with patient.annotations(split=split) as content:
        content["annotations"] = []


def annotated(kind="instances", **change):
    """Every object of a file is changed."""

    def spoil(patient, split):
        with patient.annotations(kind, split) as content:
            for annotation in content["annotations"]:
                for one in annotation.get("segments_info", [annotation]):
                    one |= change

    return spoil


def relabelled(label):
    """All label maps show one label."""

    def spoil(patient, split):
        for path in patient.root.glob(f"{split}/semantic/*.png"):
            Image.new("L", Image.open(path).size, label).save(path)

    return spoil


CROWDS = dict(iscrowd=1)
FEW = {"metainfo": {"classes": ("circle", "ring")}}
FILTERED = dict(filter_cfg=dict(filter_empty_gt=True))
REDUCED = dict(reduce_zero_label=True)
TOO_SMALL = dict(filter_cfg=dict(min_size=65))
NO_AREA = "all 47 annotations have no area within"
IGNORED = r"anything but the ignored label \(255\)"
NOTHING = [
    ("instances", "train", annotated(**CROWDS), {}, "all 47 annotations are crowds"),
    ("instances", "val", annotated(**CROWDS), {}, r"all \d+ annotations are crowds"),
    ("instances", "train", no_annotations, {}, "there is no annotation in the file"),
    ("instances", "val", no_annotations, {}, "there is no annotation in the file"),
    ("instances", "train", annotated(bbox=[5, 5, 0.5, 9]), {}, NO_AREA),
    ("instances", "train", annotated(area=0), {}, NO_AREA),
    ("instances", "train", annotated(ignore=1), {}, r"47 annotations are to be ignored \(ignore\)"),
    ("instances", "train", annotated(category_id=3), FEW, "all 47 annotations are of no class of"),
    ("instances", "train", annotated(), TOO_SMALL, "47 annotations are in images smaller than 65"),
    ("panoptic", "train", annotated("panoptic", **CROWDS), FILTERED, r"\d+ are stuff, in images"),
    ("panoptic", "val", annotated("panoptic", **CROWDS), {}, "are crowds"),
    ("semantic", "train", relabelled(255), {}, IGNORED),
    ("semantic", "val", relabelled(255), {}, IGNORED),
    ("semantic", "train", relabelled(0), REDUCED, "0, which reduce_zero_label"),
]


@pytest.mark.parametrize(("task", "split", "spoil", "options", "said"), NOTHING)
def test_data_of_which_nothing_comes(patient, logger, task, split, spoil, options, said):
    """Training would run to the end, learn nothing, or report -1; both checks say why."""
    spoil(patient, split)
    cfg = patient.config(task, **options)
    with pytest.raises(UserError, match=said) as caught:
        check_before_training(cfg, logger)
    kind = "nothing-to-learn" if split == "train" else "nothing-to-measure"
    assert f"({kind}: " in str(caught.value)
    found = [f for f in findings_of(check_data(cfg, 0)) if f.kind.name == kind]
    assert [f.data_set for f in found] == ["train" if split == "train" else "val, test"]
    assert re.search(said, found[0].message)


def test_a_part_without_objects_is_no_error(patient, logger):
    """Backgrounds, or images without labels, beside others; results that are measured elsewhere."""
    cfg = patient.config("instances")
    with_objects = cfg.train_dataloader.dataset
    empty = {**with_objects, "ann_file": "annotations/empty.json"}
    with patient.annotations() as content:
        text = json.dumps({**content, "annotations": []})
    patient.path("annotations/empty.json").write_text(text)
    cfg.train_dataloader.dataset = dict(type="ConcatDataset", datasets=[with_objects, empty])
    check_before_training(cfg, logger)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset |= dict(ann_file=empty["ann_file"], data_prefix=dict(img="train/images"))
    with pytest.raises(UserError, match="nothing-to-measure"):
        check_before_training(cfg, logger)
    cfg.val_evaluator = cfg.test_evaluator = [dict(type="CocoMetric", format_only=True)]
    check_before_training(cfg, logger)


def test_other_ranks_are_told(patient, logger, monkeypatch):
    """They read nothing, and end with the same message."""

    def told(objects):
        objects[:] = [None, UserError("the data has 1 error")]

    monkeypatch.setattr(distributed, "is_main_process", lambda: False)
    monkeypatch.setattr(check, "check_annotations", lambda cfg: pytest.fail("read it"))
    cfg = patient.config("instances")
    check_before_training(cfg, logger)
    monkeypatch.setattr(distributed, "broadcast_object_list", told)
    with pytest.raises(UserError, match="the data has 1 error"):
        check_before_training(cfg, logger)
