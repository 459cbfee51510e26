"""The kernels of this folder's tests run in Triton's interpreter, on poisoned memory."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

# Triton has no packages for some systems; the rest of the project needs none.
if find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels run on the CPU; memory that they do not write is NaN."""
    from triton_interpreter import interpreted

    from flatten_det.attention.gpu import launch, norm

    def poisoned(*shape: int, like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full(shape, torch.nan, dtype=dtype, device=like.device)

    for module in (launch, norm):
        monkeypatch.setattr(module, "empty", poisoned)
    with interpreted():
        yield


@pytest.fixture
def fresh_support() -> Iterator[None]:
    """Nothing is known about the machine, and nothing is kept of what the test finds out."""
    from flatten_det.attention import dispatch, gpu, layer_norm

    # What a test replaces may be back by the end, or not.
    caches = (dispatch._choose, layer_norm._device_serves, gpu.unavailable_reason, gpu._warn)

    def forget() -> None:
        for function in caches:
            function.cache_clear()
        gpu._failures.clear()

    forget()
    yield
    forget()
