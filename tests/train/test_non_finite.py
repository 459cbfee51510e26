"""A loss or gradient that is not finite changes nothing, and is traced if it stays."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn
from toy_training import Calling, make_config

from flatten_det.errors import UserError
from flatten_det.train.finite_guard import (
    NonFiniteError,
    NonFiniteGuardHook,
    non_finite_guard,
    report_non_finite,
)
from flatten_det.train.resume import SeedIterationHook


class _Poison(torch.autograd.Function):
    """Finite forward, gradients that are not."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


class Layer(nn.Linear):
    """Fails in the way that is asked for, in the calls that are asked for."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.ways: dict[int, str] = {}
        self.calls = 0
        self.drawn: list[float] = []

    def forward(self, inputs):
        way = self.ways.get(self.calls)
        if self.training:
            self.calls += 1
            self.drawn.append(torch.rand(()).item())
        outputs = super().forward(inputs)
        if way == "gradient":
            return _Poison.apply(outputs)
        return outputs * float(way) if way else outputs


@MODELS.register_module()
class FragileModel(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1, 1)
        self.norm = nn.BatchNorm1d(1)
        self.layer = Layer()
        self.loss_factor: dict[int, float] = {}

    def forward(self, items, mode: str = "tensor", img_path=(), **kwargs):
        self.images = img_path
        inputs = torch.as_tensor(items, dtype=torch.float32)[:, None] / 10
        call = self.layer.calls
        outputs = self.layer(self.norm(self.first(inputs)))
        if mode != "loss":
            return [{"output": value} for value in outputs.flatten()]
        return {"loss": (outputs**2).mean() + self.loss_factor.get(call, 0.0)}


WRAPPERS = {
    "plain": {},
    "clipped": {"clip_grad": {"max_norm": 1.0}},
    "bf16": {"type": "CPUAmpOptimWrapper"},
    "fp16": dict(type="CPUAmpOptimWrapper", dtype="float16", loss_scale=dict(init_scale=1024.0)),
}


def prepare(tmp_path: Path, limit: int = 3, wrapper: dict | None = None):
    changes = {"model.type": "FragileModel", "randomness.seed": 0}
    changes.update({f"optim_wrapper.{key}": value for key, value in (wrapper or {}).items()})
    runner = Runner.from_cfg(make_config(tmp_path, by_epoch=False, changes=changes))
    guard = NonFiniteGuardHook(limit)
    for hook in (guard, SeedIterationHook()):
        runner.register_hook(hook)
    return runner, guard


def state(runner: Runner) -> dict[str, torch.Tensor]:
    tensors = dict(runner.model.state_dict())
    for number, of_parameter in runner.optim_wrapper.optimizer.state_dict()["state"].items():
        tensors.update({f"{number}.{key}": value for key, value in of_parameter.items()})
    return copy.deepcopy(tensors)


@pytest.mark.parametrize("way", ["nan", "inf", "gradient", "loss"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_bad_update_changes_nothing_and_the_training_goes_on(tmp_path, way, wrapper):
    runner, guard = prepare(tmp_path, wrapper=WRAPPERS[wrapper])
    if way == "loss":
        runner.model.loss_factor = {7: float("inf")}  # With finite gradients.
    else:
        runner.model.layer.ways = {7: way}
    states = []
    runner.register_hook(Calling(lambda runner: states.append(state(runner))))
    runner.train()
    assert guard.skipped == (0 if (wrapper, way) == ("fp16", "gradient") else 1)
    for name, value in states[6].items():
        if (wrapper, way) == ("fp16", "gradient") and name.startswith("norm."):
            continue  # The loss scale's own way to skip, after a finite forward pass.
        torch.testing.assert_close(states[7][name], value, rtol=0, atol=0)
    assert not torch.equal(states[8]["first.weight"], states[7]["first.weight"])
    assert all(tensor.isfinite().all() for tensor in states[-1].values())


def test_a_good_update_is_left_as_it_is(tmp_path):
    weights = []
    for guarded in (True, False):
        runner, guard = prepare(tmp_path)
        if not guarded:
            runner.hooks.remove(guard)
        runner.train()
        weights.append(runner.model.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name])


def test_accumulated_gradients_are_skipped_as_one_update(tmp_path):
    runner, guard = prepare(tmp_path, wrapper={"accumulative_counts": 3})
    runner.model.layer.ways = {6: "nan"}  # The first of the three iterations of the third update.
    states = []
    runner.register_hook(Calling(lambda runner: states.append(state(runner))))
    runner.train()
    assert guard.skipped == 1
    assert all(torch.equal(value, states[8][name]) for name, value in states[5].items())
    assert not torch.equal(states[11]["first.weight"], states[8]["first.weight"])


def test_only_updates_in_a_row_stop_the_training(tmp_path):
    runner, guard = prepare(tmp_path, limit=3)
    runner.model.layer.ways = dict.fromkeys((1, 2, 4, 5, 7, 8), "nan")
    runner.train()
    assert guard.skipped == 6
    assert runner.iter == 15


def test_a_loss_scale_is_to_blame_only_while_it_can_go_down(tmp_path):
    runner, guard = prepare(tmp_path, limit=3, wrapper=WRAPPERS["fp16"])
    runner.model.layer.ways = dict.fromkeys(range(15), "gradient")
    with pytest.raises(NonFiniteError, match="stopped at iteration 13"):
        runner.train()  # 1024 is halved ten times.
    assert guard.skipped == 3


def test_several_optimizers_are_left_alone():
    model = nn.Linear(1, 1)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0))
    runner = SimpleNamespace(optim_wrapper=OptimWrapperDict(only=wrapper), model=model)
    guard = NonFiniteGuardHook()
    guard.before_train(runner)
    guard.before_train_iter(runner, 0, {})
    wrapper.update_params(model(torch.full((1, 1), float("nan"))).sum())
    assert guard.skipped == 0


@pytest.mark.parametrize(
    ("wrapper", "advice"),
    [
        ("plain", "or train without --amp"),
        ("bf16", "or train without --amp"),
        ("fp16", "or train with --amp bf16 instead of fp16, whose loss scale is 1 now"),
    ],
)
def test_what_to_try_depends_on_the_precision(tmp_path, wrapper, advice):
    runner, _ = prepare(tmp_path, limit=3, wrapper=WRAPPERS[wrapper])
    runner.model.layer.ways = dict.fromkeys(range(15), "gradient")
    with pytest.raises(NonFiniteError, match=f"{advice}$"):
        runner.train()


@pytest.mark.parametrize(
    ("way", "sentence"),
    [
        ("nan", "the first output that is not finite is that of layer (Layer); its input is"),
        ("gradient", "gradients of 6 parameters are not; the nearest to the loss is layer.bias"),
        ("loss", "all modules' outputs are finite, but loss is not"),
        ("weight", "the parameter bias of first (Linear) is not finite"),
    ],
)
def test_the_report_names_the_origin_and_the_images(tmp_path, way, sentence):
    runner, _ = prepare(tmp_path, limit=2)
    model = runner.model

    def fail_from_now_on(runner: Runner) -> None:
        if runner.iter == 4:
            if way == "loss":
                model.loss_factor = dict.fromkeys(range(99), float("nan"))
            elif way == "weight":
                model.first.bias.data.fill_(float("inf"))
            else:
                model.layer.ways = dict.fromkeys(range(99), way)

    runner.register_hook(Calling(fail_from_now_on))
    with pytest.raises(NonFiniteError) as caught:
        runner.train()
    path = tmp_path / "run" / "non_finite.json"
    assert sentence in str(caught.value)
    assert "stopped at iteration 7: 2 updates in a row had a loss" in str(caught.value)
    assert f"images and details are in {path}" in str(caught.value)
    report = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert report["iteration"] == 7
    assert report["losses"]["loss"] in ("nan", "inf") or way == "gradient"
    assert report["images"] == sorted(model.images)
    # The batch was run again as it was the first time.
    assert model.layer.drawn[-1] == model.layer.drawn[-2] != model.layer.drawn[-3]


def test_the_report_names_the_images_of_data_samples(tmp_path):
    runner, _ = prepare(tmp_path)
    runner.train()
    samples = [BaseDataElement(metainfo={"img_path": f"{i}.jpg"}) for i in range(2)]
    _, path = report_non_finite(runner, [{"items": [1.0, 2.0], "data_samples": samples}])
    assert json.loads(path.read_text())["images"] == ["0.jpg", "1.jpg"]


def test_the_config_sets_the_limit():
    assert non_finite_guard(Config()).limit == 10
    assert non_finite_guard(Config({"max_non_finite_updates": 2})).limit == 2
    assert non_finite_guard(Config({"max_non_finite_updates": 0})) is None
    with pytest.raises(UserError, match="max_non_finite_updates='many': give the number"):
        non_finite_guard(Config({"max_non_finite_updates": "many"}))
