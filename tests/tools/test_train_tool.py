"""tools/train.py: options, results, and one-line errors."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from fixtures import write_detector_config, write_segmentor_config
from mmengine.config import Config
from tool_modules import one_line_error


@pytest.fixture
def captured(train_tool, monkeypatch) -> dict:
    """Stops the tool where the training would begin: its config goes here, and the rest as ``options``."""
    captured = {}
    monkeypatch.setattr(
        train_tool, "train", lambda cfg, **rest: captured.update(cfg.to_dict(), options=rest)
    )
    return captured


@pytest.fixture
def config(tmp_path, coco_folder) -> Path:
    return write_detector_config(tmp_path / "tiny.py", coco_folder)


def test_options_reach_the_config(train_tool, captured, config, tmp_path):
    work_dir = str(tmp_path / "run")
    options = ["--work-dir", work_dir, "--amp", "bf16", "--auto-scale-lr", "--no-data-check"]
    fields = ["train_cfg.max_epochs=7", "model.rpn_head.loss_cls.loss_weight=0.5"]
    launcher = ["--launcher", "none", "--cfg-options", *fields]
    assert train_tool.main([str(config), *options, *launcher]) == 0
    assert captured["work_dir"] == work_dir
    assert captured["optim_wrapper"]["type"] in ("AmpOptimWrapper", "CPUAmpOptimWrapper")
    assert captured["optim_wrapper"]["dtype"] == "bfloat16"
    assert captured["options"]["check_data"] is False
    assert captured["auto_scale_lr"]["enable"] is True
    assert captured["launcher"] == "none"
    assert captured["train_cfg"]["max_epochs"] == 7
    assert captured["model"]["rpn_head"]["loss_cls"]["loss_weight"] == 0.5
    assert captured["resume"] is False


def test_a_config_that_resumes_looks_for_the_newest_checkpoint(
    train_tool, captured, config, tmp_path, capsys
):
    """mmengine would open what the record names, or die of it."""
    command = [str(config), "--work-dir", str(tmp_path), "--cfg-options", "resume=True"]
    assert train_tool.main(command) == 0
    assert captured["load_from"] is None  # A new training, as by mmengine.
    (tmp_path / "last_checkpoint").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "epoch_1.pth").write_bytes(b"half")
    assert train_tool.main(command) == 2
    assert "none of the 1 checkpoints" in one_line_error(capsys)


def test_relative_config_from_another_folder(train_tool, captured, config, monkeypatch):
    monkeypatch.chdir(config.parent)
    assert train_tool.main([config.name]) == 0
    assert Path(captured["work_dir"]) == Path("work_dirs/tiny")
    assert captured["options"]["check_data"] is True


@pytest.mark.parametrize("given", ["auto", "path"])
def test_resume_reaches_the_config(train_tool, captured, trained_detector, given):
    config, checkpoint, _ = trained_detector
    value = [] if given == "auto" else [str(checkpoint)]
    options = ["--work-dir", str(checkpoint.parent), "--resume", *value]
    assert train_tool.main([str(config), *options]) == 0
    assert captured["resume"] is True
    assert captured["load_from"] == str(checkpoint)


def test_detector_training_leaves_its_results(trained_detector, capsys):
    config, checkpoint, _ = trained_detector
    assert checkpoint.name == "epoch_1.pth"
    assert list(checkpoint.parent.glob("*/vis_data/vis_image/*.png"))
    assert list(checkpoint.parent.glob("*/*.log"))
    assert Config.fromfile(checkpoint.parent / config.name).model.type == "MaskRCNN"


def test_summary_names_the_results(train_tool, ade20k_folder, tmp_path, capsys, monkeypatch):
    config = write_segmentor_config(tmp_path / "tiny-fpn.py", ade20k_folder)
    monkeypatch.chdir(tmp_path)
    assert train_tool.main([str(config), "--cfg-options", "train_cfg.max_iters=1"]) == 0
    summary = capsys.readouterr().out.split("Training finished.")[1].split()
    assert summary[0] == "checkpoint"
    for title, path in zip(summary[::2], summary[1::2], strict=True):
        assert title in ("checkpoint", "log", "pictures")
        assert Path(path).exists()


def test_amp_training_is_finite_and_resumes(train_tool, trained_segmentor, tmp_path):
    config, checkpoint, metrics = trained_segmentor
    assert 0 < metrics["aAcc"] <= 100
    # Without the logs: this run may begin in the second that they are named by.
    logs = shutil.ignore_patterns("vis_data")
    work_dir = shutil.copytree(checkpoint.parent, tmp_path / "moved", ignore=logs)
    options = ["--amp", "--resume", "--work-dir", str(work_dir)]
    assert train_tool.main([str(config), *options, "--cfg-options", "train_cfg.max_iters=6"]) == 0
    log = max(work_dir.glob("*/vis_data/scalars.json")).read_text().splitlines()
    steps = [json.loads(line)["iter"] for line in log if "loss" in line]
    assert steps == [5, 6]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["no-such.py"], "config file no-such.py not found"),
        (["broken.py"], "config file broken.py cannot be read: SyntaxError"),
        (
            ["tiny.py", "--cfg-options", "train_pipeline.9.type=Resize"],
            "--cfg-options does not fit config file tiny.py",
        ),
        (
            ["tiny.py", "--cfg-options", "model.backbone.type=ResNext"],
            "ResNext is not in the mmdet::model registry",
        ),
        (
            ["tiny.py", "--work-dir", "empty", "--resume"],
            "no checkpoint to resume in work dir empty",
        ),
        (["tiny.py", "--resume", "epoch_9.pth"], "checkpoint epoch_9.pth not found"),
    ],
)
def test_mistakes_are_told_in_one_line(train_tool, config, monkeypatch, capsys, command, message):
    monkeypatch.chdir(config.parent)
    Path("broken.py").write_text("model = dict(\n")
    assert train_tool.main(command) == 2
    assert message in one_line_error(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--amp", "fp8"], "argument --amp: invalid choice: 'fp8'"),
        (["--cfg-options", "max_epochs"], "argument --cfg-options"),
        (["--cfg-options", "train_cfg.max_epochs=[1,(2]"], "argument --cfg-options"),
        (["--weights", "a.pth", "--resume"], "argument --weights: a training that goes on"),
        (["--freeze", "-1"], "argument --freeze: must be at least 0"),
        (["--early-stopping", "0"], "argument --early-stopping: must be at least 1"),
        (["--log", "clearml"], "argument --log: invalid choice: 'clearml'"),
        (["--log"], "argument --log: expected at least one argument"),
    ],
)
def test_usage_errors(train_tool, options, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        train_tool.main(["config.py", *options])
    assert message in capsys.readouterr().err


def test_debug_shows_the_traceback(train_tool, capsys, tmp_path):
    assert train_tool.main([str(tmp_path / "no-such.py"), "--debug"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("error: ")


def test_unexpected_errors_keep_their_traceback(train_tool, config, monkeypatch):
    def broken(cfg, **_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(train_tool, "train", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        train_tool.main([str(config)])


_NO_VAL = ["val_dataloader=None", "val_evaluator=None"]


def test_options_are_repeated_where_all_errors_are_shown(train_tool, captured, tmp_path):
    """The command that lists them all reads the same data."""
    config = tmp_path / "a config.py"
    config.write_text("x = 1\n")
    options = ["x=/my run/a b", "y='it''s'"]
    for given in (["--cfg-options", *options], []):
        assert train_tool.main([f"{config}", *given]) == 0
        start = ["uv", "run", "flatten-det", "check", f"{config}"]
        assert shlex.split(captured["options"]["check_command"]) == [*start, *given]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


def spoil(path: Path) -> None:
    path.write_bytes(b"no image" * 99)


ANNOTATIONS = "annotations/instances_train2017.json"
IMAGE = f"train2017/{4:012d}.jpg"


class TestBrokenData:
    """Every test has a data folder of its own to break."""

    @pytest.fixture
    def coco(self, coco_folder, tmp_path) -> Path:
        return shutil.copytree(coco_folder, tmp_path / "coco")

    @pytest.fixture
    def ade20k(self, ade20k_folder, tmp_path) -> Path:
        return shutil.copytree(ade20k_folder, tmp_path / "ade20k")

    @pytest.fixture
    def train(self, train_tool, tmp_path):
        def train(config: Path, *options: str) -> int:
            return train_tool.main([str(config), "--work-dir", str(tmp_path / "run"), *options])

        return train

    def test_missing_data_folder(self, train, ade20k, tmp_path, capsys):
        config = write_segmentor_config(tmp_path / "tiny.py", ade20k)
        shutil.rmtree(ade20k)
        assert train(config) == 2
        assert f"{ade20k / 'images' / 'training'}" in one_line_error(capsys)

    def test_broken_annotations(self, train, coco, tmp_path, capsys):
        path = coco / "annotations" / "instances_val2017.json"
        content = json.loads(path.read_text())
        content["annotations"][0]["image_id"] = 999
        path.write_text(json.dumps(content))
        config = write_detector_config(tmp_path / "tiny.py", coco)
        assert train(config) == 2
        error = one_line_error(capsys)
        assert f"error: the data has 1 error, the first: {path}: annotation 1 of image 999" in error
        assert f"uv run flatten-det check {config} ;" in error
        assert not list(tmp_path.rglob("*.pth"))
        # pycocotools passes over it.
        assert train(config, "--no-data-check", "--cfg-options", "val_cfg=None", *_NO_VAL) == 0

    @pytest.mark.parametrize(
        ("file", "damage", "workers", "message"),
        [
            (ANNOTATIONS, Path.unlink, 0, "{} not found"),
            (ANNOTATIONS, cut, 0, "annotation file {} is not valid JSON"),
            (IMAGE, spoil, 0, "image {} "),
            (IMAGE, spoil, 2, "image {} "),
            (IMAGE, cut, 0, "image {} "),
            (IMAGE, lambda path: path.write_bytes(b""), 0, "image {} "),
            (IMAGE, Path.unlink, 0, "image {} "),
            (f"val2017/{2:012d}.jpg", spoil, 0, "image {} cannot be decoded"),
        ],
    )
    def test_broken_files(self, train, coco, tmp_path, capsys, file, damage, workers, message):
        damage(coco / file)
        options = [f"train_dataloader.num_workers={workers}"]
        if workers:
            options.append("train_dataloader.persistent_workers=True")
        config = write_detector_config(tmp_path / "tiny.py", coco)
        assert train(config, "--cfg-options", *options) == 2
        assert message.format(coco / file) in one_line_error(capsys)

    def test_broken_label_map(self, train, ade20k, tmp_path, capsys):
        for path in (ade20k / "annotations" / "training").iterdir():
            spoil(path)
        assert train(write_segmentor_config(tmp_path / "tiny.py", ade20k)) == 2
        assert f"image {ade20k / 'annotations' / 'training'}" in one_line_error(capsys)
