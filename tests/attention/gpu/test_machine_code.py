"""Machine code of the kernels on three generations of cards: no more of it than the limits say.

The figures: ``uv run pytest tests/attention/gpu/test_machine_code.py -m slow -n 0 -s``, for one card with
``-k sm_90``.
"""

from typing import NamedTuple

import pytest
import torch
from machine_code import compile_attention, make_code_table, missing_tool, programs_of_a_large_map

from flatten_det.attention.gpu import launch
from flatten_det.benchmark.tables import make_console

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(launch.interpreted(), reason="TRITON_INTERPRET=1: nothing compiles"),
]


class Limits(NamedTuple):
    """The most that is allowed.

    Attributes:
        forward, backward: instructions per element.
        barriers: of a tile, in any kernel.
        spilled: bytes of a thread, in any kernel.
    """

    forward: float
    backward: float
    barriers: int
    spilled: int


# By channels, heads and compute capability, all of bfloat16.
LIMITS = {
    (64, 1, 80): Limits(173, 593, 89, 728),
    (64, 1, 90): Limits(166, 493, 89, 0),
    (64, 1, 100): Limits(165, 517, 89, 64),
    (128, 2, 80): Limits(218, 863, 197, 1232),
    (128, 2, 90): Limits(174, 677, 197, 56),
    (128, 2, 100): Limits(183, 639, 197, 0),
    (96, 3, 80): Limits(222, 587, 293, 288),
    (96, 3, 90): Limits(223, 522, 293, 224),
    (96, 3, 100): Limits(211, 528, 293, 200),
}
# Kernels, and operators of torch.
FORWARD_LAUNCHES, BACKWARD_LAUNCHES = 4, 13
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@pytest.mark.parametrize(
    ("dim", "num_heads", "capability"), LIMITS, ids=[f"{C}-{h}-sm_{x}" for C, h, x in LIMITS]
)
def test_limits(monkeypatch, tmp_path, dim, num_heads, capability):
    if reason := missing_tool(capability):
        pytest.skip(reason)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    programs_of_a_large_map(monkeypatch)
    directions = compile_attention(dim, num_heads, torch.bfloat16, capability, tmp_path)
    title = f"C={dim}, h={num_heads}, bfloat16, sm_{capability}"
    make_console().print(make_code_table(title, directions))
    codes = [code for direction in directions for code in direction.codes]
    forward, backward = (direction.per_element for direction in directions)
    walking = [code for code in codes if code.per_element is not None]
    found = Limits(
        forward,
        backward,
        max(code.barriers for code in walking),
        max(code.spilled for code in codes),
    )
    limits = LIMITS[dim, num_heads, capability]
    assert all(x <= limit for x, limit in zip(found, limits, strict=True)), (found, limits)
    assert directions[0].launches <= FORWARD_LAUNCHES
    assert directions[1].launches <= BACKWARD_LAUNCHES
    assert not any(code.note for code in codes)
    assert max(code.shared for code in codes) <= SHARED_MEMORY[capability]
