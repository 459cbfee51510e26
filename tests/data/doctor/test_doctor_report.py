"""What people and programs get to see."""

import io
import json

import pytest
from rich.console import Console

from flatten_det.data.doctor import faults
from flatten_det.data.doctor.check import check_data, findings_of, print_report, write_json
from flatten_det.data.doctor.faults import KINDS, by_kind, quoted


def printed(checked, show=3) -> str:
    # Narrower than the lines, which are not broken for it.
    console = Console(file=io.StringIO(), width=40, highlight=False)
    print_report(checked, show, console)
    return console.file.getvalue()


@pytest.fixture
def ill(patient):
    with patient.annotations() as content:
        for row in range(5):
            content["annotations"][row]["bbox"] = [70 + row, 0, 5, 5]
        content["annotations"][5]["bbox"] = [5, 5, 0, 5]
    return patient


def test_healthy(patient):
    train, val = (patient.path(f"annotations/instances_{split}.json") for split in ("train", "val"))
    lines = printed(check_data(patient.config("instances"), 0)).splitlines()
    assert lines[0].startswith("train: 8 images, ")
    assert lines[0].endswith(f" objects, 6 classes in {train} (CocoDataset)")
    assert lines[1].startswith("val, test: 5 images, ")
    assert str(val) in lines[1]
    assert lines[2:] == ["", "Nothing wrong was found."]


def test_ill(ill):
    checked = check_data(ill.config("instances"), 0)
    assert "]: 5\n      ... and 5 more (--show N or --json FILE)\n" in printed(checked, show=0)
    found = by_kind(findings_of(checked))
    assert [kind.name for kind in found] == ["box-outside", "box-empty"]
    assert [finding.id for finding in found[faults.BOX_OUTSIDE]] == [1, 2, 3, 4, 5]
    lines = printed(checked, show=2).splitlines()
    assert lines[3:9] == [
        "error  boxes that lie outside of their image [box-outside]: 5",
        f"    train: {ill.path('annotations/instances_train.json')}",
        "      annotation 1 of image 0 has the box [70, 0, 5, 5], image 64x64",
        "      annotation 2 of image 0 has the box [71, 0, 5, 5], image 64x64",
        "      ... and 3 more (--show N or --json FILE)",
        "    to do: correct the box, or the image's width and height",
    ]
    assert lines[10].startswith("warning  boxes without area")
    assert lines[-1] == "5 errors and 1 warning were found."


def test_json(ill, tmp_path):
    target = tmp_path / "new" / "findings.json"
    write_json(target, "ill.py", check_data(ill.config("instances"), 0))
    content = json.loads(target.read_text())
    assert (content["config"], content["errors"], content["warnings"]) == ("ill.py", 5, 1)
    sets = [(d["name"], d["images"]) for d in content["data_sets"]]
    assert sets == [("train", 8), ("val, test", 5)]
    assert content["kinds"]["box-outside"]["count"] == 5
    assert content["kinds"]["box-outside"]["advice"] == faults.BOX_OUTSIDE.advice
    assert len(content["findings"]) == 6
    assert content["findings"][2] == {
        "kind": "box-outside",
        "severity": "error",
        "data_set": "train",
        "file": str(ill.path("annotations/instances_train.json")),
        "id": 2,
        "message": "annotation 2 of image 0 has the box [71, 0, 5, 5], image 64x64",
    }


def test_nothing_that_a_terminal_would_obey(patient, tmp_path):
    evil = "\x1b[2J[bold]\u202e\ud800.jpg"
    with patient.annotations() as content:
        content["images"][0]["file_name"] = evil
        content["categories"][0]["name"] = "\x1b]0;title\x07"
    checked = check_data(patient.config("instances"), 0)
    text = printed(checked)
    assert "\\x1b[2J[bold]\\u202e\\ud800.jpg" in text
    assert text.replace("\n", "").isprintable()
    text.encode("utf-8")
    write_json(tmp_path / "findings.json", "evil.py", checked)
    files = [f["file"] for f in json.loads((tmp_path / "findings.json").read_text())["findings"]]
    assert any(file.endswith(evil) for file in files)


def test_quotes_are_short():
    assert quoted("x" * 10_000) == "x" * 80 + "..."
    assert quoted([1, 2]) == "[1, 2]"


def test_kinds():
    """Errors come first, names are unique, and every one says what to do."""
    severities = [kind.severity for kind in KINDS]
    assert severities == sorted(severities, key=["error", "warning"].index)
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert all(kind.summary and kind.advice for kind in KINDS)
