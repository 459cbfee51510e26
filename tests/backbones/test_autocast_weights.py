"""Under autocast at inference on CUDA, weights are cast all at once in every pass, and nothing else twice."""

import copy
import pickle
from collections import Counter

import pytest
import torch
from mmengine.registry import MODELS
from nano_backbones import build_nano
from operators import Operators
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize

from flatten_det.attention import FocusedLinearAttention, gpu
from flatten_det.attention.eager import keeping_nothing
from flatten_det.backbones import cuda
from flatten_det.backbones.blocks import TransformerBlock
from flatten_det.backbones.cuda import AutocastWeights
from flatten_det.backbones.softmax_attention import SpatialReductionAttention


@pytest.fixture
def on_the_cpu(monkeypatch):
    """The CPU's autocast stands in for that of CUDA."""
    monkeypatch.setattr(
        cuda, "_pays", lambda x: torch.is_autocast_enabled("cpu") and not x.requires_grad
    )


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.LayerNorm(6), nn.Flatten(), nn.Linear(288, 5))


def dtypes(network: nn.Module) -> list[torch.dtype]:
    return [weight.dtype for module in network for weight in module._parameters.values()]


@pytest.mark.usefixtures("on_the_cpu")
@torch.no_grad()
def test_layers_have_casts_for_the_time_of_a_pass():
    network, x, weights = small_network(), torch.randn(2, 3, 8, 8), AutocastWeights()
    before = list(network.parameters())
    half, single = [torch.bfloat16] * 2, [torch.float32] * 2
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            expected = network(x)
            with weights.used_by(network, x):
                assert dtypes(network) == [*half, *single, *half]
                assert network(x).equal(expected)
        assert all(a is b for a, b in zip(network.parameters(), before, strict=True))
        network[3].weight.data.mul_(-2)  # as averaged models and teachers write
    autocast = torch.autocast("cpu", torch.bfloat16)
    with autocast, pytest.raises(ZeroDivisionError), weights.used_by(network, x):
        raise ZeroDivisionError
    assert all(a is b for a, b in zip(network.parameters(), before, strict=True))


@pytest.mark.usefixtures("on_the_cpu")
@torch.no_grad()
def test_a_graph_has_casts_of_its_own():
    """Memory that is kept for them is another one after a pass in another dtype."""
    network, x, weights = small_network(), torch.randn(2, 3, 8, 8), AutocastWeights()

    def address():
        with torch.autocast("cpu", torch.bfloat16), weights.used_by(network, x):
            return network[3].weight.data_ptr()

    kept = address()
    with keeping_nothing():
        assert address() != kept
    assert address() == kept


@pytest.mark.usefixtures("on_the_cpu")
def test_what_is_read_or_of_another_kind_is_left_alone():
    attention, x, weights = FocusedLinearAttention(16, 1, (4, 4)), torch.zeros(1), AutocastWeights()
    attention.proj.half()
    with torch.autocast("cpu", torch.bfloat16), weights.used_by(attention, x):
        found = {name: weight.dtype for name, weight in attention.named_parameters()}
        assert attention.qkv.weight.dtype == torch.bfloat16
    assert found["dwc.weight"] == found["scale"] == torch.float32
    assert attention.proj.weight.dtype == torch.float16
    with weights.used_by(attention, x):
        assert attention.qkv.weight.dtype == torch.float32


@pytest.mark.usefixtures("on_the_cpu")
def test_what_others_look_into_is_left_alone():
    """Also when they come after the first pass."""
    attention, x, weights = FocusedLinearAttention(16, 1, (4, 4)), torch.zeros(1), AutocastWeights()

    def casts() -> set[str]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), weights.used_by(attention, x):
            parameters = list(attention.named_parameters())
            return {name for name, weight in parameters if weight.dtype == torch.bfloat16}

    qkv, proj = {"qkv.weight", "qkv.bias"}, {"proj.weight", "proj.bias"}
    assert casts() == qkv | proj
    handle = attention.qkv.register_forward_hook(lambda *_: None)
    assert casts() == proj
    handle.remove()
    parametrize.register_parametrization(attention.proj, "bias", nn.ReLU())
    assert casts() == qkv
    parametrize.remove_parametrizations(attention.proj, "bias")

    class Adapter(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

    attention.qkv = Adapter(attention.qkv)
    assert casts() == proj


@pytest.mark.slow
@pytest.mark.usefixtures("on_the_cpu")
def test_compiled_blocks_take_the_casts():
    """With gradients and without, in turns, over maps of several sizes, and after other weights."""
    torch.compiler.reset()
    torch.manual_seed(0)
    attention = SpatialReductionAttention(32, 2, sr_ratio=1)
    block = TransformerBlock(32, attention, 2, drop_path=0.0, norm_eps=1e-6, cp_policy=None)
    counter, weights = CompileCounterWithBackend("aot_eager"), AutocastWeights()
    plain = copy.deepcopy(block)
    block.compile(dynamic=True, fullgraph=True, backend=counter)
    for height, width in ((4, 5), (6, 7)):
        x = torch.randn(2, height * width, 32)
        with torch.autocast("cpu", torch.bfloat16):
            block(x, (height, width)).sum().backward()
            with torch.no_grad(), weights.used_by(block, x):
                found = block(x, (height, width))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(found, plain(x, (height, width)), rtol=1e-2, atol=1e-2)
        for network in (block, plain):
            network.mlp.fc2.weight.data.mul_(-2)
    assert counter.frame_count <= 3


def test_copies_begin_anew():
    model = build_nano("FLattenPVT")
    model._autocast_weights._owner = model
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other._autocast_weights._owner is None


def test_operator_calls_of_a_pass_on_cuda(monkeypatch):
    monkeypatch.setenv("FLATTEN_DET_ATTENTION", "triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(gpu, "unavailable_reason", lambda: None)
    monkeypatch.setattr(gpu, "supported", lambda *_: None)
    # What torch.autocast does, which without a GPU refuses to.
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
            model = MODELS.build(dict(type="FLattenPVT", arch="tiny")).eval()
            image = torch.empty(2, 3, 224, 224)
            with Operators() as operators:
                model(image)
    finally:
        torch.set_autocast_enabled("cuda", False)
    counts = Counter(operators.names)
    blocks, stages = 8, 4
    assert counts["_foreach_copy_"] == 1
    assert counts["_to_copy"] == stages  # what the patch embeddings are given
    assert counts["add_layer_norm"] == 2 * blocks + stages
    assert counts["native_layer_norm"] == 0
    assert counts["add"] == blocks + stages  # MLPs and positions
