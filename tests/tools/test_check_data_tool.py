"""tools/check_data.py on the quickstarts' configs: twelve faults of a task are found, and no others."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shapes_patient import OPTIONS, Patient, render_shapes

CONFIGS = Path(__file__).parents[2] / "configs" / "quickstart"
INSTANCES = str(CONFIGS / "mask-rcnn_flatten-pvt-nano_fpn_shapes.py")
BOXES = str(CONFIGS / "retinanet_flatten-pvt-nano_fpn_shapes.py")
SEMANTIC = str(CONFIGS / "flatten-pvt-nano_semantic-fpn_shapes.py")


@pytest.fixture(scope="session")
def healthy(tmp_path_factory) -> Path:
    return render_shapes(tmp_path_factory.mktemp("healthy") / "shapes")


@pytest.fixture
def patient(healthy, tmp_path) -> Patient:
    return Patient(healthy, tmp_path / "shapes")


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


def found(path: Path) -> dict[str, list]:
    """The kinds of findings in a JSON file, and their ids."""
    kinds = {}
    for finding in json.loads(path.read_text())["findings"]:
        kinds.setdefault(finding["kind"], []).append(finding["id"])
    return kinds


@pytest.mark.parametrize("workers", ["0", "2"])
def test_twelve_faults_of_instances(check, patient, tmp_path, capsys, workers):
    with patient.annotations() as content:
        images, objects = content["images"], content["annotations"]
        objects[0]["bbox"] = [70, 3, 9, 9]
        objects[1]["bbox"][2] = -5
        objects[2]["bbox"][0] = float("nan")
        objects[3]["bbox"][3] = 0
        objects[4]["segmentation"] = {"size": [64, 64], "counts": "no run lengths"}
        objects[5]["category_id"] = 42
        objects[6]["image_id"] = 4242
        objects[7]["id"] = objects[8]["id"]
        content["categories"].append({"id": 7, "name": "hexagon"})
        images[3]["file_name"] = "../images/000003.jpg"
    with patient.image("train/images/000004.jpg") as image:
        image["it"] = image["it"].resize((64, 60))
    jpeg = patient.path("train/images/000005.jpg")
    jpeg.write_bytes(jpeg.read_bytes()[:700])
    target = tmp_path / "out" / "findings.json"
    assert check(INSTANCES, "--json", str(target), "--workers", workers) == 1
    assert found(target) == {
        "box-outside": [1],
        "box-negative": [2],
        "box-invalid": [3],
        "box-empty": [4],
        "mask-broken": [5],
        "unknown-category": [6],
        "unknown-image": [7],
        "duplicate-annotation-id": [9],
        "ignored-category": [7],
        "file-name-leaves-folder": [3],
        "image-size": [4],
        "image-unreadable": [5],
    }
    printed = capsys.readouterr().out
    assert printed.endswith(f"\n10 errors and 2 warnings were found.\nAll findings: {target}\n")
    for kind in found(target):
        assert f"[{kind}]: 1\n" in printed


def test_twelve_faults_of_semantic_data(check, patient, tmp_path, monkeypatch):
    def relabel(index, change):
        with patient.image(f"train/semantic/{index:06}.png") as image:
            image["it"] = Image.fromarray(change(np.array(image["it"])))

    def cut(name, length):
        patient.path(name).write_bytes(patient.path(name).read_bytes()[:length])

    relabel(0, lambda labels: np.where(labels == 0, 9, labels).astype(np.uint8))
    relabel(1, lambda labels: labels[:50])
    relabel(2, lambda labels: np.stack([labels] * 3, axis=-1))
    cut("train/semantic/000003.png", 90)
    cut("train/images/000004.jpg", 700)
    patient.path("train/semantic/000005.png").unlink()
    patient.path("train/images/000006.jpg").unlink()
    with patient.image("train/images/000007.jpg") as image:
        image["it"] = image["it"].resize((640, 640))
    with patient.image("val/semantic/000000.png") as image:
        image["it"] = image["it"].resize((640, 640))
    for index in range(1, 5):
        with patient.image(f"val/semantic/{index:06}.png") as image:
            labels = np.array(image["it"])
            image["it"] = Image.fromarray(np.where(labels == 3, 0, labels).astype(np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    with patient.image("val/semantic/000001.png") as image:
        image["it"] = Image.fromarray(np.full((64, 64), 300, np.uint16))
    fields = ("model.decode_head.num_classes=6",)
    target = tmp_path / "findings.json"
    assert check(SEMANTIC, "--json", str(target), "--workers", "0", fields=fields) == 1
    assert found(target) == {
        "class-count": ["model.decode_head.num_classes"] * 2,
        "unknown-label": ["9"],
        "label-map-size": [None],
        "label-map-format": [None, None],
        "label-map-unreadable": [None],
        "image-unreadable": [None],
        "label-map-missing": [None],
        "label-map-unused": [None],
        "image-too-large": [None],
        "label-map-too-large": [None],
        "unused-category": [3],
    }


def test_exit_code_of_warnings(check, patient, capsys):
    with patient.annotations() as content:
        content["annotations"][0]["bbox"][2] = 0
    assert check(INSTANCES) == 0
    assert check(INSTANCES, "--strict") == 1
    assert capsys.readouterr().out.endswith("0 errors and 1 warning were found.\n")


def test_number_of_findings_shown(check, patient, capsys):
    with patient.annotations() as content:
        for annotation in content["annotations"][:9]:
            annotation["bbox"][2] = -1
    assert check(INSTANCES, "--show", "4", "--workers", "0") == 1
    printed = capsys.readouterr().out
    assert printed.count("has the box") == 4
    assert "... and 5 more" in printed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["no-such.py"], "config file no-such.py not found"),
        ([INSTANCES, "--json", "."], "--json . is a folder: give a file"),
        (
            [INSTANCES, "--cfg-options", "train_dataloader.dataset.colour=red"],
            "the train data set of the config cannot be built",
        ),
        (
            [INSTANCES, "--cfg-options", "train_dataloader.dataset.type=Unheard"],
            "Unheard is not in",
        ),
        (
            [INSTANCES, "--cfg-options", "train_dataloader=3"],
            f"config file {INSTANCES}: what it says",
        ),
    ],
)
def test_mistakes_of_the_user(check_data_tool, options, said, capsys):
    assert check_data_tool.main(options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error


@pytest.mark.parametrize("option", ["--show=-1", "--workers=-1", "--workers=many"])
def test_usage_errors(check_data_tool, option):
    with pytest.raises(SystemExit, match="2"):
        check_data_tool.main([INSTANCES, option])
