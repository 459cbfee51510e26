"""On CUDA the kernels are the default; what they cannot compute falls back, with one warning why."""

import warnings

import pytest
import torch
from attention_cases import NAMES, make_inputs, plain, relative_error, with_gradients
from operators import Operators
from torch._subclasses.fake_tensor import FakeTensorMode

from flatten_det.attention import FocusedLinearAttention, focused_linear_attention, gpu, ops
from flatten_det.attention.reference import Inputs

pytestmark = pytest.mark.usefixtures("fresh_support")


@pytest.fixture
def card(monkeypatch):
    """``card((7, 5))`` is the compute capability of the card that is not there."""

    def make(capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)

    make((9, 0))
    return make


def by_kernels(run) -> bool:
    with Operators() as operators:
        run()
    return "focused_linear_attention" in operators.names


def run_layer(dtype=torch.float32, size=(4, 6), **options):
    """A layer on CUDA tensors without values."""
    arguments = dict(dim=32, num_heads=2, grid_size=(3, 4), fused_qkv=False) | options
    with FakeTensorMode(), torch.device("cuda"):
        layer = FocusedLinearAttention(**arguments)
        for module in layer.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(parameter.detach().to(dtype))
        layer(torch.empty(2, size[0] * size[1], 32, dtype=dtype), size)


@pytest.mark.parametrize("options", [{}, {"window_size": 2}, {"lepe_kernel_size": 3}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad", [False, True])
def test_the_kernels_are_the_default(card, options, dtype, grad):
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert by_kernels(lambda: run_layer(dtype, **options))


def no_triton(patch):
    patch.setattr(gpu, "unavailable_reason", lambda: "no Triton here")


def old_card(patch):
    patch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))


@pytest.mark.parametrize(
    ("prepare", "options", "reason"),
    [
        (old_card, {}, "compute capability 7.5, the kernels need 8.0"),
        (no_triton, {}, "no Triton here"),
        (None, {"focusing_factor": 4}, "focusing_factor is 4, not 3"),
        (None, {"sr_ratio": 2}, "fewer keys than queries"),
        (None, {"num_heads": 4}, "head dimension 8, the kernels take 16 to 64"),
        (None, {"dtype": torch.float64}, "float64, the kernels take"),
    ],
)
def test_obstacles(card, monkeypatch, prepare, options, reason):
    if prepare is not None:
        prepare(monkeypatch)
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        for _ in range(3):
            assert not by_kernels(lambda: run_layer(**options))
    (message,) = [str(w.message) for w in caught if "fused kernels" in str(w.message)]
    assert reason in message


def test_forcing(card, monkeypatch):
    monkeypatch.setenv("FLATTEN_DET_ATTENTION", "reference")
    assert not by_kernels(run_layer)
    monkeypatch.setenv("FLATTEN_DET_ATTENTION", "tiled")  # The CPU's: not meant for these tensors.
    assert by_kernels(run_layer)
    card((7, 0))
    monkeypatch.setenv("FLATTEN_DET_ATTENTION", "triton")
    with pytest.raises(ValueError, match=r"'triton' cannot compute this: compute capability 7\.0"):
        run_layer()


@pytest.mark.parametrize("capability", [(9, 0), (7, 5)])
def test_one_graph(card, capability):
    """The choice leaves nothing in a compiler's graph, and has its warning."""
    card(capability)
    targets = []

    def backend(module, _):
        targets.extend(node.target for node in module.graph.nodes)
        return module.forward

    def attend(q):
        return focused_linear_attention(q, q, q, num_heads=2, hw_shape=(4, 6))

    torch._dynamo.reset()
    with FakeTensorMode(), torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        q = torch.empty(2, 24, 32, device="cuda")
        torch.compile(attend, fullgraph=True, dynamic=True, backend=backend)(q)
    has_kernels = capability >= (8, 0)
    assert has_kernels == any("flatten_det" in str(target) for target in targets)
    assert has_kernels != any("fused kernels" in str(w.message) for w in caught)
    torch._dynamo.reset()


def on_cuda(**inputs):
    return ops.attention_on_cuda(Inputs(**inputs))


@pytest.fixture
def plain_forward(monkeypatch):
    """In place of the kernels' forward pass."""

    def forward(inputs, for_backward):
        norms = torch.zeros(2, 2, 35, 2) if for_backward else None
        saved = torch.zeros(2, 2, 16, 16), torch.zeros(2, 2, 32), norms
        return plain(**inputs._asdict()), *saved

    monkeypatch.setattr(gpu, "forward", forward, raising=False)


def test_eager_calls_leave_the_operator_out(plain_forward, monkeypatch):
    def backward(grad, inputs, kv, means, norms, needs):
        assert (kv.shape, means.shape) == ((2, 2, 16, 16), (2, 2, 32))
        assert norms.shape == (2, 2, 35, 2)
        assert inputs[7:] == (2, (5, 7), 3, 1e-6, None, None)
        return tuple(
            torch.full_like(x, i) if need else None
            for i, x, need in zip(range(7), inputs.tensors, needs, strict=True)
        )

    monkeypatch.setattr(gpu, "backward", backward, raising=False)
    monkeypatch.setattr(ops, "attention", None)
    inputs, options = make_inputs((5, 7), 2, 16), dict(num_heads=2, hw_shape=(5, 7))
    out, gradients = with_gradients(on_cuda, inputs, torch.randn(2, 35, 32), **options)
    assert relative_error(out, plain(**inputs, **options)) < 1e-5
    assert all(bool((gradients[name] == i).all()) for i, name in enumerate(NAMES))
    v = inputs["v"].clone().requires_grad_()
    out = on_cuda(**inputs | {"v": v}, **options)
    (first,) = torch.autograd.grad(out.square().sum(), v, create_graph=True)
    assert (first == NAMES.index("v")).all()
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), v)


def test_norms_are_kept_for_a_backward_pass_alone(monkeypatch):
    asked = []

    def forward(inputs, for_backward):
        asked.append(for_backward)
        return inputs.v.clone(), *[None] * 3

    monkeypatch.setattr(gpu, "forward", forward, raising=False)
    inputs = Inputs(**make_inputs((5, 7), 2, 16), num_heads=2, hw_shape=(5, 7))
    for is_enabled in (True, False):
        with torch.set_grad_enabled(is_enabled):
            ops.attention_on_cuda(inputs)
    assert asked == [True, False]


def fail_with(error):
    """A function that fails within Triton, as its traceback says."""
    names = {"__name__": "triton.runtime.build", "error": error}
    exec("def run(*_, **__):\n    raise error", names)
    return names["run"]


@pytest.mark.parametrize("sizes", [None, [[5, 4], [3, 7]]])
@pytest.mark.parametrize("failing", ["forward", "backward"])
def test_kernels_that_cannot_be_built(failing, sizes, plain_forward, monkeypatch):
    inputs, options = make_inputs((5, 7), 2, 16), dict(num_heads=2, hw_shape=(5, 7))
    options["sizes"] = None if sizes is None else torch.tensor(sizes)
    grad = torch.randn(2, 35, 32)
    error = RuntimeError("Failed to find C compiler.")
    monkeypatch.setattr(gpu, failing, fail_with(error), raising=False)
    with pytest.warns(UserWarning, match=r"cannot be built or launched .*C compiler"):
        out, gradients = with_gradients(on_cuda, inputs, grad, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_gradients(on_cuda, inputs, grad, **options)
    expected, others = with_gradients(plain, inputs, grad, **options)
    assert relative_error(out, expected) < 1e-5
    assert all(relative_error(gradients[name], others[name]) < 1e-5 for name in NAMES)
    assert "C compiler" in gpu.failure()


def test_a_failure_makes_the_process_fall_back(card):
    assert by_kernels(run_layer)
    gpu._failures.append("a kernel cannot be built")
    assert not by_kernels(run_layer)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: device-side assert triggered"),
        ValueError("Pointer argument (at 0) cannot be accessed from Triton (cpu tensor?)"),
    ],
)
def test_other_errors_are_not_hidden(error, monkeypatch):
    inputs = make_inputs((5, 7), 2, 16)
    monkeypatch.setattr(gpu, "forward", fail_with(error), raising=False)
    with pytest.raises(type(error), match=str(error)[:9]):
        on_cuda(**inputs, num_heads=2, hw_shape=(5, 7))
    assert gpu.failure() is None


def test_mistakes_in_the_inputs_are_not_hidden():
    inputs = make_inputs((5, 7), 2, 16)
    with pytest.raises(ValueError, match="35 tokens"):
        on_cuda(**inputs, num_heads=2, hw_shape=(5, 6))
    assert gpu.failure() is None
