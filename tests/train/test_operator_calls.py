"""How many operators an iteration of a training calls, which is what a GPU waits for with small models.

An operator call is what a ``TorchDispatchMode`` sees: an operator below autograd, of the forward or the
backward pass, the optimizer, a hook or the data pipeline, but not those that it is made of. A ``_foreach`` or
fused operator is one. (A profiler lists the operators within operators too.) With one optimizer group per
parameter and a loop over the objects there were 3,170 and 11,650.
"""

from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from torch.utils._python_dispatch import TorchDispatchMode

from flatten_det.config import load_config
from flatten_det.train.run import train

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart"


class OperatorCalls(TorchDispatchMode):
    """Counts operator calls, and those among them that wait for the device to read one number."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.reading = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.total += 1
        self.reading += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


class CountIteration(Hook):
    """Counts from the end of the first iteration, which prepares much, to the end of the second."""

    def __init__(self) -> None:
        self.calls = OperatorCalls()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter == 0:
            self.calls.__enter__()
        else:
            self.calls.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("name", "most", "most_reading"),
    [
        ("flatten-pvt-nano_semantic-fpn_shapes", 1_400, 5),
        pytest.param("mask-rcnn_flatten-pvt-nano_fpn_shapes", 9_200, 100, marks=pytest.mark.slow),
    ],
)
def test_operator_calls_of_an_iteration(tmp_path, name, most, most_reading):
    cfg = load_config(QUICKSTART / f"{name}.py", {"train_cfg.max_iters": 2}, str(tmp_path / "run"))
    cfg.train_dataloader.dataset.update(
        data_root=str(tmp_path / "shapes"), num_images={"train": 24, "val": 1}
    )
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.log_level = "ERROR"
    count = CountIteration()
    train(cfg, check_data=False, hooks=[count])
    assert 0 < count.calls.total <= most
    assert count.calls.reading <= most_reading
