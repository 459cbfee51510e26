"""TensorBoard, Weights & Biases and MLflow: what is read back from them after a training."""

import struct
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from fixtures import write_detector_config, write_segmentor_config
from mmengine.config import Config
from mmengine.visualization import TensorboardVisBackend
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tool_modules import load_tool
from toy_training import Calling, make_config

from flatten_det.errors import UserError
from flatten_det.predict.drawing import ValidationPicturesHook
from flatten_det.train.logs import how_to_install
from flatten_det.train.resume import resume_from
from flatten_det.train.run import train
from flatten_det.train.stop import TrainingInterrupted, TrainingPreempted

LOCAL = {"type": "LocalVisBackend"}


def toy(folder: Path, backends=(LOCAL,), by_epoch: bool = True) -> Config:
    """15 iterations with a validation after each five, whose log counts epochs; or iterations."""
    cfg = make_config(folder, by_epoch)
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=2)
    cfg.default_hooks.logger = {
        "type": "LoggerHook", "interval": 1, "log_metric_by_epoch": by_epoch,
    }  # fmt: skip
    cfg.visualizer = {"type": "Visualizer", "vis_backends": list(backends)}
    return cfg


def stop_at(iteration: int, error: BaseException) -> Calling:
    def stop(runner) -> None:
        if runner.iter + 1 == iteration:
            raise error

    return Calling(stop)


def events(folder: Path) -> EventAccumulator:
    (run,) = {path.parent for path in folder.rglob("events.out*")}
    return EventAccumulator(str(run), {"scalars": 0, "images": 0, "tensors": 0}).Reload()


def steps(log: EventAccumulator, name: str) -> list[int]:
    return [event.step for event in log.Scalars(name)]


@pytest.mark.parametrize("by_epoch", [True, False])
def test_one_axis_and_one_run_after_a_crash(tmp_path, by_epoch):
    """What the crashed run wrote after its last checkpoint is there once, not twice."""
    with pytest.raises(ZeroDivisionError):
        train(
            toy(tmp_path, by_epoch=by_epoch),
            hooks=[stop_at(8, ZeroDivisionError())],
            logs=["tensorboard"],
        )
    cfg = toy(tmp_path, by_epoch=by_epoch)
    resume_from(cfg, "auto")
    assert cfg.load_from.endswith("iter_6.pth")
    train(cfg, logs=["tensorboard"])
    log = events(tmp_path / "run" / "tensorboard")
    assert steps(log, "loss") == steps(log, "lr") == steps(log, "time") == list(range(1, 16))
    assert steps(log, "toy/mean") == steps(log, "val/time") == [5, 10, 15]
    (text,) = log.Tensors("config/text_summary")[-1].tensor_proto.string_val
    assert b"type='LineModel'" in text
    # What flatten-det plot draws, and what others start from.
    scalars = max((tmp_path / "run").glob("*/vis_data/scalars.json")).read_text()
    assert scalars.count("toy/mean") >= 2
    assert "ensorboard" not in (tmp_path / "run" / "toy.json").read_text()


def test_a_new_training_is_a_new_run(tmp_path):
    for _ in range(2):
        train(toy(tmp_path), logs=["tensorboard", "tensorboard"])
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 2


@pytest.mark.parametrize("logs", [[], ["tensorboard"]])
def test_backends_of_the_config_stay(tmp_path, logs):
    """None is lost, and none there twice."""
    own = {"type": "TensorboardVisBackend", "save_dir": str(tmp_path / "mine")}
    train(toy(tmp_path, [LOCAL, own]), logs=logs)
    assert steps(events(tmp_path / "mine"), "toy/mean") == [5, 10, 15]
    assert not (tmp_path / "run" / "tensorboard").exists()
    (scalars,) = (tmp_path / "run").glob("*/vis_data/scalars.json")
    assert scalars.read_text().count("toy/mean") == 3


def test_a_class_in_the_config(tmp_path):
    """As pure-Python configs have it: mmengine's own, which would write epochs into another folder."""
    cfg = toy(tmp_path)
    cfg.visualizer.vis_backends = [{"type": TensorboardVisBackend}]
    train(cfg)
    assert steps(events(tmp_path / "run" / "tensorboard"), "toy/mean") == [5, 10, 15]


def test_large_pictures_and_odd_names(tmp_path):
    picture = np.zeros((900, 5000, 3), np.uint8)

    def add(runner) -> None:
        if runner.iter == 2:
            runner.visualizer.add_image("a <b>\x1b(c)@0.5", picture, step=77)

    train(toy(tmp_path), hooks=[Calling(add)], logs=["tensorboard"])
    log = events(tmp_path / "run" / "tensorboard")
    (image,) = log.Images("a _b___c__0.5")
    assert (image.step, image.width, image.height) == (3, 1024, 184)


@pytest.mark.parametrize("there", [None, "0.1"], ids=["missing", "too old"])
def test_a_missing_package_is_told_before_anything_is_built(tmp_path, monkeypatch, there):
    version = metadata.version

    def without_two(name: str) -> str:
        if name not in ("wandb", "alembic"):
            return version(name)
        if there is None:
            raise metadata.PackageNotFoundError(name)
        return there

    monkeypatch.setattr(metadata, "version", without_two)
    command = "uv sync --extra wandb --extra mlflow"
    with pytest.raises(UserError, match=f"log of wandb and mlflow needs .*: {command}$"):
        train(toy(tmp_path), logs=["mlflow", "tensorboard", "wandb"])
    with pytest.raises(UserError, match="log of wandb needs"):
        train(toy(tmp_path, [LOCAL, {"type": "WandbVisBackend"}]))
    assert not (tmp_path / "run").exists()


def test_how_to_install_in_an_installation(monkeypatch):
    monkeypatch.setattr("flatten_det.train.logs.IN_CHECKOUT", False)
    assert 'pip install "flatten-det[wandb,mlflow]"' in how_to_install(["wandb", "mlflow"])


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """``flatten-det train`` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return load_tool("train")


def test_the_same_few_pictures_of_each_validation(
    tool, tmp_path, ade20k_folder, monkeypatch, capsys
):
    monkeypatch.setattr(ValidationPicturesHook, "pictures", 2)
    write_segmentor_config(tmp_path / "tiny.py", ade20k_folder)
    fields = ["train_cfg.max_iters=2", "train_cfg.val_interval=1"]
    assert tool.main(["tiny.py", "--log", "tensorboard", "--cfg-options", *fields]) == 0
    log = events(tmp_path)
    names = log.Tags()["images"]
    assert len(names) == 2  # of three images
    assert all([image.step for image in log.Images(name)] == [1, 2] for name in names)
    # The config's own hook would have drawn all three.
    assert len(list(tmp_path.rglob("vis_image/*.png"))) == 4
    assert capsys.readouterr().out.count("tensorboard --logdir work_dirs/tiny/tensorboard") == 2


def wandb_records(file: Path) -> list:
    """Of an offline run: LevelDB's log format behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, place, part, records = file.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        if (room := 32768 - place % 32768) < 7:
            place += room
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        part += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            records.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return records


def wandb_runs(work_dir: Path) -> list[dict]:
    """Id, exit code and rows of the starts of a training, the first one first."""
    runs = []
    for file in sorted(work_dir.glob("wandb/offline-run-*/*.wandb")):
        records = {}
        for record in wandb_records(file):
            kind = record.WhichOneof("record_type")
            records.setdefault(kind, []).append(getattr(record, kind))
        rows = [
            {(item.key or item.nested_key[0]): item.value_json for item in row.item}
            for row in records["history"]
        ]
        runs.append(
            {
                "id": records["run"][0].run_id,
                "exit": records["exit"][0].exit_code,
                "preempting": "preempting" in records,
                "config": {item.key for each in records["config"] for item in each.update},
                "rows": rows,
            }
        )
    return runs


def mlflow_runs(work_dir: Path) -> tuple:
    """A client, and the runs that it finds."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{work_dir / 'mlflow' / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "flatten-det"]
    return client, client.search_runs([experiment.experiment_id])


@pytest.fixture
def offline(monkeypatch):
    """No account, no server; keys that must not be written anywhere."""
    for name in ("WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.setenv(name, "5ec2e7" * 6 + "5ec2")


@pytest.mark.slow
def test_all_logs_of_a_detector(tool, tmp_path, coco_folder, offline):
    write_detector_config(tmp_path / "tiny.py", coco_folder)
    command = ["tiny.py", "--log", "tensorboard", "wandb", "mlflow"]
    assert tool.main(command) == 0
    longer = ["--cfg-options", "train_cfg.max_epochs=2", "optim_wrapper.optimizer.lr=0.001"]
    assert tool.main([*command, "--resume", *longer]) == 0
    work_dir = tmp_path / "work_dirs" / "tiny"
    metric = "coco/segm_mAP"
    log = events(work_dir / "tensorboard")
    assert steps(log, "loss") == [1, 2, 3, 4, 5, 6]
    # A checkpoint is older than the validation after it, which a resumed training repeats.
    validated = [3, 3, 6]
    assert steps(log, metric) == validated
    pictures = sorted(log.Tags()["images"])
    assert len(pictures) == 3

    first, second = wandb_runs(work_dir)
    assert first["id"] == second["id"]
    assert first["exit"] == second["exit"] == 0
    assert {"model", "train_cfg"} <= first["config"]
    rows = first["rows"] + second["rows"]
    assert [int(row["iter"]) for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [int(row["iter"]) for row in rows if metric in row] == validated
    assert [int(row["iter"]) for row in rows if pictures[0] in row] == validated

    client, (run,) = mlflow_runs(work_dir)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.type"] == "MaskRCNN"
    history = client.get_metric_history
    assert [m.step for m in history(run.info.run_id, "loss")] == [1, 2, 3, 4, 5, 6]
    assert [m.step for m in history(run.info.run_id, metric)] == validated
    images = [a.path for a in client.list_artifacts(run.info.run_id, "images")]
    assert len([path for path in images if path.endswith(".png")]) == 9
    top = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert {"config.py", "images"} <= top
    assert "mlflow" not in top  # Its own files, again and again.

    for path in work_dir.rglob("*"):
        assert path.is_dir() or b"5ec2e75ec2e7" not in path.read_bytes(), path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (ZeroDivisionError(), 1, "FAILED"),
        (TrainingInterrupted("Ctrl-C"), 255, None),
        (TrainingPreempted("SIGTERM"), 255, "KILLED"),
    ],
    ids=["crash", "Ctrl-C", "SIGTERM"],
)
def test_state_of_a_run_that_did_not_end(tmp_path, offline, error, code, status):
    logs = ["wandb", "mlflow"] if status else ["wandb"]
    odd = Calling(lambda runner: runner.visualizer.add_scalar("AP@0.5 (odd)", runner.iter))
    with pytest.raises(type(error)):
        train(toy(tmp_path), hooks=[odd, stop_at(4, error)], logs=logs)
    work_dir = tmp_path / "run"
    (run,) = wandb_runs(work_dir)
    assert (run["exit"], run["preempting"]) == (code, isinstance(error, TrainingPreempted))
    if status is None:
        return
    client, (found,) = mlflow_runs(work_dir)
    assert found.info.status == status
    names = client.get_metric_history(found.info.run_id, "AP_0.5 _odd_")
    assert [metric.step for metric in names] == [1, 2, 3, 4]


@pytest.mark.slow
def test_without_an_account_wandb_is_offline_and_asks_nothing(
    tmp_path, offline, monkeypatch, capsys
):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    train(toy(tmp_path), logs=["wandb"])
    (run,) = wandb_runs(tmp_path / "run")
    assert run["exit"] == 0
    captured = capsys.readouterr()
    assert "no API key of Weights & Biases" in captured.err
    assert "wandb sync " in captured.out
