"""The operators under torch's own checks, compiler, export and FLOP counter."""

import pytest
import torch
from attention_cases import make_inputs
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode

from flatten_det.attention import FocusedLinearAttention, focused_linear_attention, ops
from flatten_det.backbones import build_backbone

OPTIONS = dict(num_heads=2, hw_shape=(9, 7))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def arguments(**options):
    inputs = make_inputs((9, 7), 2, 16, **options)
    tensors = [None if x is None else x.detach().requires_grad_() for x in inputs.values()]
    return (*tensors, None, 2, 9, 7, 1e-6)


@pytest.mark.parametrize("kernel_size", [0, 5])
def test_registration(kernel_size):
    found = torch.library.opcheck(ops.attention, arguments(kernel_size=kernel_size))
    assert set(found.values()) == {"SUCCESS"}


def test_registration_of_the_layer():
    layer = FocusedLinearAttention(32, 2, (6, 5))
    with torch.no_grad():
        parameters = [x.detach() if isinstance(x, torch.Tensor) else x for x in layer._in_tiles()]
    found = torch.library.opcheck(
        ops.layer,
        (torch.randn(2, 63, 32), 9, 7, *parameters),
        test_utils=("test_schema", "test_faketensor"),
    )
    assert set(found.values()) == {"SUCCESS"}


def macs(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("kernel_size", [0, 3, 5])
def test_flops_are_those_of_the_reference(kernel_size):
    inputs = make_inputs((9, 7), 2, 16, kernel_size=kernel_size)
    tiled, plain = (
        macs(lambda n=name: focused_linear_attention(**inputs, **OPTIONS, implementation=n))
        for name in ("tiled", "reference")
    )
    assert tiled == plain > 0


@pytest.mark.parametrize("options", [{}, {"lepe_kernel_size": 3}, {"kernel_size": 0}])
def test_flops_of_the_layer(options, monkeypatch):
    layer, x = FocusedLinearAttention(32, 2, (6, 5), **options), torch.randn(2, 63, 32)
    with torch.no_grad():
        found = macs(lambda: layer(x, (9, 7)))
        monkeypatch.setenv("FLATTEN_DET_ATTENTION", "reference")
        assert found == macs(lambda: layer(x, (9, 7)))


def test_no_second_derivative_is_wrong():
    *tensors, _, heads, height, width, eps = arguments()
    out, *_ = ops.attention(*tensors, None, heads, height, width, eps)
    (first,) = torch.autograd.grad(out.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), tensors[0])


PVT = dict(embed_dims=(16, 32, 64, 128), num_heads=(1, 2, 4, 8), depths=(1, 1, 1, 1))
# Maps small enough for a test have other kernels of the convolutions (torch's fake ones choose by size).
SIZES = [(160, 256), (192, 320), (256, 224)]


@pytest.mark.slow
@pytest.mark.parametrize("grad", [False, True])
def test_one_graph_for_all_sizes(grad):
    backbone, counter = build_backbone("flatten-pvt-t", arch=PVT).eval(), CompileCounter()
    compiled = torch.compile(backbone, fullgraph=True, dynamic=True, backend=counter)
    with torch.set_grad_enabled(grad):
        for size in SIZES:
            image = torch.randn(1, 3, *size)
            torch.testing.assert_close(compiled(image), backbone(image), rtol=1e-3, atol=1e-4)
    assert counter.frame_count <= 2  # At most one compilation more.


@pytest.mark.slow
def test_compiled_gradients():
    backbone = build_backbone("flatten-pvt-t", arch=PVT)
    image = torch.randn(1, 3, 64, 96)
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    found = []
    for model in (backbone, compiled):
        backbone.zero_grad()
        sum(out.square().sum() for out in model(image)).backward()
        found.append([p.grad.clone() for p in backbone.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * a.abs().max().item())


@pytest.mark.slow
def test_export():
    backbone = build_backbone("flatten-pvt-t", arch=PVT).eval()
    height, width = (torch.export.Dim(name, min=4, max=40) for name in ("height", "width"))
    shape = {0: None, 1: None, 2: 32 * height, 3: 32 * width}
    with torch.no_grad():
        program = torch.export.export(
            backbone, (torch.randn(1, 3, 192, 256),), dynamic_shapes=[shape]
        )
        names = {str(node.target) for node in program.graph.nodes}
        assert "flatten_det.focused_linear_attention.default" in names
        for size in SIZES:
            image = torch.randn(1, 3, *size)
            found, expected = program.module()(image), backbone(image)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
