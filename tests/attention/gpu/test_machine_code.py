"""Machine code of the kernels on three generations of cards: no more of it than the limits say.

The figures: ``uv run pytest tests/attention/gpu/test_machine_code.py -m slow -n 0 -s``, for one card with
``-k sm_90``.
"""

from typing import NamedTuple

import pytest
import torch
from machine_code import compile_attention, make_code_table, missing_tool, programs_of_a_large_map

from flatten_det.attention.gpu import tiles
from flatten_det.cli import make_console

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(tiles.interpreted(), reason="TRITON_INTERPRET=1: nothing compiles"),
]


class Limits(NamedTuple):
    """The most that is allowed.

    Attributes:
        forward, backward: instructions per element.
        forward_barriers, backward_barriers: of a tile, in any kernel.
        spilled: bytes of a thread, in any kernel.
    """

    forward: float
    backward: float
    forward_barriers: int
    backward_barriers: int
    spilled: int


# By channels, heads and compute capability, all of bfloat16. Backward it is half of what it was in November
# 2026; barriers of a tile are those of all its heads.
LIMITS = {
    (64, 1, 80): Limits(95, 246, 6, 13, 56),
    (64, 1, 90): Limits(95, 246, 6, 13, 0),
    (128, 2, 90): Limits(95, 338, 6, 25, 0),
    (96, 3, 90): Limits(95, 261, 8, 29, 0),
    (64, 1, 100): Limits(95, 246, 18, 40, 0),
}
# Kernels, and operators of torch.
FORWARD_LAUNCHES, BACKWARD_LAUNCHES = 3, 7
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
    found = Limits(
        *(direction.per_element for direction in directions),
        *(max(x.barriers for x in d.codes if x.per_element is not None) for d in directions),
        max(code.spilled for code in codes),
    )
    limits = LIMITS[dim, num_heads, capability]
    assert all(x <= limit for x, limit in zip(found, limits, strict=True)), (found, limits)
    assert directions[0].launches <= FORWARD_LAUNCHES
    assert directions[1].launches <= BACKWARD_LAUNCHES
    assert not any(code.note for code in codes)
    assert max(code.shared for code in codes) <= SHARED_MEMORY[capability]
