"""Mixed precision without a GPU: the loss scale is found, kept, accumulated and clipped as on one."""

import copy

import pytest
import torch
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from torch import nn
from toy_training import make_config, train_toy

from flatten_det.backbones import FLattenPVTv2
from flatten_det.files.checkpoints import load_as_data
from flatten_det.train.optimizer import keep_convolutions_in_float32, loss_scale
from flatten_det.train.run import train

FP16 = {"type": "CPUAmpOptimWrapper", "dtype": "float16"}


def make_wrapper(model: nn.Module, **options):
    return build_optim_wrapper(model, {**FP16, "optimizer": {"type": "SGD", "lr": 1.0}, **options})


def step(wrapper, model: nn.Module, inputs: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    with wrapper.optim_context(model):
        outputs = model(inputs)
        loss = factor * outputs.float().square().mean()
    wrapper.update_params(loss)
    return outputs


def change(before: nn.Module, after: nn.Module) -> torch.Tensor:
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    return torch.cat([(b - a).detach().flatten() for b, a in pairs])


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (None, torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        (torch.float16, torch.float16),
    ],
)
def test_the_forward_pass_is_cast(model, inputs, dtype, expected):
    wrapper = make_wrapper(model, dtype=dtype)
    assert step(wrapper, model, inputs).dtype == expected
    assert loss_scale(wrapper) == (2.0**16 if expected == torch.float16 else 1)


@pytest.mark.parametrize(
    "options", [{"dtype": "float64"}, {"loss_scale": "static"}, {"loss_scale": 0}]
)
def test_bad_options_are_named(model, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be "):
        make_wrapper(model, **options)


def test_gradients_too_small_for_fp16_are_saved_by_the_scale(model, inputs):
    exact = copy.deepcopy(model)
    exact(inputs).square().mean().backward()
    expected = torch.cat([p.grad.flatten() for p in exact.parameters()])
    errors = {}
    for scale in ("dynamic", 1.0):
        trained = copy.deepcopy(model)
        # A learning rate that makes up for the factor: the updates show all digits.
        wrapper = make_wrapper(trained, loss_scale=scale, optimizer={"type": "SGD", "lr": 1e7})
        step(wrapper, trained, inputs, factor=1e-7)
        errors[scale] = (change(model, trained) - expected).norm() / expected.norm()
    assert errors["dynamic"] < 1e-2
    assert errors[1.0] > 0.2


def test_a_scale_that_is_too_high_goes_down_without_an_update(model, inputs):
    trained = copy.deepcopy(model)
    wrapper = make_wrapper(trained, loss_scale={"init_scale": 2.0**24})
    skipped = 0
    while not change(trained, model).any():
        assert loss_scale(wrapper) == 2.0 ** (24 - skipped)
        step(wrapper, trained, inputs)
        skipped += 1
        assert skipped < 20
    assert skipped > 1
    assert change(trained, model).isfinite().all()


def test_a_constant_scale_stays(model, inputs):
    wrapper = make_wrapper(model, loss_scale=2.0**24)
    step(wrapper, model, inputs)
    assert loss_scale(wrapper) == 2.0**24


def test_gradients_are_clipped_without_the_scale(model, inputs):
    trained = copy.deepcopy(model)
    step(make_wrapper(trained, clip_grad={"max_norm": 1e-2}), trained, inputs)
    assert change(trained, model).norm().item() == pytest.approx(1e-2, rel=1e-2)


def test_accumulated_batches_are_one_update(model, inputs):
    whole, parts = copy.deepcopy(model), copy.deepcopy(model)
    step(make_wrapper(whole), whole, inputs)
    wrapper = make_wrapper(parts, accumulative_counts=3)
    for part in inputs.split(2):
        assert not change(parts, model).any()
        step(wrapper, parts, part)
    expected = change(whole, model)
    assert (change(parts, model) - expected).norm() < 5e-3 * expected.norm()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_is_computed_again_is_computed_as_before(dtype):
    """Convolutions that are taken out of autocast included."""
    gradients = []
    image = torch.randn(2, 3, 64, 96)
    for with_cp in (False, True, {"policy": "elementwise"}):
        torch.manual_seed(0)
        arch = dict(embed_dims=(8, 16, 32, 64), num_heads=(1, 2, 4, 8), depths=(1, 1, 1, 1))
        backbone = FLattenPVTv2(arch=arch, with_cp=with_cp, attn_types="LSLS").train()
        wrapper = make_wrapper(backbone, dtype=dtype)
        with wrapper.optim_context(backbone):
            loss = sum(out.float().square().mean() for out in backbone(image))
        wrapper.backward(loss)
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    for others in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], others, strict=True))


@pytest.mark.parametrize(
    ("dtype", "stride", "expected"),
    [
        (torch.float16, 1, torch.float32),
        (torch.float16, 2, torch.float32),
        (torch.bfloat16, 1, torch.bfloat16),
        (torch.bfloat16, 2, torch.float32),
    ],
)
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_convolutions_that_stay_in_float32(kind, dtype, stride, expected):
    model, image = nn.Sequential(kind(4, 8, 3, stride)), torch.randn(1, 4, 9, 9)
    plain = model(image)
    assert expected != dtype or stride == 1
    keep_convolutions_in_float32(model)
    for chosen in (model, copy.deepcopy(model)):  # As an average of the weights has it.
        assert torch.equal(chosen(image), plain)
        with torch.autocast("cpu", dtype):
            assert chosen(image).dtype == expected
    copied = copy.deepcopy(model)
    nn.init.zeros_(model[0].weight)
    assert torch.equal(copied(image), plain)


@pytest.mark.skipif(get_device() != "cpu", reason="there it runs as it is")
def test_a_config_with_mmengines_wrapper_trains_on_a_cpu(tmp_path):
    changes = {"optim_wrapper.type": "AmpOptimWrapper", "optim_wrapper.dtype": "float16"}
    train(make_config(tmp_path, by_epoch=True, changes=changes))
    checkpoint = load_as_data((tmp_path / "run" / "last_checkpoint").read_text())
    assert checkpoint["optimizer"]["loss_scaler"]["scale"] > 1


PRECISIONS = {
    "fp32": {},
    "bf16": {"optim_wrapper.type": "CPUAmpOptimWrapper"},
    "fp16": {"optim_wrapper.type": "CPUAmpOptimWrapper", "optim_wrapper.dtype": "float16"},
}


@pytest.mark.parametrize("before", PRECISIONS)
def test_resuming_in_another_precision(tmp_path, before):
    """Also in the middle of an accumulation: gradients so far have the loss scale of their time."""
    changes = {"optim_wrapper.accumulative_counts": 3}
    changes["optim_wrapper.optimizer"] = {"type": "SGD", "lr": 0.1}
    expected = train_toy(tmp_path / "whole", False, {**changes, **PRECISIONS[before]})
    start = tmp_path / "whole" / "run" / "iter_8.pth"
    for after in PRECISIONS:
        found = train_toy(tmp_path / after, False, {**changes, **PRECISIONS[after]}, start)
        for name in ("line.weight", "line.bias", "norm.weight", "norm.bias"):
            torch.testing.assert_close(found[name], expected[name], rtol=0.02, atol=2e-3)
