"""Which calls the kernels take, and why not the others."""

import sys

import pytest
import torch
import triton

from flatten_det.attention import gpu
from flatten_det.attention.gpu import launch, tiles
from flatten_det.attention.reference import Inputs

CPU = torch.device("cpu")


def supported(device=CPU, channels=32, num_heads=2, dtype=torch.float32, **kwargs):
    return gpu.supported(device, (torch.float32, dtype, dtype), channels, num_heads, **kwargs)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        (dict(), None),
        (dict(channels=1024, num_heads=16), None),
        (dict(channels=24, num_heads=1, dtype=torch.float16), None),
        (dict(has_fewer_keys=True), "fewer keys than queries"),
        (dict(is_empty=True), "no tokens"),
        (dict(dtype=torch.float64), "float64"),
        (dict(channels=36), "C=36"),
        (dict(channels=2048, num_heads=32), "C=2048"),
        (dict(channels=128, num_heads=1), "head dimension 128"),
        (dict(num_heads=4), "head dimension 8"),
    ],
)
def test_supported(kwargs, reason):
    answer = supported(**kwargs)
    assert answer is None if reason is None else reason in answer


@pytest.mark.skipif(tiles.interpreted(), reason="TRITON_INTERPRET=1")
def test_tensors_of_the_cpu_need_the_interpreter():
    assert "TRITON_INTERPRET=1" in supported()
    assert "meta" in supported(torch.device("meta"))


def test_without_a_triton_that_works(monkeypatch, fresh_support):
    monkeypatch.setattr(triton, "__version__", "2.1.0")
    assert not gpu.available()
    assert supported() == "triton 2.1.0, the kernels need 3.6"
    gpu.unavailable_reason.cache_clear()
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not gpu.available()
    assert supported().startswith("triton cannot be imported (ModuleNotFoundError")


def test_without_a_compiler(monkeypatch, fresh_support, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert "no C compiler" in supported()
    gpu.unavailable_reason.cache_clear()
    (tmp_path / "KEY").mkdir()
    (tmp_path / "KEY" / "cuda_utils.so").touch()
    assert gpu.available()  # What was built before needs no compiler.


@pytest.mark.usefixtures("interpreter")
def test_the_interpreter_notices_accesses_beyond_the_arguments(monkeypatch):
    def too_small(*shape: int, like: torch.Tensor, dtype: torch.dtype = torch.float32):
        return torch.zeros(*shape[:-1], shape[-1] - 1, dtype=dtype)

    monkeypatch.setattr(launch, "empty", too_small)
    with pytest.raises(Exception, match="beyond its arguments"):
        gpu.forward(Inputs(*torch.zeros(3, 1, 4, 32), None, None, None, None, 2, (2, 2)))
