"""One optimizer group per setting computes what one per parameter does, and goes on from its checkpoints."""

import logging
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, DefaultScope
from nano_backbones import ARCHS
from timm.optim import param_groups_layer_decay
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from toy_training import Calling, train_toy

from flatten_det.backbones.blocks import TransformerBlock
from flatten_det.errors import UserError
from flatten_det.files.checkpoints import load_as_data
from flatten_det.train.optimizer import GroupingOptimWrapperConstructor, fit_saved_optimizer
from flatten_det.train.run import REPLACEMENTS, use_our_components

ADAMW = {"type": "AdamW", "lr": 0.01, "weight_decay": 0.1}
# Weights and biases alternate among the parameters, but not among the groups.
BIASES = {"custom_keys": {"bias": {"lr_mult": 0.5, "decay_mult": 0.0}}}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.Conv2d(4, 2, 3))


def make_wrapper(
    model: nn.Module, optimizer: dict, constructor: type = GroupingOptimWrapperConstructor
) -> OptimWrapper:
    cfg = {"type": "OptimWrapper", "optimizer": optimizer, "clip_grad": {"max_norm": 0.1}}
    return constructor(cfg, BIASES)(model)


def take_steps(model: nn.Module, wrapper: OptimWrapper, steps: int = 4) -> None:
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        wrapper.update_params(model(image).square().mean())


def check_same_weights(found: nn.Module, expected: nn.Module) -> None:
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=1e-5, atol=1e-6)


def test_groups_of_equal_settings_are_one():
    model = make_model()
    biases, weights = (make_wrapper(model, ADAMW).optimizer.param_groups[n] for n in (1, 0))
    assert [id(p) for p in weights["params"]] == [id(model[n].weight) for n in (0, 1, 3)]
    assert [id(p) for p in biases["params"]] == [id(model[n].bias) for n in (0, 1, 3)]
    assert (weights["lr"], weights["weight_decay"]) == (0.01, 0.1)
    assert (biases["lr"], biases["weight_decay"]) == (0.005, 0.0)


@pytest.mark.parametrize(
    "optimizer",
    [
        ADAMW,
        {**ADAMW, "type": "Adam", "amsgrad": True},
        {"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
        {"type": "RMSprop", "lr": 0.01, "weight_decay": 0.1},
        {**ADAMW, "foreach": False},
    ],
    ids=str,
)
def test_updates_are_those_of_a_group_per_parameter(optimizer):
    expected, model = make_model(), make_model()
    take_steps(expected, make_wrapper(expected, optimizer, DefaultOptimWrapperConstructor))
    take_steps(model, make_wrapper(model, optimizer))
    check_same_weights(model, expected)


def test_gradients_and_states_in_another_memory_format_are_laid_out_anew():
    """As of a checkpoint from before the model had its channels last."""
    expected, model = make_model(), make_model().to(memory_format=torch.channels_last)
    plain = make_wrapper(expected, ADAMW, DefaultOptimWrapperConstructor)
    wrapper = make_wrapper(model, ADAMW)
    for each, optim_wrapper in ((expected, plain), (model, wrapper)):
        take_steps(each, optim_wrapper, 2)
    for parameter, state in wrapper.optimizer.state.items():
        state["exp_avg"] = state["exp_avg"].contiguous()
        parameter.register_post_accumulate_grad_hook(
            lambda p: setattr(p, "grad", p.grad.contiguous())
        )
    for each, optim_wrapper in ((expected, plain), (model, wrapper)):
        take_steps(each, optim_wrapper, 2)
    check_same_weights(model, expected)


@pytest.mark.parametrize(
    ("device", "optimizer", "expected"),
    [
        ("cpu", ADAMW, {"fused": True, "foreach": None}),
        ("cuda", ADAMW, {"fused": True, "foreach": None}),
        ("cpu", {"type": "SGD", "lr": 0.1}, {"fused": None, "foreach": True}),
        ("cuda", {"type": "SGD", "lr": 0.1}, {"fused": None, "foreach": None}),
        ("cuda", {**ADAMW, "fused": False}, {"fused": False, "foreach": None}),
        ("cpu", {**ADAMW, "foreach": True}, {"fused": None, "foreach": True}),
        ("cpu", {**ADAMW, "type": torch.optim.AdamW}, {"fused": True, "foreach": None}),
        ("cpu", {"type": "LBFGS"}, {}),
    ],
    ids=str,
)
def test_how_to_compute_depends_on_the_device_unless_the_config_says_it(
    device, optimizer, expected
):
    with FakeTensorMode(), torch.device(device):
        model = nn.Linear(2, 2)
        cfg = {"type": "OptimWrapper", "optimizer": optimizer}
        group = GroupingOptimWrapperConstructor(cfg)(model).optimizer.param_groups[0]
    assert {key: group[key] for key in ("fused", "foreach") if key in group} == expected


def test_the_log_has_a_line_for_every_group(caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        make_wrapper(make_model(), ADAMW)
    finally:
        logger.removeHandler(caplog.handler)
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.INFO]
    assert lines == [
        "optimizer group 0: 3 parameters, as the optimizer has it",
        "optimizer group 1: 3 parameters, lr=0.005, weight_decay=0.0, lr_mult=0.5, decay_mult=0.0",
    ]
    assert "optimizer group 1: 0.bias, 1.bias, 3.bias" in caplog.text


def test_a_parameter_of_two_modules_is_refused_as_by_mmengine():
    model = make_model()
    model[3].conv = model[0]
    for constructor in (DefaultOptimWrapperConstructor, GroupingOptimWrapperConstructor):
        with pytest.raises(ValueError, match="more than one parameter group"):
            make_wrapper(model, ADAMW, constructor)


def test_outside_of_a_training_mmengine_is_as_it_was():
    cfg = {"optimizer": ADAMW, "paramwise_cfg": BIASES}
    with use_our_components():
        inside = build_optim_wrapper(make_model(), cfg)
    outside = build_optim_wrapper(make_model(), cfg)
    assert [len(w.optimizer.param_groups) for w in (inside, outside)] == [2, 6]


CHANGES = {
    "optim_wrapper.paramwise_cfg": BIASES,
    "optim_wrapper.accumulative_counts": 2,
    "optim_wrapper.clip_grad": {"max_norm": 100.0},
    "custom_hooks": [{"type": "EMAHook", "momentum": 0.3}],
    "auto_scale_lr": {"base_batch_size": 1, "enable": True},
}


def run(
    folder: Path, changes: dict, resume: Path | None = None, one_each: bool = False
) -> tuple[dict, list]:
    """Train the toy; returns its weights and their averages, and the learning rates by iteration."""
    rates = []

    def note(runner) -> None:
        rates.append(runner.optim_wrapper.get_lr())
        assert (len(runner.optim_wrapper.optimizer.param_groups) == 4) == one_each

    with pytest.MonkeyPatch.context() as patch:
        if one_each:
            patch.delitem(REPLACEMENTS, OPTIM_WRAPPER_CONSTRUCTORS)
        state = train_toy(folder, True, {**CHANGES, **changes}, resume, [Calling(note)])
    return {name: value for name, value in state.items() if not name[0].isdigit()}, rates


@pytest.mark.parametrize(
    ("optimizer", "iterations", "tolerance"),
    [({**ADAMW, "foreach": False}, (8, 9), 0.0), (ADAMW, (9,), 1e-5)],
    ids=["the same sums", "fused"],
)
def test_a_checkpoint_with_a_group_per_parameter_is_resumed(
    tmp_path, optimizer, iterations, tolerance
):
    """After an update of the weights, and between the two batches of one."""
    changes = {"optim_wrapper.optimizer": optimizer}
    expected, rates = run(tmp_path / "whole", changes, one_each=True)
    for iteration in iterations:
        start = tmp_path / "whole" / "run" / f"iter_{iteration}.pth"
        found, rates_found = run(tmp_path / f"from_{iteration}", changes, start)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        for before, after in zip(rates[iteration:], rates_found, strict=True):
            assert after["base_lr"] == before["base_lr"]
            assert after["lr"] == before["lr"][:2]  # A weight and a bias.
    saved = load_as_data(str(tmp_path / "from_9" / "run" / "iter_15.pth"))
    for scheduler in saved["param_schedulers"]:
        assert len(scheduler["base_values"]) == len(scheduler["_last_value"]) == 3


def test_how_to_compute_is_not_taken_from_a_checkpoint():
    """That of a training on CUDA goes on on a CPU."""
    model = make_model()
    wrapper = make_wrapper(model, {"type": "SGD", "lr": 0.1, "weight_decay": 0.1})
    state = wrapper.state_dict()
    for group in state["param_groups"]:
        group.update(fused=True, foreach=None)
    fit_saved_optimizer({"optimizer": state}, wrapper, list(model.parameters()))
    wrapper.load_state_dict(state)
    groups = wrapper.optimizer.param_groups
    assert {(group["fused"], group["foreach"]) for group in groups} == {(None, True)}


def test_settings_that_cannot_be_merged_are_named():
    model = make_model()
    before = make_wrapper(model, ADAMW, DefaultOptimWrapperConstructor).state_dict()
    before["param_groups"][3]["weight_decay"] = 0.3
    wrapper = make_wrapper(model, ADAMW)
    with pytest.raises(UserError, match=r"different weight_decay for parameters .* treats alike"):
        fit_saved_optimizer({"optimizer": before}, wrapper, list(model.parameters()))


class Detector(nn.Module):
    """What the frameworks' models have in common: a backbone by that name."""

    def __init__(self, family: str) -> None:
        super().__init__()
        self.backbone = MODELS.build(dict(type=family, arch=ARCHS[family]))
        self.head = nn.Linear(4, 4)


def scales(model: nn.Module, scope: str, **options) -> dict[str, float]:
    """Learning rate of each parameter over that of the optimizer; powers of two are exact."""
    cfg = dict(
        optimizer=dict(type="SGD", lr=0.1, weight_decay=0.5),
        constructor="LearningRateDecayOptimizerConstructor",
        paramwise_cfg=dict(decay_rate=0.5, **options),
    )
    import_module(f"{scope}.engine")  # As a config of the framework does.
    with DefaultScope.overwrite_default_scope(scope):
        groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    assert len(groups) < 30
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            is_table = names[parameter].endswith(("scale", "encoding", "table", "embed"))
            is_table |= "pos_embed" in names[parameter]
            assert group["weight_decay"] == (0 if parameter.dim() == 1 or is_table else 0.5)
    return {names[p]: group["lr"] / 0.1 for group in groups for p in group["params"]}


@pytest.mark.parametrize("scope", ["mmdet", "mmseg"])
@pytest.mark.parametrize("family", ARCHS)
def test_learning_rates_fall_from_layer_to_layer(family, scope):
    model = Detector(family)
    blocks = [path for path, m in model.named_modules() if isinstance(m, TransformerBlock)]
    found = scales(model, scope)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert found["head.weight"] == 1
    for number, path in enumerate(reversed(blocks), 1):
        own = {scale for name, scale in found.items() if name.startswith(f"{path}.")}
        assert own == {0.5**number}
    stem = re.compile(r"backbone\.(patch|pos)_embed1?(\.|$)")
    of_stem = {scale for name, scale in found.items() if stem.match(name)}
    assert of_stem == {0.5 ** (len(blocks) + 1)}
    backbone = model.backbone
    for name, scale in found.items():
        depth, count = backbone.get_layer_depth(name, "backbone.")
        assert scale == 0.5 ** (count - 1 - depth)
    # timm's own function knows the same layers.
    groups = param_groups_layer_decay(backbone, layer_decay=0.5)
    timms = {p: group["lr_scale"] for group in groups for p in group["params"]}
    own = {p: found[f"backbone.{name}"] for name, p in backbone.named_parameters()}
    assert timms == {p: 2 * scale for p, scale in own.items()}


def test_layers_of_a_learning_rate_can_be_fewer():
    model = Detector("FLattenPVT")
    by_stage = scales(model, "mmdet", decay_type="stage_wise", num_layers=4)
    assert by_stage["backbone.patch_embed1.proj.weight"] == 0.5**5
    assert by_stage["backbone.block1.1.norm1.weight"] == 0.5**4
    assert by_stage["backbone.pos_embed4"] == 0.5
    two = scales(model, "mmdet", num_layers=2)
    assert {two[f"backbone.block{n}.0.norm1.weight"] for n in (1, 2)} == {0.25}
    assert two["backbone.patch_embed1.proj.weight"] == 0.125
    custom = scales(model, "mmdet", custom_keys={"block4": dict(lr_mult=0.1)})
    assert custom["backbone.block4.0.mlp.fc1.weight"] == pytest.approx(0.05)
    with pytest.raises(ValueError, match="'layer_wise' or 'stage_wise'; got 'by_name'"):
        scales(model, "mmdet", decay_type="by_name")


def test_other_backbones_keep_their_constructor():
    model = Detector("FLattenPVT")
    model.backbone = nn.Conv2d(3, 4, 1)
    with pytest.raises(NotImplementedError):
        scales(model, "mmdet", num_layers=4)
