"""tools/prepare_data.py: exit codes, and from a strange folder to a first training."""

from pathlib import Path

import pytest
from custom_folder import make_custom_folder

ROOT = Path(__file__).parents[2]
MASK_RCNN = str(ROOT / "configs" / "quickstart" / "mask-rcnn_flatten-pvt-nano_fpn_shapes.py")


@pytest.fixture
def folder(tmp_path):
    return make_custom_folder(tmp_path / "fruit", num_train=12, num_val=4)


@pytest.mark.parametrize(
    ("data", "missing"),
    [
        (["coco"], "train2017/: missing (118287 files *.jpg)"),
        (["coco", "--panoptic"], "annotations/panoptic_val2017/: missing (5000 files *.png)"),
        (["ade20k"], "annotations/training/: missing (20210 files *.png)"),
        (["cityscapes"], "gtFine/val/: missing (500 files *_gtFine_labelTrainIds.png)"),
    ],
)
def test_check_of_an_empty_folder(prepare_tool, data, missing, tmp_path, capsys):
    assert prepare_tool.main([*data, str(tmp_path), "--check"]) == 1
    assert f"\n  {missing}\n" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_default_folders_are_those_of_the_configs(prepare_tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for data, root in (
        ("coco", "data/coco"),
        ("ade20k", "data/ade/ADEChallengeData2016"),
        ("cityscapes", "data/cityscapes"),
    ):
        assert prepare_tool.main([data, "--check"]) == 1
        assert f" in {root} is not complete" in capsys.readouterr().out


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
    assert prepare_tool.main(["cityscapes", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert "gtFine_trainvaltest.zip (241 MB)" in printed.out
    assert printed.err.startswith("error: leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["imagenet"],
        ["custom", "folder"],
        ["custom", "folder", "--config", "a.py", "--out", "b.py", "--val-fraction", "1"],
    ],
)
def test_usage_errors(prepare_tool, arguments):
    with pytest.raises(SystemExit) as stopped:
        prepare_tool.main(arguments)
    assert stopped.value.code == 2


def test_folder_that_is_not_there(prepare_tool, tmp_path, capsys):
    command = [
        "custom",
        str(tmp_path / "no"),
        "--config",
        MASK_RCNN,
        "--out",
        str(tmp_path / "a.py"),
    ]
    assert prepare_tool.main(command) == 2
    assert "no not found" in capsys.readouterr().err


def test_custom_folder_is_trained_on(
    prepare_tool, train_tool, folder, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "fruit.py"
    assert prepare_tool.main(["custom", str(folder), "--config", MASK_RCNN, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"train: 12 images in {folder / 'train'}, 36 objects" in printed
    assert printed.endswith(f"train with\n  uv run flatten-det train {out}\n")
    monkeypatch.chdir(tmp_path)
    options = ["train_cfg.max_iters=2", "train_cfg.val_interval=2", "train_dataloader.batch_size=2"]
    assert train_tool.main([str(out), "--cfg-options", *options]) == 0
    assert "coco/segm_mAP" in capsys.readouterr().out
    assert (tmp_path / "work_dirs" / "fruit" / "iter_2.pth").is_file()
