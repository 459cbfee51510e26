"""The kernels compile for a GPU, on a machine without one, and only once for all image sizes."""

import pytest
import torch
from gpu_cases import make_case, run_kernels
from recorded_launches import compiled_for

from flatten_det.attention.gpu import plan, tiles

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(tiles.interpreted(), reason="TRITON_INTERPRET=1: nothing compiles"),
]

H200_SHARED_MEMORY = 227 * 1024


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch, tmp_path):
    """Nothing is left on the disk, and nothing is found there."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize(
    ("dim", "num_heads", "dtype", "valid"),
    [
        (16, 1, torch.bfloat16, None),
        (32, 2, torch.float16, None),
        (64, 1, torch.float32, None),
        (320, 5, torch.bfloat16, None),
        (192, 8, torch.float32, None),
        (128, 2, torch.bfloat16, [(16, 9), (7, 17)]),
    ],
)
def test_kernels_compile(dim, num_heads, dtype, valid):
    with compiled_for(90) as launches:
        run_kernels(make_case((16, 17), num_heads, dim // num_heads, 5, dtype), valid=valid)
    names = {x.name for x in launches}
    assert {"reduce_keys", "attend", "backward_queries", "backward_keys"} <= names
    for launched in launches:
        assert launched.compiled.asm["cubin"], launched.name
        assert launched.compiled.metadata.shared <= H200_SHARED_MEMORY, launched.name


@pytest.mark.parametrize(
    ("num_heads", "batch", "padded"),
    [(1, 1, False), (4, 2, False), (1, 3, True), (4, 2, True)],
)
def test_other_image_sizes_compile_nothing(monkeypatch, num_heads, batch, padded):
    monkeypatch.setattr(plan, "PROGRAMS_PER_MULTIPROCESSOR", 4 * 132)
    seen = {}
    for hw_shape in [(30, 40), (16, 16), (17, 31), (25, 41), (1, 256)]:
        case = make_case(hw_shape, num_heads, 16, 3, torch.bfloat16, B=batch)
        with compiled_for(90) as launches:
            run_kernels(case, valid=[(1, 9)] * batch if padded else None)
        seen[hw_shape] = {(x.name, x.compiled.hash) for x in launches}
    assert len({name for name, _ in seen[30, 40]}) == len(seen[30, 40])
    assert all(with_size == seen[30, 40] for with_size in seen.values())
