"""Replayed passes give what the module gives, whatever has happened since their capture."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from unittest.mock import Mock

import pytest
import torch
from graph_recorder import CpuRecorder
from nano_backbones import NANO, build_nano
from torch import nn

from flatten_det.attention.eager import keeps_tensors
from flatten_det.backbones import cuda, use_cuda_graphs
from flatten_det.backbones.base import valid_regions
from flatten_det.backbones.cuda import LIMIT, Recorder, replay_forward

pytestmark = pytest.mark.filterwarnings("error:a backbone runs without CUDA graphs")


@pytest.fixture(autouse=True)
def captures(monkeypatch):
    """The CPU in place of a GPU: how many passes were captured, and how often they were replayed."""
    monkeypatch.setattr(cuda, "Recorder", CpuRecorder)
    CpuRecorder.captured = CpuRecorder.replayed = 0
    return lambda: (CpuRecorder.captured, CpuRecorder.replayed)


def network(**options) -> nn.Module:
    """A convolution, a norm with buffers, and a list of outputs."""
    torch.manual_seed(0)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.norm(self.conv(x))
            return [x, {"relu": x.relu()}]

    module = Network().eval()
    replay_forward(module, **options)
    return module


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (2, 3, 8, 9))


def check(module: nn.Module, x: torch.Tensor) -> None:
    """The module gives what its class gives."""
    with torch.no_grad():
        expected = type(module).forward(module, x)
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(f, marks=[] if f in ("FLattenPVT", "FLattenSwin") else [pytest.mark.slow])
        for f in NANO
    ],
)
def test_backbones(family, captures):
    """Grids and masks of the size are computed in the graph, from the weights of the moment."""
    model = build_nano(family, "LSLL", out_indices=(0, 1)).eval()
    use_cuda_graphs(model)
    use_cuda_graphs(model)  # once more changes nothing
    for _ in range(5):
        x = images(1, 3, 75, 101)
        with torch.no_grad():
            found = model(x)
            model.train().eval()  # forgets grids kept for a size, which this way of writing leaves stale
            torch.testing.assert_close(found, model.forward_images(x), rtol=1e-3, atol=1e-4)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.2)  # as averaged models and teachers write
    assert captures() == (1, 4)


@pytest.mark.parametrize(
    ("change", "is_captured_anew"),
    [
        (lambda m: m.conv.weight.data.mul_(2), False),
        (lambda m: m.load_state_dict({k: v * 2 for k, v in m.state_dict().items()}), False),
        (lambda m: m.norm.running_mean.add_(1), False),
        (lambda m: setattr(m.conv.weight, "data", m.conv.weight * 2), True),
        (lambda m: setattr(m.conv, "bias", None), True),
        (lambda m: setattr(m, "conv", nn.Conv2d(3, 4, 3)), True),
        (lambda m: setattr(m.norm, "running_var", torch.full((4,), 3.0)), True),
        (lambda m: m.norm.train(), True),
        (lambda m: m.double().float(), True),
    ],
)
@torch.no_grad()
def test_weights_written_in_place_are_read_and_other_parts_captured_anew(
    change, is_captured_anew, captures
):
    module = network()
    for _ in range(3):
        check(module, images())
    change(module)
    for _ in range(2):
        check(module, images())
    assert captures() == ((2, 4) if is_captured_anew else (1, 4))


def test_each_kind_of_images_has_a_graph_of_its_own(captures):
    module = network()
    x = images()
    kinds = [
        (x, nullcontext),
        (images(1, 3, 8, 9), nullcontext),
        (x.to(memory_format=torch.channels_last), nullcontext),
        (x, lambda: torch.autocast("cpu", torch.bfloat16)),
        (x, lambda: torch.autocast("cpu", torch.float16)),
        (x, deterministic),
    ]
    for count, (kind, context) in enumerate(kinds, start=1):
        for _ in range(2):
            with context(), torch.no_grad():
                found, expected = module(kind), type(module).forward(module, kind)
                torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
            assert found[0].dtype == expected[0].dtype
        assert captures()[0] == count


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_nothing_is_taken_into_a_graph_that_is_freed_before_it(captures):
    """Neither autocast's casts of weights, which last as long as it does, nor what is kept for a size."""
    module, keeps = network(), []
    module.conv.forward = lambda x: (
        keeps.append((torch.is_autocast_cache_enabled(), keeps_tensors()))
        or nn.Conv2d.forward(module.conv, x)
    )
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            module(images())
    first, *of_capture = keeps
    assert first == (True, True)
    assert set(of_capture) == {(False, False)}
    assert captures() == (1, 1)


@torch.no_grad()
def test_outputs_are_not_written_again():
    module, x = network(), images()
    first = [module(x) for _ in range(3)][-1]
    kept = first[0].clone()
    module(x + 1)
    assert first[0].equal(kept)


def test_modes_without_gradients_share_a_graph(captures):
    module, x = network(), images()
    expected = type(module).forward(module, x)[0]
    for mode in (torch.inference_mode, torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            given = x.clone()
            torch.testing.assert_close(module(given)[0], expected)
    assert captures() == (1, 3)


def test_training_and_gradients_are_left_alone(captures):
    module = network()
    for _ in range(3):
        module(images())[0].sum().backward()
    assert module.conv.weight.grad.any()
    module.train()
    with torch.no_grad():
        for _ in range(3):
            module(images())
    assert module.norm.num_batches_tracked == 3
    assert captures() == (0, 0)


@torch.no_grad()
def test_who_listens_is_called(captures):
    module, seen = network(), []
    for _ in range(3):
        check(module, images())
    handle = module.conv.register_forward_hook(lambda *_: seen.append(1))
    with pytest.warns(UserWarning, match="modules have hooks"):
        module(images())
    module(images())  # and once is enough
    assert len(seen) == 2
    handle.remove()
    check(module, images())
    assert captures() == (1, 3)
    module.register_forward_hook(lambda *_: seen.append(1))  # has its inputs and outputs
    module(images())
    assert len(seen) == 3
    assert captures() == (1, 4)


@torch.no_grad()
def test_the_first_sizes_that_come_again_have_graphs(captures):
    module = network()
    once = [images(1, 3, 5, 40 + n) for n in range(3)]
    for x in once:
        check(module, x)
    assert captures() == (0, 0)
    again = [images(1, 3, 5, 5 + n) for n in range(LIMIT)]
    for x in [*again, *again, *again]:
        check(module, x)
    assert captures() == (LIMIT, 2 * LIMIT)
    with pytest.warns(UserWarning, match=f"{LIMIT} sizes have one already"):
        check(module, once[0])
    check(module, once[0])
    check(module, again[0])
    assert captures() == (LIMIT, 2 * LIMIT + 1)


@contextmanager
def ended_in_vain():
    """As torch ends a capture in which something was wrong."""
    try:
        yield
    finally:
        raise RuntimeError("the capture was invalidated")


@torch.no_grad()
def test_a_pass_that_cannot_be_captured(captures, monkeypatch):
    module = network()

    def record(self, run):
        run()
        with ended_in_vain():
            raise ValueError("operation not permitted\n  when stream is capturing")

    monkeypatch.setattr(CpuRecorder, "record", record)
    check(module, images())
    expected = r"cannot be captured \(ValueError: operation not perm.* when"
    with pytest.warns(UserWarning, match=expected):
        module(images())
    monkeypatch.undo()
    monkeypatch.setattr(cuda, "Recorder", CpuRecorder)
    for _ in range(3):
        check(module, images())
    assert captures() == (0, 0)


@torch.no_grad()
def test_images_that_do_not_fit_are_no_failure_of_a_capture(captures):
    module = network()
    for _ in range(3):
        with pytest.raises(RuntimeError, match="expected input"):
            module(images(1, 4, 8, 9))
    for _ in range(2):
        check(module, images())
    assert captures() == (1, 1)


@torch.no_grad()
def test_elsewhere_than_on_a_gpu(monkeypatch):
    monkeypatch.setattr(cuda, "Recorder", Recorder)
    module = network()
    with pytest.warns(UserWarning, match="without CUDA graphs: the images are on cpu"):
        module(images())
    module(images())
    with pytest.raises(RuntimeError, match="the images are on cpu"):
        network(strict=True)(images())


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="the model has none"):
        use_cuda_graphs(nn.Conv2d(3, 4, 3))


@torch.no_grad()
def test_valid_sizes(captures):
    """One for all is part of what is captured; of several, each image goes its own way."""
    model = build_nano("FLattenPVT", out_indices=(0,)).eval()
    plain = copy.deepcopy(model)
    use_cuda_graphs(model)

    def check(*sizes):
        x = images(2, 3, 48, 64)
        samples = [type("Sample", (), {"img_shape": size}) for size in sizes]
        with valid_regions(x, samples):
            torch.testing.assert_close(model(x), plain(x), rtol=1e-3, atol=1e-4)

    for size in ((48, 64), (40, 64)):
        for _ in range(3):
            check(size, size)
    assert captures() == (2, 4)
    with pytest.warns(UserWarning, match="the images of a batch have several sizes"):
        check((40, 64), (48, 30))
    assert captures() == (2, 4)


@torch.no_grad()
def test_copies_and_pickles_begin_anew(captures):
    model = build_nano("FLattenPVT", out_indices=(0,)).eval()
    names = list(model.state_dict())
    use_cuda_graphs(model)
    x = images(1, 3, 32, 32)
    for _ in range(2):
        expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.patch_embed1.proj.weight.data.zero_()
        assert not other(x)[0].equal(expected[0])
        assert list(other.state_dict()) == names
    assert captures() == (1, 1)
    torch.testing.assert_close(model(x), expected)


@torch.no_grad()
def test_threads_do_not_mix_their_images():
    module = network()
    inputs = [images() for _ in range(4)]
    expected = [type(module).forward(module, x)[0] for x in inputs]
    wrong = []

    def work(x, y):
        with torch.no_grad():
            wrong.extend(1 for _ in range(20) if not torch.allclose(module(x)[0], y, atol=1e-5))

    for _ in range(2):
        module(inputs[0])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, inputs, expected))
    assert not wrong


@torch.no_grad()
def test_compilers_see_the_module(captures):
    module, x = network(), images()
    expected = type(module).forward(module, x)[0]
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    for function in (compiled, torch.export.export(module, (x,)).module()):
        torch.testing.assert_close(function(x)[0], expected)
    assert captures() == (0, 0)


class Streams:
    """``torch.cuda`` as far as a recorder needs it, which notes what is done on which stream."""

    def __init__(self, monkeypatch) -> None:
        self.current, self.log = "default", []
        for name in ("current_stream", "stream", "device", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, f"_{name}"))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"stream of {device}")
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)

    def _current_stream(self, device):
        return self.current

    @contextmanager
    def _stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def _device(self, device):
        return nullcontext()

    @contextmanager
    def _graph(self, graph, pool, stream, error_mode):
        self.log.append((pool, error_mode))
        self.current = stream
        yield
        self.current = "default"  # older versions do so after a success only

    def replay(self):
        self.log.append("replayed")


def test_recorder(monkeypatch):
    streams = Streams(monkeypatch)
    recorder = Recorder("card")
    replay, outputs = recorder.record(lambda: streams.log.append(streams.current) or "outputs")
    replay()
    assert outputs == "outputs"
    own = "stream of card"
    # The pass before the capture compiles and tunes.
    assert streams.log == ["default", ("pool", "thread_local"), own, "replayed"]

    def fail():
        if streams.current == own:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        recorder.record(fail)
    assert streams.current == "default"


def test_another_stream_waits_for_the_last_replay(monkeypatch):
    streams = Streams(monkeypatch)
    first, second = Mock(), Mock()
    streams.current = first
    recorder = Recorder("card")
    recorder.take_turn()
    streams.current = second
    recorder.take_turn()
    recorder.take_turn()
    first.wait_stream.assert_not_called()
    second.wait_stream.assert_called_once_with(first)
