"""Which calls the kernels take, and why not the others."""

import importlib
import subprocess
import sys

import pytest
import torch

from flatten_det.attention import gpu
from flatten_det.attention.gpu import launch, support


def tensors(N=4, C=32, M=None, dtype=torch.float32):
    q = torch.zeros(1, N, C, dtype=dtype)
    k = torch.zeros(1, M or N, C, dtype=dtype)
    return q, k, k


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(
    ("kwargs", "num_heads", "p", "reason"),
    [
        (dict(), 2, 3, None),
        (dict(C=1024), 16, 3.0, None),
        (dict(C=24, dtype=torch.float16), 1, 3, None),
        (dict(), 2, 4, "focusing_factor=4"),
        (dict(M=2), 2, 3, "2 keys for 4 queries"),
        (dict(N=0), 2, 3, "no tokens"),
        (dict(dtype=torch.float64), 2, 3, "float64"),
        (dict(C=36), 2, 3, "C=36"),
        (dict(C=2048), 32, 3, "C=2048"),
        (dict(C=128), 1, 3, "head dimension 128"),
        (dict(C=32), 4, 3, "head dimension 8"),
    ],
)
def test_supported(kwargs, num_heads, p, reason):
    answer = gpu.supported(*tensors(**kwargs), num_heads, p)
    assert answer is None if reason is None else reason in answer


@pytest.mark.skipif(launch.interpreted(), reason="TRITON_INTERPRET=1")
def test_tensors_of_the_cpu_need_the_interpreter():
    assert "TRITON_INTERPRET=1" in gpu.supported(*tensors(), 2, 3)
    assert "meta" in gpu.supported(*(x.to("meta") for x in tensors()), 2, 3)
    q, k, v = tensors()
    assert "cpu and meta" in gpu.supported(q, k, v.to("meta"), 2, 3)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (None, "triton cannot be imported (ModuleNotFoundError"),
        ("2.1.0", "triton 2.1.0, the kernels need 3.6"),
    ],
)
def test_without_a_triton_that_works(monkeypatch, module, reason):
    if module is None:
        monkeypatch.setitem(sys.modules, "triton", None)
    else:
        monkeypatch.setattr(importlib.import_module("triton"), "__version__", module)
    support.unavailable_reason.cache_clear()
    try:
        assert not gpu.available()
        assert gpu.supported(*tensors(), 2, 3).startswith(reason)
    finally:
        support.unavailable_reason.cache_clear()


def test_attention_is_importable_without_triton():
    # In a process of its own: importing the package again here would register its operators twice.
    lines = (
        "import sys",
        "sys.modules['triton'] = None",
        "import flatten_det.attention",
        "from flatten_det.attention import gpu",
        "assert not gpu.available()",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


@pytest.mark.usefixtures("interpreter")
def test_the_interpreter_notices_accesses_beyond_the_arguments(monkeypatch):
    def too_small(*shape: int, like: torch.Tensor, dtype: torch.dtype = torch.float32):
        return torch.zeros(*shape[:-1], shape[-1] - 1, dtype=dtype)

    monkeypatch.setattr(launch, "empty", too_small)
    with pytest.raises(Exception, match="beyond its arguments"):
        gpu.forward(*tensors(), None, None, None, None, 2, (2, 2), 1e-6)
