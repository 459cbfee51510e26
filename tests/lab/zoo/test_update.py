"""Drift between the configs and the zoo's files is named, and removed where it can be."""

import shutil

import pytest
import yaml
from zoo_fixture import BASELINE, FLATTEN, METAFILE

from flatten_det.errors import UserError
from flatten_det.lab.complexity import counter as uncounted
from flatten_det.lab.zoo import inspect_zoo
from flatten_det.lab.zoo.metafiles import HEADER, dump

CURE = ": run tools/update_zoo.py"


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.fixture
def metafile(checkout):
    """``metafile(change)`` rewrites the metafile by ``change(content, entries by config)``."""

    def change(function):
        content = yaml.safe_load((checkout / METAFILE).read_text())
        entries = {entry["Config"]: entry for entry in content["Models"]}
        function(content, entries)
        (checkout / METAFILE).write_text(dump(content, HEADER))

    return change


def faults(checkout):
    zoo = inspect_zoo(checkout, count=False)
    return zoo.stale, zoo.wrong


def test_nothing_to_do(checkout):
    assert faults(checkout) == ([], [])


def test_counting_again_gives_the_same(checkout):
    zoo = inspect_zoo(checkout)
    assert (zoo.stale, zoo.wrong) == ([], [])


def test_what_cannot_be_counted_is_one_error(checkout, monkeypatch):
    monkeypatch.setattr(uncounted, "CHEAP", uncounted.CHEAP - {"native_layer_norm"})
    missing = r"no FLOP formula for aten\.native_layer_norm: add it"
    with pytest.raises(UserError, match=missing) as caught:
        inspect_zoo(checkout)
    assert str(caught.value).startswith("configs/mask_rcnn/")
    assert inspect_zoo(checkout, count=False).files


def test_wrong_count_is_named_and_counted_again(checkout, metafile):
    right = yaml.safe_load((checkout / METAFILE).read_text())["Models"][0]["Metadata"]["FLOPs"]
    metafile(lambda content, entries: entries[FLATTEN]["Metadata"].update(FLOPs=123))
    assert faults(checkout)[0] == [f"configs/README.md: not what tools/update_zoo.py writes{CURE}"]
    name = "mask-rcnn_flatten-swin-t_fpn_1x_coco"
    assert inspect_zoo(checkout).stale[0] == (
        f"{METAFILE}: {name}: FLOPs is 123, should be {right}{CURE}"
    )


def test_changed_config(checkout):
    edit(checkout / FLATTEN, "optim_wrapper =", "train_cfg = dict(max_epochs=24)\noptim_wrapper =")
    stale, wrong = faults(checkout)
    assert f"{METAFILE}: mask-rcnn_swin-t_fpn_1x_coco: Epochs is 12, should be 24{CURE}" in stale
    assert (
        f"{METAFILE}: mask-rcnn_flatten-swin-t_fpn_1x_coco: Epochs is 12, should be 24{CURE}"
        in stale
    )
    assert not wrong
    inspect_zoo(checkout, count=False).write(checkout)
    assert faults(checkout) == ([], [])
    assert "| Swin-T | 24 epochs |" in (checkout / "configs/README.md").read_text()


def test_config_without_an_entry_gets_one(checkout):
    new = checkout / "configs/mask_rcnn/mask-rcnn_flatten-swin-s_fpn_1x_coco.py"
    shutil.copy(checkout / FLATTEN, new)
    edit(new, 'arch="tiny"', 'arch="small"')
    stale, wrong = faults(checkout)
    assert f"{new.relative_to(checkout)}: no entry in {METAFILE}{CURE}" in stale
    assert not wrong
    inspect_zoo(checkout, count=False).write(checkout)
    assert faults(checkout) == ([], [])
    entry = yaml.safe_load((checkout / METAFILE).read_text())["Models"][0]
    assert entry["Name"] == new.stem
    assert entry["Metadata"]["Parameters"] > 60e6


def test_entry_without_its_config(checkout):
    (checkout / BASELINE).unlink()
    stale, wrong = faults(checkout)
    assert wrong[0] == (
        f"{METAFILE}: mask-rcnn_swin-t_fpn_1x_coco: its config {BASELINE} does not exist: remove the entry, "
        "or restore the config"
    )
    assert wrong[1:] == [
        "configs/README.md: dead link mask_rcnn/mask-rcnn_swin-t_fpn_1x_coco.py: correct it, or add the "
        "file"
    ]
    assert not stale


def test_second_entry(checkout, metafile):
    metafile(lambda content, entries: content["Models"].append(dict(entries[BASELINE])))
    assert faults(checkout)[1] == [
        f"{METAFILE}: mask-rcnn_swin-t_fpn_1x_coco: {BASELINE} has another entry: remove one"
    ]


def test_result_without_a_source_is_not_taken_for_ours(checkout, metafile):
    metafile(lambda content, entries: entries[FLATTEN]["Results"][1].pop("Source"))
    zoo = inspect_zoo(checkout, count=False)
    assert zoo.wrong == [
        f"{METAFILE}: mask-rcnn_flatten-swin-t_fpn_1x_coco: a result without Source: say it"
    ]
    assert not zoo.files


def test_what_is_kept_by_hand_survives(checkout, metafile):
    weights = "https://example.com/weights.pth"
    metafile(lambda content, entries: entries[FLATTEN].update(Weights=weights))
    inspect_zoo(checkout, count=False).write(checkout)
    content = yaml.safe_load((checkout / METAFILE).read_text())
    entry = next(entry for entry in content["Models"] if entry["Config"] == FLATTEN)
    assert entry["Weights"] == weights
    assert entry["Results"][0]["Metrics"]["box AP"] == 44.2
    assert [collection["Name"] for collection in content["Collections"]] == ["FLatten-Swin", "Swin"]


def test_missing_collection(checkout, metafile):
    metafile(lambda content, entries: content["Collections"].pop())
    assert faults(checkout)[1] == [
        f"{METAFILE}: mask-rcnn_swin-t_fpn_1x_coco: no collection Swin in this file: add it"
    ]


@pytest.mark.parametrize("name", ["configs/README.md", "model-index.yml", METAFILE])
def test_edited_by_hand(checkout, name):
    with (checkout / name).open("a") as file:
        file.write("\n")
    stale, wrong = faults(checkout)
    assert stale == [f"{name}: not what tools/update_zoo.py writes{CURE}"]
    assert not wrong


def test_dead_link_in_the_readme(checkout):
    with (checkout / "README.md").open("a") as file:
        file.write(
            "[gone](docs/gone.md#top) [there](configs) [web](https://example.com) [up](#zoo)\n"
        )
    assert faults(checkout) == (
        [],
        ["README.md: dead link docs/gone.md#top: correct it, or add the file"],
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Models: [", "no YAML"),
        ("Models: []\n", "Collections is not a list"),
        ("- 1\n", "Collections is not a list"),
    ],
)
def test_unreadable_metafile_is_one_error(checkout, text, message):
    (checkout / METAFILE).write_text(text)
    with pytest.raises(UserError, match=f"{METAFILE}: {message}") as caught:
        inspect_zoo(checkout, count=False)
    assert "\n" not in str(caught.value)


def test_missing_metafile_is_one_error(checkout):
    (checkout / METAFILE).unlink()
    with pytest.raises(UserError, match=f"{METAFILE}: missing"):
        inspect_zoo(checkout, count=False)


def test_config_with_another_backbone_than_its_name_says(checkout):
    edit(checkout / FLATTEN, 'arch="tiny"', 'arch="small"')
    with pytest.raises(
        UserError, match=r"_flatten-swin-t_.* is not flatten-swin-t, it has another arch"
    ):
        inspect_zoo(checkout, count=False)


def test_config_without_a_backbone_in_its_name(checkout):
    shutil.copy(checkout / FLATTEN, checkout / "configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py")
    with pytest.raises(UserError, match=r"mask-rcnn_r50_fpn_1x_coco\.py: no backbone in the file"):
        inspect_zoo(checkout, count=False)


def test_results_that_are_no_list(checkout, metafile):
    metafile(lambda content, entries: entries[FLATTEN].update(Results={"Task": "Object Detection"}))
    with pytest.raises(UserError, match=r"_flatten-swin-t_.*: Results is not a list"):
        inspect_zoo(checkout, count=False)
