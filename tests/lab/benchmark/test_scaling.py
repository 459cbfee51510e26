"""What is said of measured steps, the model of an all-reduce behind it, and a training measured here."""

import pytest
from mmengine.registry import MODELS
from toy_training import LineModel, make_config

from flatten_det.errors import UserError
from flatten_det.lab.benchmark.scaling import (
    BUCKET_BYTES,
    World,
    cells,
    explain_table,
    measure,
    ring_seconds,
    step_seconds,
)

ONE = World(1, "cpu", 1, 4, [2.0, 1.0, 1.5], [], [], 4 * 10**9, 2**30)
TWO = World(2, "cpu", 1, 4, [2.5, 2.0, 3.0], [2.0, 1.0, 2.4], [0.4, 0.5, 0.6], 4 * 10**9, None)


def test_figures_of_two_processes():
    figures = TWO.figures(ONE)
    assert figures["images_per_second"] == pytest.approx(2 * 4 / 2.5)
    assert figures["efficiency"] == pytest.approx(1.5 / 2.5)
    # The median of the rounds 0.8, 0.5 and 0.8.
    assert figures["communication"] == pytest.approx(0.2)
    # Each of two sends all of it once.
    assert figures["bytes_per_second"] == pytest.approx(4e9 / 0.5)
    # On a CPU nothing is hidden, on GPUs all but the last bucket.
    assert figures["predicted_step_s"] == pytest.approx(2.0 + 0.5)
    on_gpus = World(*["cuda" if x == "cpu" else x for x in vars(TWO).values()])
    hidden = 0.5 * BUCKET_BYTES / 4e9
    assert on_gpus.figures(ONE)["predicted_step_s"] == pytest.approx(2.0 + hidden)


def test_figures_of_one_process_and_without_it():
    figures = ONE.figures(ONE)
    assert figures["efficiency"] == 1
    assert cells(figures)["communication %"] == ""
    assert TWO.figures(None)["efficiency"] is None


def test_cores_that_do_not_suffice_are_told(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert "at most 50% with 2." in explain_table([ONE, TWO])
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert explain_table([ONE, TWO]).endswith("There are 2 cores.")


def test_ring():
    assert ring_seconds(1e9, 1, 1e9, 1.0) == 0
    assert ring_seconds(1e9, 2, 1e9) == pytest.approx(1)
    # Many processes send each byte nearly twice.
    times = [ring_seconds(1e9, n, 1e9) for n in (2, 8, 64, 10**6)]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(2, rel=1e-5)
    assert ring_seconds(1e9, 8, 1e9, 1e-3) - times[1] == pytest.approx(14e-3)


def test_no_step_is_shorter_than_its_parts():
    assert step_seconds(1.0, 0.0, 1e9) == 1
    assert step_seconds(1.0, 3.0, 1e9, overlap=0) == 4
    assert step_seconds(1.0, 3.0, 1e9, overlap=0.5) == 3.5
    # Of gradients that fit into one bucket nothing is hidden.
    assert step_seconds(1.0, 0.25, 1e6) == 1.25


def test_a_training_in_this_process(tmp_path):
    cfg = make_config(tmp_path, by_epoch=True)
    world = measure(cfg, steps=3, warmup=1)
    assert (world.processes, world.batch, len(world.step)) == (1, 2, 3)
    assert world.gradient_bytes == 4 * 4
    assert (world.alone, world.all_reduce) == ([], [])
    assert min(world.step) > 0
    assert not (tmp_path / "run").exists()


@MODELS.register_module()
class FrozenLine(LineModel):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.type": "FrozenLine"}, "has no weight to train"),
        ({"train_dataloader.batch_size": 20, "train_dataloader.drop_last": True}, "not enough im"),
    ],
)
def test_nothing_to_train(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        measure(make_config(tmp_path, True, changes), steps=1, warmup=0)
