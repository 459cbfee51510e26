"""Drift between the configs and the zoo's files is named, and removed where it can be."""

import shutil
from pathlib import Path

import pytest
import yaml
from zoo_fixture import BASELINE, FLATTEN, METAFILE, make_small_zoo

from flatten_det.errors import UserError
from flatten_det.lab.complexity import counter
from flatten_det.lab.zoo import inspect_zoo
from flatten_det.lab.zoo.metafiles import HEADER, dump

CURE = ": run tools/update_zoo.py"
OTHER = "not what tools/update_zoo.py writes"
BASELINE_NAME, FLATTEN_NAME = Path(BASELINE).stem, Path(FLATTEN).stem


@pytest.fixture(scope="session")
def small_zoo(tmp_path_factory) -> Path:
    """To be read only."""
    return make_small_zoo(tmp_path_factory.mktemp("zoo") / "checkout")


@pytest.fixture
def checkout(small_zoo, tmp_path) -> Path:
    return shutil.copytree(small_zoo, tmp_path / "checkout")


def read(checkout):
    return yaml.safe_load((checkout / METAFILE).read_text())


@pytest.fixture
def metafile(checkout):
    """``metafile(change)`` rewrites the metafile by ``change(content, entries by config)``."""

    def rewrite(change):
        content = read(checkout)
        change(content, {entry["Config"]: entry for entry in content["Models"]})
        (checkout / METAFILE).write_text(dump(content, HEADER))

    return rewrite


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def faults(checkout, count=False):
    zoo = inspect_zoo(checkout, count)
    return zoo.stale, zoo.wrong


def test_counting_again_gives_the_same(checkout):
    assert faults(checkout, count=True) == ([], [])


def test_what_cannot_be_counted_is_one_error(checkout, monkeypatch):
    monkeypatch.setattr(counter, "CHEAP", counter.CHEAP - {"native_layer_norm"})
    missing = r"^configs/mask_rcnn/.*no FLOP formula for aten\.native_layer_norm: add it"
    with pytest.raises(UserError, match=missing):
        inspect_zoo(checkout)
    assert inspect_zoo(checkout, count=False).files


def test_wrong_count_is_named_and_counted_again(checkout, metafile):
    right = read(checkout)["Models"][0]["Metadata"]["FLOPs"]
    metafile(lambda content, entries: entries[FLATTEN]["Metadata"].update(FLOPs=123))
    assert faults(checkout)[0] == [f"configs/README.md: {OTHER}{CURE}"]
    line = f"{METAFILE}: {FLATTEN_NAME}: FLOPs is 123, should be {right}{CURE}"
    assert inspect_zoo(checkout).stale[0] == line


def test_config_without_an_entry_gets_one(checkout):
    new = checkout / "configs/mask_rcnn/mask-rcnn_flatten-swin-s_fpn_1x_coco.py"
    shutil.copy(checkout / FLATTEN, new)
    edit(new, 'arch="tiny"', 'arch="small"')
    stale, wrong = faults(checkout)
    assert f"{new.relative_to(checkout)}: no entry in {METAFILE}{CURE}" in stale
    assert not wrong
    inspect_zoo(checkout, count=False).write(checkout)
    assert faults(checkout) == ([], [])
    entry = read(checkout)["Models"][0]
    assert entry["Name"] == new.stem
    assert entry["Metadata"]["Parameters"] > 60e6


def test_entry_without_its_config(checkout):
    (checkout / BASELINE).unlink()
    link = BASELINE.removeprefix("configs/")
    assert faults(checkout) == (
        [],
        [
            f"{METAFILE}: {BASELINE_NAME}: its config {BASELINE} does not exist: remove the entry, or "
            "restore the config",
            f"configs/README.md: dead link {link}: correct it, or add the file",
        ],
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda content, entries: content["Models"].append(dict(entries[BASELINE])),
            f"{BASELINE_NAME}: {BASELINE} has another entry: remove one",
        ),
        # It is not taken for ours.
        (
            lambda content, entries: entries[FLATTEN]["Results"][1].pop("Source"),
            f"{FLATTEN_NAME}: a result without Source: say it",
        ),
        (
            lambda content, entries: content["Collections"].pop(),
            f"{BASELINE_NAME}: no collection Swin in this file: add it",
        ),
    ],
)
def test_what_only_a_person_can_put_right(checkout, metafile, change, line):
    metafile(change)
    zoo = inspect_zoo(checkout, count=False)
    assert zoo.wrong == [f"{METAFILE}: {line}"]
    assert not zoo.files


def test_what_is_kept_by_hand_survives(checkout, metafile):
    weights = "https://example.com/weights.pth"
    metafile(lambda content, entries: entries[FLATTEN].update(Weights=weights))
    inspect_zoo(checkout, count=False).write(checkout)
    content = read(checkout)
    (entry,) = (entry for entry in content["Models"] if entry["Config"] == FLATTEN)
    assert entry["Weights"] == weights
    assert entry["Results"][0]["Metrics"]["box AP"] == 44.2
    assert [collection["Name"] for collection in content["Collections"]] == ["FLatten-Swin", "Swin"]


@pytest.mark.parametrize("name", ["configs/README.md", "model-index.yml", METAFILE])
def test_edited_by_hand(checkout, name):
    with (checkout / name).open("a") as file:
        file.write("\n")
    assert faults(checkout) == ([f"{name}: {OTHER}{CURE}"], [])


def test_dead_link_in_the_readme(checkout):
    links = "[gone](docs/gone.md#top) [there](configs) [web](https://example.com) [up](#zoo)\n"
    (checkout / "README.md").write_text(links)
    line = "README.md: dead link docs/gone.md#top: correct it, or add the file"
    assert faults(checkout) == ([], [line])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Models: [", "no YAML"),
        ("Models: []\n", "Collections is not a list"),
        ("- 1\n", "Collections is not a list"),
        (None, "missing"),
    ],
)
def test_unreadable_metafile_is_one_error(checkout, text, message):
    (checkout / METAFILE).unlink()
    if text is not None:
        (checkout / METAFILE).write_text(text)
    with pytest.raises(UserError, match=f"{METAFILE}: {message}") as caught:
        inspect_zoo(checkout, count=False)
    assert "\n" not in str(caught.value)


def test_results_that_are_no_list(checkout, metafile):
    metafile(lambda content, entries: entries[FLATTEN].update(Results={"Task": "Object Detection"}))
    with pytest.raises(UserError, match=f"{FLATTEN_NAME}: Results is not a list"):
        inspect_zoo(checkout, count=False)


def test_names_of_configs_say_their_backbones(checkout):
    edit(checkout / FLATTEN, 'arch="tiny"', 'arch="small"')
    other = r"_flatten-swin-t_.* is not flatten-swin-t, it has another arch"
    with pytest.raises(UserError, match=other):
        inspect_zoo(checkout, count=False)
    unnamed = checkout / "configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
    (checkout / FLATTEN).rename(unnamed)
    with pytest.raises(UserError, match=rf"{unnamed.name}: no backbone in the file"):
        inspect_zoo(checkout, count=False)
