"""What depends on the size of the map only, kept for the next image of that size."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

# Sizes in turn, as evaluation on images of a few shapes has them, and 16 MiB in float32: the work that
# makes a larger tensor is no longer noticed beside what is done with it.
_SIZES = 4
_ELEMENTS = 1 << 22
_keeps_nothing: ContextVar[bool] = ContextVar("flatten_det_keeps_nothing", default=False)


def tensors_have_values() -> bool:
    """Whether tensors are plain ones: not those of a compiler, a trace, or another mode such as fakes."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not is_in_torch_dispatch_mode()


@contextmanager
def keeping_nothing() -> Iterator[None]:
    """For its time, :func:`keeps_tensors` is False."""
    token = _keeps_nothing.set(True)
    try:
        yield
    finally:
        _keeps_nothing.reset(token)


def keeps_tensors() -> bool:
    """Whether what is made now may be kept for later calls, and what earlier ones kept may be read.

    Not in what a CUDA graph is captured of: its replays would read memory that belongs to others by then,
    and other calls what only a replay writes.
    """
    if _keeps_nothing.get():
        return False
    return not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())


class SizeCache:
    """A few small tensors by key, the longest unused one going first.

    Copies of a module, pickled or not, begin with an empty one.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    def __call__(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of the key; it is made without gradients, and not to be changed."""
        if not (tensors_have_values() and keeps_tensors()):
            return make()
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        # Not as an inference tensor, which later training could not use.
        with torch.inference_mode(False), torch.no_grad():
            value = make()
        if value.numel() <= _ELEMENTS:
            self._kept[key] = value
            if len(self._kept) > _SIZES:
                self._kept.popitem(last=False)
        return value

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)

    def __reduce__(self) -> tuple:
        return SizeCache, ()
