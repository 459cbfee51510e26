"""tools/train.py: options, results, and one-line errors."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from fixtures import write_detector_config, write_segmentor_config
from mmengine.config import Config


@pytest.fixture
def captured(train_tool, monkeypatch) -> dict:
    """Stops the tool where the training would begin; the config it would use goes here."""
    captured = {}
    monkeypatch.setattr(train_tool, "train", lambda cfg, **_: captured.update(cfg.to_dict()))
    return captured


@pytest.fixture
def config(tmp_path, coco_folder) -> Path:
    return write_detector_config(tmp_path / "tiny.py", coco_folder)


def one_line_error(capsys) -> str:
    """The last line on stderr, the only one but for warnings of the frameworks."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert text.endswith(f"{line}\n")
    return line


@pytest.mark.parametrize(("options", "checked"), [([], True), (["--no-data-check"], False)])
def test_data_check_can_be_switched_off(train_tool, config, monkeypatch, options, checked):
    calls = []
    monkeypatch.setattr(train_tool, "train", lambda cfg, **kwargs: calls.append(kwargs))
    assert train_tool.main([str(config), *options]) == 0
    assert [call["check_data"] for call in calls] == [checked]


def test_options_reach_the_config(train_tool, captured, config, tmp_path):
    work_dir = str(tmp_path / "run")
    options = ["--work-dir", work_dir, "--amp", "--auto-scale-lr", "--launcher", "none"]
    fields = ["train_cfg.max_epochs=7", "model.rpn_head.loss_cls.loss_weight=0.5"]
    assert train_tool.main([str(config), *options, "--cfg-options", *fields]) == 0
    assert captured["work_dir"] == work_dir
    assert captured["optim_wrapper"]["type"] in ("AmpOptimWrapper", "CPUAmpOptimWrapper")
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


@pytest.mark.parametrize(("dtype", "field"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_amp_takes_a_dtype(train_tool, captured, config, dtype, field):
    assert train_tool.main([str(config), "--amp", dtype]) == 0
    assert captured["optim_wrapper"]["dtype"] == field


def test_an_unknown_amp_dtype(train_tool, config, capsys):
    with pytest.raises(SystemExit, match="2"):
        train_tool.main([str(config), "--amp", "fp8"])
    assert "argument --amp: invalid choice: 'fp8'" in capsys.readouterr().err


def test_relative_config_from_another_folder(train_tool, captured, config, monkeypatch):
    monkeypatch.chdir(config.parent)
    assert train_tool.main([config.name]) == 0
    assert Path(captured["work_dir"]) == Path("work_dirs/tiny")


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


def test_missing_config(train_tool, capsys, tmp_path):
    path = tmp_path / "no-such.py"
    assert train_tool.main([str(path)]) == 2
    assert f"config file {path} not found" in one_line_error(capsys)


def test_config_with_syntax_error(train_tool, capsys, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("model = dict(\n")
    assert train_tool.main([str(path)]) == 2
    assert f"config file {path} cannot be read: SyntaxError" in one_line_error(capsys)


@pytest.mark.parametrize("option", ["max_epochs", "train_cfg.max_epochs=[1,(2]"])
def test_bad_cfg_options(train_tool, capsys, config, option):
    with pytest.raises(SystemExit, match="2"):
        train_tool.main([str(config), "--cfg-options", option])
    assert "argument --cfg-options" in capsys.readouterr().err


def test_cfg_options_that_do_not_fit(train_tool, capsys, config, tmp_path):
    options = ["--work-dir", str(tmp_path), "--cfg-options", "train_pipeline.9.type=Resize"]
    assert train_tool.main([str(config), *options]) == 2
    assert f"--cfg-options does not fit config file {config}" in one_line_error(capsys)


def test_unknown_component(train_tool, capsys, config, tmp_path):
    options = ["--work-dir", str(tmp_path), "--cfg-options", "model.backbone.type=ResNext"]
    assert train_tool.main([str(config), *options]) == 2
    assert "ResNext is not in the mmdet::model registry" in one_line_error(capsys)


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


def test_nothing_to_resume(train_tool, capsys, config, tmp_path):
    work_dir = tmp_path / "empty"
    assert train_tool.main([str(config), "--work-dir", str(work_dir), "--resume"]) == 2
    assert f"no checkpoint to resume in work dir {work_dir}" in one_line_error(capsys)


def test_missing_checkpoint_to_resume(train_tool, capsys, config, tmp_path):
    path = tmp_path / "epoch_9.pth"
    assert train_tool.main([str(config), "--resume", str(path)]) == 2
    assert f"checkpoint {path} not found" in one_line_error(capsys)


_NO_VAL = ["val_dataloader=None", "val_evaluator=None"]


def test_options_are_repeated_where_all_errors_are_shown(train_tool, tmp_path, monkeypatch):
    """The command that lists them all reads the same data."""
    config = tmp_path / "a config.py"
    config.write_text("x = 1\n")
    commands = []
    monkeypatch.setattr(
        train_tool, "train", lambda cfg, check_command, **rest: commands.append(check_command)
    )
    options = ["x=/my run/a b", "y='it''s'"]
    assert train_tool.main([f"{config}", "--cfg-options", *options, "--no-data-check"]) == 0
    assert train_tool.main([f"{config}"]) == 0
    start = ["uv", "run", "flatten-det", "check", f"{config}"]
    assert [shlex.split(command) for command in commands] == [
        [*start, "--cfg-options", *options],
        start,
    ]


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

    def test_missing_annotation_file(self, train, coco, tmp_path, capsys):
        path = coco / "annotations" / "instances_train2017.json"
        path.unlink()
        assert train(write_detector_config(tmp_path / "tiny.py", coco)) == 2
        assert f"{path} not found" in one_line_error(capsys)

    def test_truncated_annotation_file(self, train, coco, tmp_path, capsys):
        path = coco / "annotations" / "instances_train2017.json"
        path.write_text(path.read_text()[:1000])
        assert train(write_detector_config(tmp_path / "tiny.py", coco)) == 2
        assert f"annotation file {path} is not valid JSON" in one_line_error(capsys)

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
        ("damage", "workers"),
        [("garbage", 0), ("truncated", 0), ("empty", 0), ("missing", 0), ("garbage", 2)],
    )
    def test_broken_image(self, train, coco, tmp_path, capsys, damage, workers):
        path = coco / "train2017" / f"{4:012d}.jpg"
        content = path.read_bytes()
        damaged = {"garbage": b"no image" * 99, "truncated": content[:700], "empty": b""}
        path.unlink() if damage == "missing" else path.write_bytes(damaged[damage])
        options = [f"train_dataloader.num_workers={workers}"]
        if workers:
            options.append("train_dataloader.persistent_workers=True")
        config = write_detector_config(tmp_path / "tiny.py", coco)
        assert train(config, "--cfg-options", *options) == 2
        assert f"image {path} " in one_line_error(capsys)

    def test_broken_validation_image(self, train, coco, tmp_path, capsys):
        path = coco / "val2017" / f"{2:012d}.jpg"
        path.write_bytes(b"no image" * 99)
        assert train(write_detector_config(tmp_path / "tiny.py", coco)) == 2
        assert f"image {path} cannot be decoded" in one_line_error(capsys)

    def test_broken_label_map(self, train, ade20k, tmp_path, capsys):
        for path in (ade20k / "annotations" / "training").iterdir():
            path.write_bytes(b"no image" * 99)
        assert train(write_segmentor_config(tmp_path / "tiny.py", ade20k)) == 2
        assert f"image {ade20k / 'annotations' / 'training'}" in one_line_error(capsys)
