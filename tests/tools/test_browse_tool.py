"""``flatten-det browse``: pictures of samples before and after the pipeline, and the page of them."""

import html
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from fixtures import write_detector_config, write_segmentor_config

from flatten_det.commands import browse

# A pair of counts, or of shares, by what they are of.
Rows = dict[str, tuple[str, str]]


@pytest.fixture
def run(tmp_path):
    """Browses a config, written from a text in place of its pipeline; returns the exit code."""

    def run(config: Path, *options: object, out: str = "out") -> int:
        return browse.main([str(config), "--out-dir", str(tmp_path / out), *map(str, options)])

    return run


@pytest.fixture
def detector(coco_folder, tmp_path):
    """Writes the tiny detector's config with other lines at its end."""

    def write(text: str = "", name: str = "tiny.py", folder: Path = coco_folder) -> Path:
        config = write_detector_config(tmp_path / name, folder)
        config.write_text(f"{config.read_text()}\n{text}\n")
        return config

    return write


def with_steps(*steps: str) -> str:
    """The training pipeline without its Resize, with other steps in place of it."""
    return f"train_pipeline[2:3] = [{', '.join(steps)}]"


def shown(folder: Path) -> list[tuple[str, Rows]]:
    """The heading of each sample on the page, and its table."""
    page = (folder / "index.html").read_text()
    samples = []
    for article in re.findall(r"<article>.*?</article>", page, re.DOTALL):
        heading = re.search(r"<h2[^>]*>(.*?)</h2>", article)[1]
        rows = re.findall(r"<td>([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td>", article)
        samples.append((html.unescape(heading), {name: pair for name, *pair in rows}))
    return samples


def pictures(folder: Path, index: int) -> tuple[np.ndarray, np.ndarray]:
    """On disk, and as the model gets it."""
    names = [f"{index:06d}-{side}.png" for side in ("disk", "model")]
    return tuple(cv2.imread(str(folder / "pictures" / name)) for name in names)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return np.abs(one.astype(float) - other).mean()


def test_augmented_beside_what_is_on_disk(run, detector, tmp_path, capsys):
    """The flipped image has its annotations flipped; a filter costs it the small objects."""
    flip = "dict(type='RandomFlip', prob=1.0)"
    assert run(detector(with_steps(flip)), "--number", 100) == 0
    assert f"5 samples of train: {tmp_path / 'out' / 'index.html'}" in capsys.readouterr().out
    samples = dict(shown(tmp_path / "out"))
    assert list(samples) == [f"{index}: {index + 1:012d}.jpg" for index in range(5)]
    assert [rows["objects"] for rows in samples.values()] == [[str(n)] * 2 for n in (1, 2, 3, 1, 2)]
    assert samples["1: 000000000002.jpg"]["(ignored regions)"] == ["1", "1"]
    on_disk, for_model = pictures(tmp_path / "out", 3)
    # All but the label, which is not mirrored.
    assert difference(on_disk[:, ::-1], for_model) < 8 < difference(on_disk, for_model)


def test_objects_that_are_dropped_are_counted(run, detector, tmp_path):
    crop = "dict(type='RandomCrop', crop_size=(12, 12), allow_negative_crop=True)"
    assert run(detector(with_steps(crop)), "--indices", 2, 2) == 0
    ((_, rows),) = shown(tmp_path / "out")
    before, after = map(int, rows.pop("objects"))
    assert (before, after < before) == (3, True)
    assert sum(int(before) for before, _ in rows.values()) == 3
    assert sum(int(after) for _, after in rows.values()) == after


def test_seed(run, detector, tmp_path):
    """The same one gives the same files, also of a sample alone; another one does not."""
    config = detector(with_steps("dict(type='PhotoMetricDistortion')"))
    runs = {"a": ("--number", 2), "b": ("--number", 2), "c": ("--number", 2, "--seed", 1)}
    for out, options in runs.items():
        assert run(config, *options, out=out) == 0
    files = [sorted(p for p in (tmp_path / out).rglob("*") if p.is_file()) for out in runs]
    contents = [[file.read_bytes() for file in of_run] for of_run in files]
    assert contents[0] == contents[1] != contents[2]
    last = files[0][-1]
    assert run(config, "--indices", int(last.name[:6]), out="d") == 0
    assert (tmp_path / "d" / "pictures" / last.name).read_bytes() == last.read_bytes()


def test_annotations_of_validation_move_with_the_image(run, detector, tmp_path):
    """MMDetection leaves them in the file's pixels, which are others than the model's."""
    resize = "test_pipeline[1] = dict(type='Resize', scale=(291, 291), keep_ratio=True)"
    assert run(detector(resize), "--split", "val", "--indices", 0) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "on disk, 97 x 61" in page
    assert "as the model gets it, 291 x 183" in page
    on_disk, for_model = (cv2.resize(p, (97, 61)) for p in pictures(tmp_path / "out", 0))
    assert difference(on_disk, for_model) < 12
    moved = np.roll(for_model, 8, axis=1)
    assert difference(on_disk, moved) > 20


MIXED = """
leaf = dict(type="CocoDataset", data_root=data_root, ann_file="annotations/instances_train2017.json",
    data_prefix=dict(img="train2017/"), filter_cfg=dict(filter_empty_gt=True),
    pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True)])
mixed = dict(type="MultiImageMixDataset", dataset=leaf, pipeline=[
    dict(type="Mosaic", img_scale=(64, 64)), dict(type="MixUp", img_scale=(64, 64)),
    dict(type="PackDetInputs")])
balanced = dict(type="ClassBalancedDataset", oversample_thr=1e-9,
    dataset=dict(leaf, pipeline=leaf["pipeline"] + [dict(type="PackDetInputs")]))
train_dataloader["dataset"] = dict(_delete_=True, type="RepeatDataset", times=2,
    dataset=dict(type="ConcatDataset", datasets=[balanced, mixed]))
"""


def test_wrapped_data_sets(run, detector, tmp_path):
    assert run(detector(MIXED), "--indices", 1, 6, 16) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<dt>pipeline of MultiImageMixDataset</dt><dd>Mosaic → MixUp → PackDetInputs" in page
    assert page.count("<dt>pipeline of CocoDataset</dt>") == 2  # One of them packs by itself.
    alone, mixed, again = shown(tmp_path / "out")
    assert [name for name, _ in (alone, mixed, again)] == [
        f"{index}: {2:012d}.jpg" for index in (1, 6, 16)
    ]
    assert alone[1]["objects"] == ["2", "2"]
    assert mixed[1]["objects"][0] == "2"
    assert pictures(tmp_path / "out", 6)[1].shape == (384, 384, 3)
    on_disk, others = pictures(tmp_path / "out", 6)[1], pictures(tmp_path / "out", 16)[1]
    assert difference(on_disk, others) > 0  # Each draw mixes anew.


def test_semantic(run, ade20k_folder, tmp_path):
    config = write_segmentor_config(tmp_path / "tiny.py", ade20k_folder)
    assert run(config, "--images", "training/ADE_train_00000002.jpg") == 0
    ((heading, rows),) = shown(tmp_path / "out")
    assert heading == "1: ADE_train_00000002.jpg"
    label_map = cv2.imread(
        str(ade20k_folder / "annotations" / "training" / "ADE_train_00000002.png"), -1
    )
    assert rows["flag, pixels"][0] == f"{(label_map == 150).mean():.1%}"
    assert rows["(not labelled), pixels"][0] == f"{(label_map == 0).mean():.1%}"
    assert "objects" not in rows
    assert pictures(tmp_path / "out", 1)[1].shape == (448, 420, 3)  # 64 x 60, seven times.


PANOPTIC = """
_panoptic = dict(_delete_=True, type="CocoPanopticDataset", data_root=data_root,
    ann_file="annotations/panoptic_train2017.json",
    data_prefix=dict(img="train2017/", seg="annotations/panoptic_train2017/"), pipeline=[
    dict(type="LoadImageFromFile"), dict(type="LoadPanopticAnnotations"),
    dict(type="RandomResize", scale=(64, 64), ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(64, 64)), dict(type="PackDetInputs")])
train_dataloader["dataset"] = _panoptic
"""


def test_panoptic_with_large_scale_jitter(run, detector, tmp_path):
    assert run(detector(PANOPTIC), "--indices", 0) == 0
    ((_, rows),) = shown(tmp_path / "out")
    assert rows["objects"][0] == rows["truck"][0] == "1"
    assert float(rows["blanket, pixels"][0].rstrip("%")) > 50
    page = (tmp_path / "out" / "index.html").read_text()
    assert "on disk, 97 x 61" in page
    assert "gets it, 97 x 61" not in page
    # The map is not drawn over the object's mask, which looks as without a map.
    assert run(detector(), "--indices", 0, out="objects") == 0
    both, mask = (pictures(tmp_path / out, 0)[0] for out in ("out", "objects"))
    inside = np.s_[190:230, 200:220]
    assert difference(both[inside], mask[inside]) < 3
    assert difference(both[:40], mask[:40]) > 20


def test_pipeline_that_normalizes(run, detector, tmp_path):
    """The pictures are those of the image as it was."""
    normalize = "dict(type='Normalize', mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4])"
    assert run(detector(with_steps(normalize)), "--indices", 0) == 0
    assert difference(*pictures(tmp_path / "out", 0)) < 1


def test_image_in_place_of_one_that_the_pipeline_left_out(run, detector, tmp_path):
    only_large = "dict(type='FilterAnnotations', min_gt_bbox_wh=(22, 1), keep_empty=True)"
    assert run(detector(with_steps(only_large)), "--number", 100) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "The pipeline left this image out: the model gets 00000000000" in page


def test_unreadable_image_is_named_after_the_others_are_done(
    run, detector, coco_folder, tmp_path, capsys
):
    data = shutil.copytree(coco_folder, tmp_path / "data")
    broken = data / "train2017" / "000000000002.jpg"
    broken.write_bytes(b"no image" * 99)
    assert run(detector(folder=data), "--indices", 0, 1, 2) == 2
    captured = capsys.readouterr()
    assert f"error: 1 of 3 images: image {broken} cannot be decoded" in captured.err
    assert "2 samples of train" in captured.out
    page = (tmp_path / "out" / "index.html").read_text()
    assert f"Left out: image {broken} cannot be decoded" in page


def test_names_with_markup_and_control_characters(run, detector, coco_folder, tmp_path):
    data = shutil.copytree(coco_folder, tmp_path / "data")
    name = "<img src=x onerror=alert(1)>\"'&\x1b[31m.jpg"
    (data / "train2017" / "000000000001.jpg").rename(data / "train2017" / name)
    file = data / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = name
    content["categories"][0]["name"] = "<script>"
    file.write_text(json.dumps(content))
    assert run(detector(folder=data), "--indices", 0) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "onerror" in page
    assert "<img src=x" not in page
    assert "\x1b" not in page
    sources = re.findall(r"<img src=\"([^\"]*)\"", page)
    assert sources == ["pictures/000000-disk.png", "pictures/000000-model.png"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--indices", 0, 5], "--indices 5: the train data has 0 to 4"),
        (["--images", "a.jpg", "train2017/000000000001.jpg"], "--images a.jpg: not in the train data"),
        (["--split", "test", "--cfg-options", "test_dataloader=None"], "has no test_dataloader"),
        (["--cfg-options", "train_dataloader.dataset.pipeline.3.type=ImageToTensor",
          "train_dataloader.dataset.pipeline.3.keys=[img]"], "gives no single image"),
        (["--cfg-options", "train_dataloader.dataset.indices=[]"], "there are no samples"),
        (["--cfg-options", "train_dataloader.dataset.pipeline.2.scale=None"], "what it says cannot be built"),
    ],
)  # fmt: skip
def test_mistakes(run, detector, capsys, options, reason):
    assert run(detector(), *options) == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]


def test_data_are_not_overwritten(run, detector, coco_folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.html").hardlink_to(config := detector())
    assert run(config) == 2
    assert "--out-dir: the result" in capsys.readouterr().err
    assert "_base_" in config.read_text()


def test_full_disk(run, detector, tmp_path, capsys, full_disk):
    full_disk(tmp_path / "out")
    assert run(detector(), "--indices", 0) == 2
    error = capsys.readouterr().err
    assert f"error: cannot write {tmp_path / 'out'}" in error
    assert "the disk is full" in error
    assert not list((tmp_path / "out").rglob("*.*"))


def test_number_is_positive(capsys):
    with pytest.raises(SystemExit, match="2"):
        browse.main(["config.py", "--number", "0"])
    assert "argument --number: must be at least 1, got 0" in capsys.readouterr().err
