"""Models whose weights and modules others change: averages, hooks, pruning, quantisation, adapters."""

import copy

import pytest
import torch
from attention_cases import use_tiles_of
from mmdet.engine.hooks import MeanTeacherHook
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from nano_backbones import ARCHS, build_nano
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim import swa_utils

from flatten_det.attention import FocusedLinearAttention


@pytest.fixture
def small_portions(monkeypatch):
    """Everything that large maps are computed by happens for small ones too."""
    use_tiles_of(10, monkeypatch)


def build(family: str, attn_types: str = "LLSS", **options) -> nn.Module:
    return randomised(build_nano(family, attn_types, pretrain_img_size=32, **options))


def randomised(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.2)
    return model.eval()


class Pair(nn.Module):
    """What mmengine's and mmdet's hooks know of a model and its average."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher


def averages(source: nn.Module):
    """Averages of a model, each with what brings it up to date: the frameworks' own code."""
    ema = ExponentialMovingAverage(source, momentum=0.5)
    yield ema.module, lambda: ema.update_parameters(source)
    swa = swa_utils.AveragedModel(source)
    yield swa.module, lambda: swa.update_parameters(source)
    pair = Pair(source, copy.deepcopy(source))
    yield pair.teacher, lambda: MeanTeacherHook().momentum_update(pair, 0.5)
    hook = EMAHook()
    hook.src_model, hook.ema_model = source, ExponentialMovingAverage(source)
    yield hook.ema_model.module, hook._swap_ema_parameters
    loaded = copy.deepcopy(source)
    yield loaded, lambda: loaded.load_state_dict(source.state_dict(), assign=True)
    written = copy.deepcopy(source)

    def replace():
        for parameter, new in zip(written.parameters(), source.parameters(), strict=True):
            parameter.data = new.detach().clone()

    yield written, replace


@pytest.mark.parametrize("attn_types", ["LLLL", "SSSS"])
@pytest.mark.parametrize("family", ARCHS)
def test_averaged_weights_are_those_that_are_evaluated(family, attn_types, monkeypatch):
    source, fresh = build(family, attn_types), build(family, attn_types)
    image = torch.randn(1, 3, 40, 56)

    def outputs(model):
        found = []
        for implementation, half in (("", False), ("", True), ("reference", False)):
            monkeypatch.setenv("FLATTEN_DET_ATTENTION", implementation)
            # Torch's own autocast keeps casts of weights as long as one context lasts.
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                found += model(image)
        return found

    for average, update in averages(source):
        before = outputs(average.eval())
        randomised(source)
        with torch.no_grad():
            update()
        fresh.load_state_dict(average.state_dict())
        after = outputs(average)
        assert all(map(torch.equal, after, outputs(fresh)))
        assert not any(map(torch.equal, after, before))


def double(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)


class Adapter(nn.Module):
    """What has none of the attributes of the module in it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2 * self.inner(x)


class Halved(nn.Module):
    """A parametrisation, whose result is not contiguous."""

    def forward(self, weight):
        return (weight / 2).t().contiguous().t() if weight.dim() == 2 else weight / 2


# Each changes a submodule (of a parent, with a name) and, for what must come out, the weights of a copy.
def hook(parent, name, copied):
    getattr(parent, name).register_forward_hook(lambda module, inputs, output: 2 * output)
    double(copied)


def adapter(parent, name, copied):
    setattr(parent, name, Adapter(getattr(parent, name)))
    double(copied)


def own_forward(parent, name, copied):
    module = getattr(parent, name)
    module.forward = lambda x: 2 * type(module).forward(module, x)
    double(copied)


def pruning(parent, name, copied):
    module = getattr(parent, name)
    prune.l1_unstructured(module, "weight", amount=0.5)
    with torch.no_grad():
        copied.weight.mul_(module.weight_mask)
        module.weight_orig.mul_(2)  # As training would: the mask is applied in the call.
        copied.weight.mul_(2)


def parametrisation(parent, name, copied):
    parametrize.register_parametrization(getattr(parent, name), "weight", Halved())
    with torch.no_grad():
        copied.weight.div_(2)


def spectral_norm(parent, name, copied):
    module = getattr(parent, name)
    if module.weight.dim() > 1:
        parametrizations.spectral_norm(module).eval()
        with torch.no_grad():
            copied.weight.copy_(module.weight)


def leaves(model: nn.Module):
    """One submodule with weights for each place: kind of the parent, and name in it."""
    found = {}
    for path, module in model.named_modules():
        if getattr(module, "weight", None) is not None:
            parent, _, name = path.rpartition(".")
            found.setdefault((type(model.get_submodule(parent)), name), path)
    return list(found.values())


# A hook and a mask in every family, the other changes in one each; the slow tests hold all of them.
QUICK = {
    *((family, change) for family in ARCHS for change in (hook, pruning)),
    ("FLattenPVT", adapter),
    ("FLattenSwin", own_forward),
    ("FLattenCSwin", parametrisation),
    ("FLattenPVTv2", spectral_norm),
}


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize(
    ("family", "change"),
    [
        pytest.param(family, change, marks=() if (family, change) in QUICK else pytest.mark.slow)
        for change in (hook, adapter, own_forward, pruning, parametrisation, spectral_norm)
        for family in ARCHS
    ],
)
def test_what_is_changed_is_called(family, change):
    plain, image, changes = build(family), torch.randn(1, 3, 40, 56), 0
    with torch.no_grad():
        before = plain(image)
        for path in leaves(plain):
            changed, expected = copy.deepcopy(plain), copy.deepcopy(plain)
            parent, _, name = path.rpartition(".")
            change(changed.get_submodule(parent), name, expected.get_submodule(path))
            found = changed(image)
            torch.testing.assert_close(found, expected(image), rtol=1e-4, atol=1e-4, msg=path)
            changes += not torch.equal(found[-1], before[-1])
    assert changes


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("family", ARCHS)
def test_pruned_models_train(family):
    model, image = build(family).train(), torch.randn(1, 3, 40, 56)
    pruned = [m for m in model.modules() if getattr(m, "weight", None) is not None]
    for module in pruned:
        prune.random_unstructured(module, "weight", amount=0.5)
        module.register_full_backward_hook(lambda module, *_: seen.add(module))
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=1e-4), set()
    for _ in range(2):
        optimizer.zero_grad()
        sum(out.square().mean() for out in model(image)).backward()
        optimizer.step()
    assert seen == set(pruned)
    for module in pruned:
        gradient, mask = module.weight_orig.grad, module.weight_mask
        assert gradient[mask == 1].any()
        assert not gradient[mask == 0].any()


@pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning",
    "ignore:torch.quantize_per_tensor:UserWarning:torch",
)
@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize("family", ARCHS)
def test_dynamic_quantisation(family):
    """Scales are of all tokens of a call: it makes a difference whether a layer is given all of them."""
    model, image = build(family), torch.randn(1, 3, 40, 56)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    calls = []
    for module in quantised.modules():
        module.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        expected = quantised(image)
        for module in quantised.modules():
            module._forward_hooks.clear()
        for _ in range(2):
            for a, b, exact in zip(quantised(image), expected, model(image), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
                assert (a - exact).norm() < 0.2 * exact.norm()
            model.fuse_for_inference()
            quantised.fuse_for_inference()


def test_depthwise_convolutions_of_another_kind():
    """Of another reach, and with keys reduced: what the module says, not what its weights look like."""
    torch.manual_seed(0)
    for options in ({}, dict(sr_ratio=2, fused_qkv=False), dict(window_size=4)):
        layer = randomised(FocusedLinearAttention(32, 2, (4, 4), **options))
        wide = copy.deepcopy(layer)
        wide.dwc = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16)
        with torch.no_grad():
            layer.dwc.weight.zero_()
            layer.dwc.weight[:, :, ::2, ::2] = wide.dwc.weight
            layer.dwc.bias.copy_(wide.dwc.bias)
            x = torch.randn(2, 56, 32)
            torch.testing.assert_close(wide(x, (7, 8)), layer(x, (7, 8)), rtol=1e-4, atol=1e-4)
