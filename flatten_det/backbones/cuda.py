"""Inference on CUDA with fewer launches: weights cast at once under autocast, and CUDA graphs.

Autocast casts each weight when its layer is called: two launches a layer in every forward pass, for its cache
lives no longer than one. The casts cannot be kept from one pass to the next, because weights are written
through ``.data`` too, by mmengine's averaged models and mmdet's teachers, and nothing tells that this has
happened. So they are made anew, all in one launch, and last for one pass (:class:`AutocastWeights`).

For images of a size that comes again, hundreds of launches become one (:class:`CudaGraphs`). A graph repeats
the kernels of one pass, with the addresses and numbers that they had, and nothing that the host does beside
them. So there is one for each size, and all else that the host looks at is compared before every replay: what
the modules consist of and who listens to them, where their tensors lie, autocast, torch's deterministic mode
and the choice of the attention. Weights are read anew by every replay, whoever wrote them. Torch's other
global settings are those of the capture.
"""

import os
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map_only

from ..attention import FocusedLinearAttention
from ..attention.dispatch import VARIABLE
from ..attention.eager import (
    has_hooks,
    is_from_known_library,
    is_plain,
    is_plain_eager,
    keeping_nothing,
    keeps_tensors,
)


class AutocastWeights:
    """Casts the weights of a backbone. Copies of the backbone, pickled or not, begin with an empty one."""

    def __init__(self) -> None:
        self._owner: nn.Module | None = None
        self._layers: list[tuple[nn.Module, str, nn.Module]] = []
        self._memory: dict[tuple[int, str], Tensor] = {}

    @contextmanager
    def used_by(self, backbone: nn.Module, x: Tensor) -> Iterator[None]:
        """While this lasts, the layers of ``backbone``, called with x, have weights of autocast's dtype.

        Weights of other kinds than plain float32 parameters are left to autocast, and so are those of layers
        that somebody else looks into: hooked, pruned or wrapped ones.
        """
        if not _pays(x):
            yield
            return
        if self._owner is not backbone or any(
            parent._modules.get(name) is not layer for parent, name, layer in self._layers
        ):
            self._owner, self._memory = backbone, {}
            self._layers = list(_called_layers(backbone))
        dtype = torch.get_autocast_dtype(x.device.type)
        memory = self._memory if keeps_tensors() else {}
        replaced = []
        for index, (_, _, layer) in enumerate(self._layers):
            if not (is_plain(layer, nn.Linear) or is_plain(layer, nn.Conv2d)):
                continue
            parameters = layer._parameters
            for name, weight in parameters.items():
                if type(weight) in _PLAIN and weight.dtype == torch.float32:
                    cast = _cast(memory, (index, name), dtype, weight)
                    replaced.append((parameters, name, weight, cast))
        if replaced:
            torch._foreach_copy_([cast for *_, cast in replaced], [w for _, _, w, _ in replaced])
        try:
            for parameters, name, _, cast in replaced:
                parameters[name] = cast
            yield
        finally:
            for parameters, name, weight, cast in replaced:
                if parameters[name] is cast:
                    parameters[name] = weight

    def __reduce__(self) -> tuple:
        return AutocastWeights, ()


_PLAIN = (nn.Parameter, FakeTensor)


def _pays(x: Tensor) -> bool:
    """Whether autocast would cast every weight for this pass alone."""
    if not x.is_cuda or torch.is_grad_enabled() or not torch.is_autocast_enabled("cuda"):
        return False
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing())


def _cast(
    memory: dict[tuple[int, str], Tensor], key: tuple[int, str], dtype: torch.dtype, weight: Tensor
) -> Tensor:
    """Memory for a weight's cast, in its layout: only then do they all go in one launch."""
    kept = memory.get(key)
    layout = (dtype, weight.device, weight.shape, weight.stride())
    if kept is None or (kept.dtype, kept.device, kept.shape, kept.stride()) != layout:
        # Not as an inference tensor, which may be written to in inference mode only.
        with torch.inference_mode(False):
            kept = torch.empty_like(weight, dtype=dtype, requires_grad=False)
        memory[key] = kept
    return kept


def _called_layers(backbone: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """The layers whose weights nothing but autocast's products and convolutions read, each with its place."""
    for parent in backbone.modules():
        if not is_from_known_library(type(parent)):
            continue
        for name, layer in parent.named_children():
            is_read = isinstance(parent, FocusedLinearAttention) and name == "dwc"
            if type(layer) in (nn.Linear, nn.Conv2d) and not is_read:
                yield parent, name, layer


# Graphs of a module. Each holds its images and its maps; the memory in between is common to all.
LIMIT = 8


def replay_forward(module: nn.Module, strict: bool = False) -> None:
    """Put :meth:`CudaGraphs.forward` in the place of a module's own; for the arguments see there."""
    if not isinstance(getattr(module.forward, "__self__", None), CudaGraphs):
        module.forward = CudaGraphs(module, strict).forward


class CudaGraphs:
    """The ``forward`` of a module, replayed from CUDA graphs in evaluation mode and without gradients.

    The first pass for a size is an ordinary one, the second is captured. The first :data:`LIMIT` sizes to
    come again have graphs, others go on without: a capture for every image would take longer than it saves.
    Wherever there can be no graph, the module is called as it is, and the first time a warning says why.
    Copies of the module begin without graphs.

    Args:
        module: its ``forward`` takes images and maybe the sizes of what is valid of them, as
            :meth:`.base.DenseBackbone.forward` does, and returns tensors in tuples, lists and dicts.
        strict: where there can be no graph, raise RuntimeError instead of going on.
    """

    def __init__(self, module: nn.Module, strict: bool = False) -> None:
        self._module, self._forward, self._strict = module, module.forward, strict
        # Images are written, and maps read, in the same memory by all replays.
        self._lock = threading.Lock()
        self._seen: set[Hashable] = set()
        self._told: set[str] = set()
        self._failure: str | None = None
        self._forget()

    def _forget(self) -> None:
        """Drop all graphs, whose memory is common."""
        self._graphs: dict[Hashable, Callable[[Tensor], Any]] = {}
        self._recorder: Recorder | None = None
        self._parts: _Parts | None = None

    def forward(self, x: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> Any:
        """What the module's own gives."""
        arguments = (x,) if sizes is None else (x, tuple(map(tuple, sizes)))
        is_inference = not torch.is_grad_enabled() and not self._module.training
        # Compilers, traces and others' captures get what they would without graphs.
        if not is_inference or not is_plain_eager() or not keeps_tensors():
            return self._forward(*arguments)
        outputs = None
        with self._lock:
            obstacle = self._obstacle(*arguments)
            if obstacle is None:
                outputs = self._replay(*arguments)
            else:
                self._tell(obstacle)
        return self._forward(*arguments) if outputs is None else outputs

    def _obstacle(self, x: Tensor, sizes: Sequence[tuple[int, int]] = ()) -> str | None:
        """Why there can be no graph for a call, or None."""
        if self._failure is not None:
            return self._failure
        if x.device.type != Recorder.device_type:
            return f"the images are on {x.device.type}"
        if type(x) is not Tensor:
            return f"the images are a {type(x).__name__}"
        if len(set(sizes)) > 1:
            return "the images of a batch have several sizes"
        if self._parts is None or self._parts.have_changed():
            self._forget()
            self._parts = _Parts(self._module)
        if any(map(has_hooks, self._parts.inner)):
            return "modules have hooks, which a replay does not call"
        return None

    def _replay(self, x: Tensor, *sizes: Hashable) -> Any:
        """The outputs, by a graph from the second pass on; None if there is to be none."""
        key = (x.shape, x.stride(), x.dtype, x.device, sizes, _settings(x.device.type))
        if key not in self._graphs:
            if len(self._graphs) == LIMIT:
                self._tell(f"{LIMIT} sizes have one already, others go without")
                return None
            if key not in self._seen:
                outputs = self._forward(x, *sizes)
                self._seen.add(key)  # What fails by itself is no failure of a capture.
                return outputs
            try:
                self._graphs[key] = self._capture(x, *sizes)
            except Exception as error:
                # What ends a capture is reported last, and what was wrong in it before.
                error = error.__context__ or error
                text = " ".join(str(error).split())
                self._failure = f"a pass cannot be captured ({type(error).__name__}: {text[:500]})"
                self._forget()
                self._tell(self._failure)
                return None
        self._recorder.take_turn()
        return self._graphs[key](x)

    def _capture(self, x: Tensor, *sizes: Hashable) -> Callable[[Tensor], Any]:
        """What computes the outputs anew for other images of this kind."""
        kind = x.device.type
        if self._recorder is None:
            self._recorder = Recorder(x.device)
        # Neither tensors for inference mode alone, nor weights' casts that last as long as autocast does.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(
                kind,
                torch.get_autocast_dtype(kind),
                enabled=torch.is_autocast_enabled(kind),
                cache_enabled=False,
            ),
            keeping_nothing(),
        ):
            images = torch.empty_like(x).copy_(x)
            repeat, outputs = self._recorder.record(lambda: self._forward(images, *sizes))

        def replay(x: Tensor) -> Any:
            images.copy_(x)
            repeat()
            # The next replay of any graph may write where these lie.
            return tree_map_only(Tensor, torch.clone, outputs)

        return replay

    def _tell(self, obstacle: str) -> None:
        text = f"a backbone runs without CUDA graphs: {obstacle}"
        if self._strict:
            raise RuntimeError(text)
        if obstacle not in self._told:
            self._told.add(obstacle)
            warnings.warn(text, stacklevel=2)

    def __reduce__(self) -> tuple:
        return CudaGraphs, (self._module, self._strict)


class Recorder:
    """Captures graphs of one device that share their memory, and so are to be replayed one at a time."""

    device_type = "cuda"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        self._last = torch.cuda.current_stream(device)

    def record(self, run: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        """What repeats the kernels of ``run``, and the outputs that it computes."""
        here = torch.cuda.current_stream(self._device)
        # The stream once more, because older versions of torch do not return to it after a failure.
        with torch.cuda.device(self._device), torch.cuda.stream(here):
            # Loads and compiles what is launched. Not on the stream of the capture, where cuBLAS would get a
            # workspace that is not the graphs' own.
            run()
            graph = torch.cuda.CUDAGraph()
            # The threads of data loaders go on meanwhile.
            with torch.cuda.graph(graph, self._pool, self._stream, "thread_local"):
                outputs = run()
        return graph.replay, outputs

    def take_turn(self) -> None:
        """Let the current stream wait for the one that replayed last."""
        here = torch.cuda.current_stream(self._device)
        if here != self._last:
            here.wait_stream(self._last)
            self._last = here


class _Parts:
    """What a module consists of, for as long as its graphs hold; ``inner`` are all modules in it."""

    def __init__(self, module: nn.Module) -> None:
        self._modules = list(module.modules())
        self.inner = self._modules[1:]
        self._tables = [t for m in self._modules for t in (m._modules, m._parameters, m._buffers)]
        self._entries, self._state = self._look()

    def have_changed(self) -> bool:
        """Whether a part was replaced, or put elsewhere in memory, or into another mode."""
        entries, state = self._look()
        is_same = len(entries) == len(self._entries) and all(map(is_, entries, self._entries))
        return not (is_same and state == self._state)

    def _look(self) -> tuple[list, tuple]:
        entries = [entry for table in self._tables for entry in table.values()]
        # Tensors of other kinds may lie nowhere.
        addresses = [x.data_ptr() for x in entries if type(x) is nn.Parameter or type(x) is Tensor]
        return entries, (addresses, [module.training for module in self._modules])


def _settings(device_type: str) -> Hashable:
    """What decides which kernels a pass launches, beside images and modules."""
    return (
        torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type),
        torch.are_deterministic_algorithms_enabled(),
        os.environ.get(VARIABLE),
    )
