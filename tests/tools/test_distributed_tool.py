"""Several processes of ``train`` and ``test`` on a CPU: ``--processes``, and torchrun on two nodes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mmengine
import pytest
import torch
from fixtures import make_coco_folder, write_detector_config, write_segmentor_config
from forked_ranks import HELPERS, Forker, wait_for
from rank_hooks import journal, write_toy
from readme_commands import SEVERAL, few_images, save_random_weights, words_of
from toy_training import final_state

from flatten_det.files.checkpoints import load_as_data

NANO = (
    "model['backbone'] = dict(_delete_=True, type='FLattenPVT', arch=dict(embed_dims=(8, 16, 32, 64), "
    "num_heads=(1, 1, 2, 4), depths=(1, 1, 1, 1)))\n"
)


@pytest.fixture(scope="module")
def five_images(tmp_path_factory) -> Path:
    return make_coco_folder(tmp_path_factory.mktemp("five"), num_train=10, num_val=3)


@pytest.fixture
def detector(tmp_path, five_images) -> Path:
    config = write_detector_config(tmp_path / "detector.py", five_images)
    config.write_text(config.read_text() + NANO + "train_dataloader['batch_size'] = 1\n")
    return config


@pytest.fixture
def segmentor(tmp_path, ade20k_folder) -> Path:
    config = write_segmentor_config(tmp_path / "segmentor.py", ade20k_folder)
    config.write_text(config.read_text() + NANO + "train_cfg.update(max_iters=5, val_interval=5)\n")
    return config


@pytest.mark.parametrize("kind", ["detector", "segmentor"])
def test_two_processes_train_and_one_of_them_speaks(request, forker, tmp_path, kind):
    config = request.getfixturevalue(kind)
    command = forker.run(config.parent, "train", config, "--processes", 2)
    assert command.errors == ""
    assert "2 x cpu" in command.output
    assert command.output.count("[5/5]") == 1
    assert command.output.count("validation, ") == 1
    assert command.output.count("Training finished.") == 1
    work_dir = command.folder / "work_dirs" / kind
    assert (work_dir / "last_checkpoint").exists()
    assert len(list(work_dir.glob("*/vis_data/scalars.json"))) == 1


def test_what_is_wrong_for_all_is_said_once(forker, detector, tmp_path):
    options = ["--processes", 2, "--cfg-options", "model.backbone.arch=nothing"]
    command = forker.start(tmp_path / "run", "train", detector, *options)
    assert forker.wait(command) == 2
    (line,) = command.errors.splitlines()
    assert line.startswith("error (rank ")
    assert "nothing" in line


def samples(work_dir: Path, ranks: int) -> dict[int, list]:
    """By iteration: what was trained on, with its augmentation, by all ranks together."""
    found: dict[int, list] = {}
    for rank in range(ranks):
        for entry in journal(work_dir, rank):
            pairs = zip(entry["items"], entry["noise"], strict=True)
            found[entry["iter"]] = sorted([*found.get(entry["iter"], []), *pairs])
    return found


@pytest.mark.slow
def test_the_manuals_command_renders_its_images_once(forker, tmp_path):
    """With few of them."""
    short = ["train_cfg.max_iters=2", "train_cfg.val_interval=2", "train_dataloader.batch_size=2"]
    command = forker.run(
        tmp_path / "run", *words_of(SEVERAL)[1:], "--cfg-options", *few_images(8), *short
    )
    assert command.errors == ""
    assert len(list(command.folder.glob("data/*/*/images/*.jpg"))) == 2 * 8
    assert sorted(path.name for path in command.folder.iterdir() if path.is_dir()) == [
        "data",
        "work_dirs",
    ]
    assert "batches of 2 x 2" in command.output


@pytest.mark.slow
@pytest.mark.parametrize("by_epoch", [True, False], ids=["epochs", "iterations"])
def test_any_number_of_ranks_sees_the_same_and_goes_on_with_the_others_checkpoints(
    forker, tmp_path, by_epoch
):
    """The samples of each iteration, and their augmentations, with the same global batch."""
    data = {"train_dataloader.dataset.length": 20}
    changes = {count: {"train_dataloader.batch_size": 4 // count} | data for count in (1, 2, 4)}
    seen = {}
    for count in changes:
        folder = tmp_path / str(count)
        config = write_toy(folder, by_epoch=by_epoch, **changes[count])
        forker.run(folder, "train", config, "--processes", count, "--work-dir", folder / "run")
        seen[count] = samples(folder / "run", count)
    assert len(seen[1]) == 15
    assert all(len(of_iteration) == 4 for of_iteration in seen[1].values())
    assert seen[1] == seen[2] == seen[4]
    for before, count in ((1, 2), (2, 1), (4, 2), (4, 1)):
        folder = tmp_path / f"{before} to {count}"
        config = write_toy(folder, by_epoch=by_epoch, **changes[count])
        checkpoint = tmp_path / str(before) / "run" / "iter_7.pth"
        options = ["--work-dir", folder / "run", "--resume", checkpoint]
        forker.run(folder, "train", config, "--processes", count, *options)
        assert samples(folder / "run", count) == {i: seen[1][i] for i in range(7, 15)}


@pytest.mark.slow
def test_a_killed_rank_is_started_again_with_the_others_from_their_last_checkpoint(
    forker, tmp_path
):
    """Not from that of an earlier run in the same folder, which is newer than none."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    forker.run(whole, "train", write_toy(whole), "--processes", 2, "--work-dir", whole / "run")
    options = ["--processes", 2, "--work-dir", killed / "run", "--max-restarts", 2]
    # The first one leaves a checkpoint of its iteration 9, with other weights.
    config = write_toy(killed, **{"optim_wrapper.optimizer.lr": 0.3})
    forker.run(killed, "train", config, *options)
    failing = {"type": "FailingRank", "rank": 1, "iteration": 7, "how": "kill"}
    command = forker.run(killed, "train", write_toy(killed, failing), *options)
    (line,) = [line for line in command.errors.splitlines() if "SIGKILL" in line]
    assert line.startswith("error (rank 1 of 2): killed by SIGKILL")
    assert line.endswith("starting again (1 of 2)")
    done = [entry["iter"] for entry in journal(killed / "run")][9:]
    assert done == list(range(9))
    found, expected = (final_state(folder / "run", 9) for folder in (killed, whole))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.slow
def test_a_rank_that_fails_says_last_why_and_ends_all(forker, tmp_path):
    """Before there is a checkpoint, all begin again."""
    failing = {"type": "FailingRank", "rank": 1, "iteration": 0, "how": "its own words"}
    config = write_toy(tmp_path / "toy", failing)
    begin = time.monotonic()
    command = forker.start(config.parent, "train", config, "--processes", 2)
    assert forker.wait(command) == 1
    assert time.monotonic() - begin < 60
    last = command.errors.splitlines()[-1]
    assert last == "error (rank 1 of 2): ArithmeticError: its own words"
    options = ["--processes", 2, "--max-restarts", 1]
    command = forker.run(config.parent, "train", config, *options)
    assert "starting again (1 of 1)" in command.errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "exit_code", "name"),
    [(signal.SIGTERM, 0, "terminated (SIGTERM)"), (signal.SIGINT, 130, "interrupted")],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_signals_reach_the_ranks_which_save(forker, tmp_path, number, exit_code, name):
    config = write_toy(tmp_path / "toy", **{"train_cfg.max_epochs": 10_000})
    options = ["--processes", 2, "--max-restarts", 3]
    command = forker.start(config.parent, "train", config, *options)
    work_dir = command.folder / "run"
    lines = work_dir / "rank0.jsonl"
    wait_for(lambda: lines.exists() and len(journal(work_dir)) >= 3)
    os.kill(command.pid, number)
    assert forker.wait(command) == exit_code
    announced, stopped = command.errors.strip().splitlines()
    assert announced.startswith(f"{name}: saving a checkpoint after this iteration")
    assert stopped.startswith(f"{name} after iteration ")
    saved = load_as_data(str(work_dir / "interrupted.pth"))
    assert len(journal(work_dir)) == len(journal(work_dir, 1)) == saved["meta"]["iter"]


def predictions(out: Path) -> dict[str, list | bytes]:
    """Of each image: all numbers of a detector, or the file of a segmentor."""
    if out.is_dir():
        return {file.name: file.read_bytes() for file in sorted(out.iterdir())}
    return {
        sample["img_path"]: [
            (name, value.tolist() if isinstance(value, torch.Tensor) else value)
            for name, value in sample["pred_instances"].items()
        ]
        for sample in mmengine.load(out)
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["detector", "segmentor"])
def test_the_results_of_a_test_are_those_of_one_process(request, forker, tmp_path, kind):
    config = request.getfixturevalue(kind)
    checkpoint = tmp_path / "weights" / "random.pth"
    save_random_weights(config, checkpoint)
    results = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        out = folder / ("results.pkl" if kind == "detector" else "maps")
        options = ["--processes", count, "--work-dir", folder / "logs", "--out", out]
        command = forker.run(folder, "test", config, checkpoint, *options)
        (metrics,) = folder.glob("logs/*/*.json")
        measured = json.loads(metrics.read_text())
        results[count] = (
            {name: value for name, value in measured.items() if "time" not in name},
            predictions(out),
        )
    assert command.errors == ""
    assert len(results[1][0]) > 2
    assert len(results[1][1]) == 3
    assert results[1] == results[2]


RETINANET = """
model = dict(
    _delete_=True, type="RetinaNet", data_preprocessor=dict(type="DetDataPreprocessor", pad_size_divisor=32),
    neck=dict(type="FPN", in_channels=[8, 16, 32, 64], out_channels=16, start_level=1, num_outs=5,
              add_extra_convs="on_input"),
    bbox_head=dict(
        type="RetinaHead", num_classes=80, in_channels=16, stacked_convs=1, feat_channels=16,
        anchor_generator=dict(type="AnchorGenerator", octave_base_scale=4, scales_per_octave=3,
                              ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True),
        loss_bbox=dict(type="L1Loss"),
    ),
    train_cfg=dict(
        assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0,
                      ignore_iof_thr=-1),
        sampler=dict(type="PseudoSampler"), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5),
                  max_per_img=10),
)
"""
# No sample is left to chance, and no rank has images, and with them numbers of objects, of its own.
EQUAL = """
train_dataloader['sampler'] = dict(type="DefaultSampler", shuffle=False)
train_dataloader['batch_sampler'] = None
train_dataloader['batch_size'] = {batch}
train_dataloader['dataset'].update(filter_cfg=None)
optim_wrapper = dict(
    accumulative_counts={accumulated}, optimizer=dict(_delete_=True, type={optimizer!r}, lr={lr})
)
param_scheduler = []
randomness = dict(seed=0)
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters={iterations}, val_interval=1000)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1000))
log_processor = dict(by_epoch=False)
custom_hooks = [dict(type="RankJournal")]
"""
ALL_SAMPLES = "model['train_cfg']['rpn'] = dict(sampler=dict(num=100_000))\n"
COPIES = 4


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> Path:
    """A data set in which each image comes four times in a row."""
    root = make_coco_folder(tmp_path_factory.mktemp("copies"), num_train=5, num_val=1)
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    images, objects = content["images"], content["annotations"]
    content["images"], content["annotations"] = [], []
    for image in images:
        for _ in range(COPIES):
            number = len(content["images"]) + 1
            content["images"].append(image | {"id": number})
            for one in (o for o in objects if o["image_id"] == image["id"]):
                new = {"id": len(content["annotations"]) + 1, "image_id": number}
                content["annotations"].append(one | new)
    path.write_text(json.dumps(content))
    return root


def train_equal(
    forker: Forker, folder: Path, copies: Path, kind: str, processes: int, iterations: int = 20,
    accumulated: int = 1, optimizer: str = "AdamW",
) -> Path:  # fmt: skip
    """Train with a global batch of four copies of an image; the work dir."""
    folder.mkdir()
    config = write_detector_config(folder / "equal.py", copies)
    batch = COPIES // processes // accumulated
    options = EQUAL.format(
        batch=batch,
        iterations=iterations,
        accumulated=accumulated,
        optimizer=optimizer,
        lr=1e-3 if optimizer == "AdamW" else 1e-2,
    )
    model = RETINANET + NANO.replace("_delete_=True, ", "")
    if kind == "Mask R-CNN":
        model = ALL_SAMPLES + NANO
    config.write_text(config.read_text() + model + options)
    options = ["--processes", processes, "--no-data-check"]
    forker.run(folder, "train", config, *options)
    return folder / "work_dirs" / "equal"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Mask R-CNN", "RetinaNet"])
def test_losses_of_several_processes_are_those_of_one(forker, tmp_path, copies, kind):
    """Where each rank has as many objects as the others: mmdet averages over those of a rank."""
    losses = {}
    for count in (1, 2, 4):
        work_dir = train_equal(forker, tmp_path / str(count), copies, kind, count)
        losses[count] = torch.tensor([entry["loss"] for entry in journal(work_dir)])
    assert losses[1].shape == (20,)
    assert losses[1][-1] < 0.95 * losses[1][0]
    torch.testing.assert_close(losses[2], losses[1], rtol=1e-4, atol=0)
    torch.testing.assert_close(losses[4], losses[1], rtol=1e-4, atol=0)


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_one_batch(forker, tmp_path, copies):
    weights = []
    for accumulated in (1, 4):
        folder = tmp_path / str(accumulated)
        iterations = 10 * accumulated
        # Adam would make much of rounding where gradients are nearly zero.
        schedule = (iterations, accumulated, "SGD")
        work_dir = train_equal(forker, folder, copies, "RetinaNet", 1, *schedule)
        weights.append(load_as_data(str(work_dir / f"iter_{iterations}.pth"))["state_dict"])
    # It began at the logarithm of 1 to 99.
    assert (weights[0]["bbox_head.retina_cls.bias"] + 4.595).abs().max() > 1e-3
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
def test_two_nodes_find_each_other_by_torchrun_though_one_is_late(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = write_toy(tmp_path / "toy")
    scripts = Path(sys.executable).parent
    command = [
        scripts / "torchrun", "--nnodes=2", "--nproc_per_node=1", "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1", "--no-python",
        scripts / "flatten-det", "train", config,
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(HELPERS), "OMP_NUM_THREADS": "1"}
    agents = []
    try:
        for delay in (20, 0):
            agents.append(
                subprocess.Popen(
                    command, cwd=config.parent, env=environment, text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
            time.sleep(delay)
        outputs = [agent.communicate(timeout=120) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert sum(output.count("Training finished.") for output, _ in outputs) == 1
    work_dir = config.parent / "run"
    assert len(journal(work_dir)) == len(journal(work_dir, 1)) == 9
