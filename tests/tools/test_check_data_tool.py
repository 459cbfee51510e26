"""tools/check_data.py on the quickstarts' configs: its options, and how it ends."""

import json
from pathlib import Path

import pytest
from shapes_patient import OPTIONS

CONFIGS = Path(__file__).parents[2] / "configs" / "quickstart"
INSTANCES = str(CONFIGS / "mask-rcnn_flatten-pvt-nano_fpn_shapes.py")
BOXES = str(CONFIGS / "retinanet_flatten-pvt-nano_fpn_shapes.py")
SEMANTIC = str(CONFIGS / "flatten-pvt-nano_semantic-fpn_shapes.py")


@pytest.fixture
def check(check_data_tool, patient):
    """Run the tool on the patient with one of the configs; returns the exit code."""

    def check(config: str, *options: str, fields: tuple[str, ...] = ()) -> int:
        for split in ("train", "val", "test"):
            place = f"{split}_dataloader.dataset"
            image_size = OPTIONS["image_size"]
            fields += (f"{place}.data_root={patient.root}", f"{place}.image_size={image_size}")
            fields += (f"{place}.object_size=[12,16]",)
        return check_data_tool.main([config, *options, "--cfg-options", *fields])

    return check


@pytest.mark.parametrize("config", [INSTANCES, BOXES, SEMANTIC])
def test_nothing_is_wrong_with_the_healthy(check, config, capsys):
    assert check(config, "--strict") == 0
    assert capsys.readouterr().out.endswith("\nNothing wrong was found.\n")


def test_faults(check, patient, tmp_path, capsys):
    """Each kind alone is planted by the tests of the doctor."""
    with patient.annotations() as content:
        objects = content["annotations"]
        for annotation in objects[:9]:
            annotation["bbox"][2] = -1
        objects[9]["segmentation"] = {"size": [64, 64], "counts": "no run lengths"}
        content["categories"].append({"id": 7, "name": "hexagon"})
    jpeg = patient.path("train/images/000005.jpg")
    jpeg.write_bytes(jpeg.read_bytes()[:700])
    target = tmp_path / "out" / "findings.json"
    options = ["--json", str(target), "--show", "4"]
    assert check(INSTANCES, *options, fields=("model.roi_head.bbox_head.num_classes=5",)) == 1
    findings = [(f["kind"], f["id"]) for f in json.loads(target.read_text())["findings"]]
    place = "model.roi_head.bbox_head.num_classes"
    assert sorted(findings) == sorted(
        [*(("box-negative", number) for number in range(1, 10)), ("class-count", place)]
        + [
            ("class-count", place),
            ("ignored-category", 7),
            ("image-unreadable", 5),
            ("mask-broken", 10),
        ]
    )
    printed = capsys.readouterr().out
    assert printed.endswith(f"\n13 errors and 1 warning were found.\nAll findings: {target}\n")
    assert printed.count("has the box") == 4
    assert "... and 5 more" in printed


def test_exit_code_of_warnings(check, patient, capsys):
    with patient.annotations() as content:
        content["annotations"][0]["bbox"][2] = 0
    assert check(INSTANCES) == 0
    assert check(INSTANCES, "--strict") == 1
    assert capsys.readouterr().out.endswith("0 errors and 1 warning were found.\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["no-such.py"], "config file no-such.py not found"),
        ([INSTANCES, "--json", "."], "--json . is a folder: give a file"),
        (
            ["train_dataloader.dataset.colour=red"],
            "the train data set of the config cannot be built",
        ),
        (["train_dataloader.dataset.type=Unheard"], "Unheard is not in"),
        (["train_dataloader=3"], f"config file {INSTANCES}: what it says"),
    ],
)
def test_mistakes_of_the_user(check_data_tool, options, said, capsys):
    fields = [INSTANCES, "--cfg-options"] if "=" in options[0] else []
    assert check_data_tool.main([*fields, *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error


@pytest.mark.parametrize("option", ["--show=-1", "--workers=-1", "--workers=many"])
def test_usage_errors(check_data_tool, option):
    with pytest.raises(SystemExit, match="2"):
        check_data_tool.main([INSTANCES, option])
