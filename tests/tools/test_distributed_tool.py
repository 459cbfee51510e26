"""Several processes of ``train`` and ``test`` on a CPU: ``--processes``."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import make_coco_folder, write_detector_config, write_segmentor_config
from forked_ranks import Forker

NANO = (
    "model['backbone'] = dict(_delete_=True, type='FLattenPVT', arch=dict(embed_dims=(8, 16, 32, 64), "
    "num_heads=(1, 1, 2, 4), depths=(1, 1, 1, 1)))\n"
)


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    with Forker() as forker:
        yield forker


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
    command = forker.run(tmp_path / "run", "train", config, "--processes", 2)
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
