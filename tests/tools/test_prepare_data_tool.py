"""tools/prepare_data.py: exit codes, and from a strange folder to a first training."""

import json
from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np
import pytest
import yaml
from custom_folder import make_custom_folder
from PIL import Image

ROOT = Path(__file__).parents[2]
RETINANET = str(ROOT / "configs" / "quickstart" / "retinanet_flatten-pvt-nano_fpn_shapes.py")
SEMANTIC_FPN = str(ROOT / "configs" / "quickstart" / "flatten-pvt-nano_semantic-fpn_shapes.py")
MASK_RCNN = str(ROOT / "configs" / "quickstart" / "mask-rcnn_flatten-pvt-nano_fpn_shapes.py")


@pytest.fixture
def folder(tmp_path):
    return make_custom_folder(tmp_path / "fruit", num_train=12, num_val=4)


@pytest.fixture
def prepare(prepare_tool, tmp_path):
    """Prepares a folder for a config, ``fruit.py``; returns the exit code."""

    def prepare(folder: Path, config: str, *options: str) -> int:
        out = str(tmp_path / "fruit.py")
        return prepare_tool.main([str(folder), "--config", config, "--out", out, *options])

    return prepare


@pytest.mark.parametrize(
    ("data", "root", "missing"),
    [
        (["coco"], "data/coco", "train2017/: missing (118287 files *.jpg)"),
        (["coco", "--panoptic"], "data/coco", "annotations/panoptic_val2017/: missing (5000 files *.png)"),
        (["ade20k"], "data/ade/ADEChallengeData2016", "annotations/training/: missing (20210 files *.png)"),
        (["cityscapes"], "data/cityscapes", "gtFine/val/: missing (500 files *_gtFine_labelTrainIds.png)"),
    ],
)  # fmt: skip
def test_check_of_an_empty_folder(prepare_tool, data, root, missing, tmp_path, monkeypatch, capsys):
    """The folder is that of the configs."""
    monkeypatch.chdir(tmp_path)
    Path(root).mkdir(parents=True)
    assert prepare_tool.main([*data, "--check"]) == 1
    printed = capsys.readouterr().out
    assert f" in {root} is not complete" in printed
    assert f"\n  {missing}\n" in printed
    assert not list(Path(root).iterdir())


def test_unreachable_server_is_one_error(prepare_tool, tmp_path, capsys, monkeypatch):
    usage = type("Usage", (), {"free": 10**12})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    command = ["ade20k", str(tmp_path), "--mirror", "http://127.0.0.1:9"]
    assert prepare_tool.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: http://127.0.0.1:9/ADEChallengeData2016.zip: the download broke"
    )
    assert error.count("\n") == 1


def test_cityscapes_says_how_to_get_it(prepare_tool, tmp_path, capsys):
    assert prepare_tool.main(["cityscapes", str(tmp_path / "data")]) == 2
    printed = capsys.readouterr()
    assert "https://www.cityscapes-dataset.com/downloads/" in printed.out
    assert "gtFine_trainvaltest.zip (241 MB)" in printed.out
    assert f"into {tmp_path / 'data'}\n" in printed.out
    assert printed.err.startswith("error: leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip")
    assert not (tmp_path / "data").exists()


COMPLETE = ["custom", "folder", "--config", "a.py", "--out", "b.py"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["imagenet", "--check"],
        ["custom", "folder"],
        [*COMPLETE, "--val-fraction", "1"],
        [*COMPLETE, "--image-size", "31"],
        [*COMPLETE, "--image-size", "wide"],
        [*COMPLETE, "--group-by-prefix", "("],
        [*COMPLETE, "--group-by-prefix", ".*"],
    ],
)
def test_usage_errors(prepare_tool, arguments):
    with pytest.raises(SystemExit) as stopped:
        prepare_tool.main(arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (MASK_RCNN, ["--image-size", "64", "96", "128"], "--image-size takes a longer side, or a height"),
        (MASK_RCNN, ["--group-by-prefix"], "--group-by-prefix says how --val-fraction divides"),
        (MASK_RCNN, ["--tile", "0"], "a side of at least 1 pixel"),
        (MASK_RCNN, ["--tile", "48", "--tile-overlap", "1"], "overlap by 0 to less than 1"),
        (SEMANTIC_FPN, ["--tile", "48"], "--tile and COCO's options are for detectors"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit(prepare, folder, tmp_path, capsys, config, options, message):
    assert prepare(folder, config, *options) == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"fruit"}


def test_folder_that_is_not_there(prepare, tmp_path, capsys):
    assert prepare(tmp_path / "no", MASK_RCNN) == 2
    assert "no not found" in capsys.readouterr().err


def test_size_and_groups_of_the_command_line(prepare, folder, tmp_path, capsys):
    """A height and a width; images are numbered, and those of one number of tens belong together."""
    groups = ["--val-fraction", "0.3", "--group-by-prefix", r"\d$"]
    assert prepare(folder, MASK_RCNN, "--image-size", "96", "160", *groups) == 0
    printed = capsys.readouterr().out
    assert "image size: 160 x 96 px (as asked for)" in printed
    assert "2 groups of images: 1 (10 images) for training, 1 (2 images) for validation" in printed
    assert "scale=(160, 96)" in (tmp_path / "fruit.py").read_text()


def train_briefly(train_tool, out: Path, iterations: int) -> None:
    options = {"train_cfg.max_iters": iterations, "train_cfg.val_interval": iterations}
    options["train_dataloader.batch_size"] = 2
    texts = [f"{key}={value}" for key, value in options.items()]
    assert train_tool.main([str(out), "--cfg-options", *texts]) == 0


def test_custom_folder_is_trained_on(
    prepare_tool, train_tool, folder, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "fruit.py"
    assert prepare_tool.main(["custom", str(folder), "--config", MASK_RCNN, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"train: 12 images in {folder / 'train'}, 36 objects" in printed
    assert printed.endswith(f"train with\n  uv run flatten-det train {out}\n")
    monkeypatch.chdir(tmp_path)
    train_briefly(train_tool, out, iterations=2)
    assert "coco/segm_mAP" in capsys.readouterr().out
    assert (tmp_path / "work_dirs" / "fruit" / "iter_2.pth").is_file()


ITERATIONS = 80


def learned(train_tool, out: Path) -> dict[str, float]:
    """The metrics on images that were not trained on, after one epoch of a repeated set that is easy."""
    changes = {
        "train_cfg.max_iters": ITERATIONS,
        "train_cfg.val_interval": ITERATIONS,
        "train_dataloader.batch_size": 4,
        "param_scheduler.0.end": ITERATIONS // 5,
        "param_scheduler.1.begin": ITERATIONS // 5,
        "param_scheduler.1.end": ITERATIONS,
        "default_hooks.checkpoint.interval": ITERATIONS,
    }
    options = [f"{key}={value}" for key, value in changes.items()]
    work_dir = out.with_suffix("")
    assert train_tool.main([str(out), "--work-dir", str(work_dir), "--cfg-options", *options]) == 0
    (scalars,) = work_dir.glob("*/vis_data/scalars.json")
    return json.loads(scalars.read_text().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "config", "metrics"),
    [
        ("labelme", MASK_RCNN, ["coco/bbox_mAP_50", "coco/segm_mAP_50"]),
        ("voc", RETINANET, ["coco/bbox_mAP_50"]),
    ],
)
def test_predictions_overlap_the_truth(
    prepare, check_data_tool, train_tool, tmp_path, form, config, metrics
):
    """What is made of other forms are the same COCO files, as the test after the next one shows."""
    folder = make_custom_folder(tmp_path / "data", num_train=24, num_val=4)
    export(folder, {"labelme": write_labelme, "voc": write_voc}[form])
    assert prepare(folder, config) == 0
    out = tmp_path / "fruit.py"
    assert check_data_tool.main([str(out), "--workers", "0", "--strict"]) == 0
    found = learned(train_tool, out)
    assert all(found[metric] > 0.5 for metric in metrics), found


def export(folder: Path, write_labels) -> dict[str, list[tuple]]:
    """Write a folder's COCO files in another form; returns (image, class, box, polygon) by split."""
    truth = {}
    for split, name in (("train", "train"), ("valid", "val")):
        content = json.loads((folder / split / "_annotations.coco.json").read_text())
        (folder / split / "_annotations.coco.json").unlink()
        names = {category["id"]: category["name"] for category in content["categories"]}
        truth[name] = []
        for image in content["images"]:
            own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            outlines = [np.reshape(a["segmentation"][0], (-1, 2)) for a in own]
            labels = [names[a["category_id"]] for a in own]
            objects = list(zip(labels, outlines, strict=True))
            write_labels(folder / split / image["file_name"], image, objects, list(names.values()))
            for label, points in objects:
                low, high = points.min(axis=0), points.max(axis=0)
                box = [*low, *(high - low)]
                truth[name].append((image["file_name"], label, box, points.flatten().tolist()))
    return truth


def write_yolo(path: Path, image: dict, objects: list, names: list[str]) -> None:
    size = image["width"], image["height"]
    lines = []
    for label, points in objects:
        values = " ".join(f"{value:.6f}" for value in (points / size).flatten())
        lines.append(f"{names.index(label)} {values}")
    path.with_suffix(".txt").write_text("\n".join(lines))
    config = {"train": "train", "val": "valid", "nc": len(names), "names": names}
    (path.parents[1] / "data.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))


def write_voc(path: Path, image: dict, objects: list, names: list[str]) -> None:
    size = f"<width>{image['width']}</width><height>{image['height']}</height>"
    parts = [f"<filename>{path.name}</filename><size>{size}</size>"]
    for label, points in objects:
        (x0, y0), (x1, y1) = points.min(axis=0) + 1, points.max(axis=0)
        box = f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        parts.append(f"<object><name>{escape(label)}</name><bndbox>{box}</bndbox></object>")
    text = f"<annotation>{''.join(parts)}</annotation>"
    path.with_suffix(".xml").write_text(text, encoding="utf-8")


def write_labelme(path: Path, image: dict, objects: list, names: list[str]) -> None:
    shapes = [
        {"label": label, "points": points.tolist(), "shape_type": "polygon"}
        for label, points in objects
    ]
    content = {"imagePath": path.name, "imageWidth": image["width"], "imageHeight": image["height"]}
    path.with_suffix(".json").write_text(json.dumps({**content, "shapes": shapes}))


@pytest.mark.parametrize(
    ("write_labels", "config"),
    [(write_yolo, MASK_RCNN), (write_voc, RETINANET), (write_labelme, MASK_RCNN)],
)
def test_other_formats(prepare, check_data_tool, folder, tmp_path, write_labels, config):
    """The prepared set has the objects of the source, and the doctor finds nothing."""
    truth = export(folder, write_labels)
    assert prepare(folder, config) == 0
    for split, objects in truth.items():
        content = json.loads((tmp_path / f"fruit_{split}.json").read_text())
        images = {image["id"]: Path(image["file_name"]).name for image in content["images"]}
        names = {category["id"]: category["name"] for category in content["categories"]}
        taken = [
            (images[a["image_id"]], names[a["category_id"]], a["bbox"], a.get("segmentation"))
            for a in content["annotations"]
        ]
        taken, objects = sorted(taken), sorted(objects)
        assert [each[:2] for each in taken] == [each[:2] for each in objects]
        for (*_, box, polygons), (*_, true, polygon) in zip(taken, objects, strict=True):
            assert box == pytest.approx(true, abs=2e-3)
            masks = [pytest.approx(polygon, abs=2e-3)]
            assert polygons == (None if write_labels is write_voc else masks)
    options = ["--workers", "0", "--strict"]
    assert check_data_tool.main([str(tmp_path / "fruit.py"), *options]) == 0


def draw_label_maps(folder: Path) -> None:
    """Label maps in four colours instead of a folder's COCO files, as CVAT writes them."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text())
        for image in content["images"]:
            label_map = np.zeros((image["height"], image["width"], 3), np.uint8)
            for number, own in enumerate(content["annotations"]):
                if own["image_id"] == image["id"]:
                    outline = np.reshape(own["segmentation"][0], (-1, 2))
                    cv2.fillPoly(label_map, [outline], (0, 0, 80 * (number % 3 + 1)))
            name = f"{path.parent.name} {Path(image['file_name']).stem}"
            (path.parent / image["file_name"]).rename(folder / f"{name}.png")
            cv2.imwrite(str(folder / f"{name}_mask.png"), label_map)
        path.unlink()
    table = "background:0,0,0::\na:80,0,0::\nb:160,0,0::\nc:240,0,0::\n"
    (folder / "labelmap.txt").write_text(table)


def test_label_maps_are_trained_on(
    prepare, check_data_tool, train_tool, folder, tmp_path, monkeypatch, capsys
):
    """Discs in three colours on images of several sizes, divided by the tool."""
    draw_label_maps(folder)
    out = tmp_path / "fruit.py"
    assert prepare(folder, SEMANTIC_FPN, "--val-fraction", "0.25") == 0
    printed = capsys.readouterr().out
    assert "4 classes: background, a, b, ... and 1 more\ntrain: 12 images" in printed
    assert check_data_tool.main([str(out), "--workers", "0", "--strict"]) == 0
    label_maps = [cv2.imread(str(path), -1) for path in tmp_path.rglob("fruit_train_labels/*.png")]
    assert len(label_maps) == 12
    assert all(set(np.unique(label_map)) == {0, 1, 2, 3} for label_map in label_maps)
    monkeypatch.chdir(tmp_path)
    train_briefly(train_tool, out, iterations=1)
    assert "mIoU" in capsys.readouterr().out


@pytest.mark.slow
def test_predicted_label_maps_overlap_the_truth(prepare, check_data_tool, train_tool, tmp_path):
    """Of two classes, 0 and 255; what is made of colours and palettes are label maps of the same form."""
    folder = make_custom_folder(tmp_path / "data", num_train=24, num_val=4)
    draw_label_maps(folder)
    (folder / "labelmap.txt").unlink()
    for path in folder.glob("*_mask.png"):
        Image.fromarray(np.uint8(cv2.imread(str(path)).max(axis=2) > 0) * 255).save(path)
    assert prepare(folder, SEMANTIC_FPN, "--val-fraction", "0.2") == 0
    out = tmp_path / "fruit.py"
    assert check_data_tool.main([str(out), "--workers", "0", "--strict"]) == 0
    assert learned(train_tool, out)["mIoU"] > 50


def test_tiles_to_learn_from(prepare, check_data_tool, folder, tmp_path, capsys):
    """With masks, in which the doctor finds nothing; the images of the validation stay whole."""
    assert prepare(folder, MASK_RCNN, "--tile", "48") == 0
    assert "12 images are cut into" in capsys.readouterr().out
    tiles = json.loads((tmp_path / "fruit_train.json").read_text())["images"]
    names = {path.name for path in (tmp_path / "fruit_tiles").iterdir()}
    assert {image["file_name"] for image in tiles} == names
    assert len(names) > 12
    assert check_data_tool.main([str(tmp_path / "fruit.py"), "--workers", "0"]) == 0
    assert prepare(folder, MASK_RCNN, "--tile", "48") == 2
    assert "--force" in capsys.readouterr().err
    assert prepare(folder, MASK_RCNN, "--tile", "48", "--force") == 0


def test_tiles_leave_the_annotations_that_they_come_from(prepare_tool, folder, capsys):
    """Though these have the name of those to write, in the folder where the config is to be."""
    (folder / "train" / "_annotations.coco.json").rename(folder / "train" / "cut_train.json")
    before = (folder / "train" / "cut_train.json").read_bytes()
    out = str(folder / "train" / "cut.py")
    options = ["--config", MASK_RCNN, "--out", out, "--tile", "48", "--force"]
    options += ["--train-ann", str(folder / "train" / "cut_train.json")]
    assert prepare_tool.main([str(folder), *options]) == 2
    assert "--out" in capsys.readouterr().err
    assert (folder / "train" / "cut_train.json").read_bytes() == before
