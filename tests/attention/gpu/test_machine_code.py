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
        forward, backward, inference: instructions per element; inference keeps nothing for a backward pass.
        forward_barriers, backward_barriers, inference_barriers: of a tile, in any kernel.
        spilled: bytes of a thread, in any kernel.
    """

    forward: float
    backward: float
    inference: float
    forward_barriers: int
    backward_barriers: int
    inference_barriers: int
    spilled: int


# By channels, heads and compute capability, all of bfloat16. Barriers of a tile are those of all heads that a
# program has.
LIMITS = {
    (64, 1, 80): Limits(84, 161, 83, 3, 5, 2, 24),
    (64, 1, 90): Limits(84, 159, 83, 3, 5, 2, 0),
    (128, 2, 90): Limits(82, 188, 81, 4, 3, 2, 0),
    (96, 3, 90): Limits(87, 207, 86, 4, 6, 2, 0),
    (64, 1, 100): Limits(67, 151, 67, 9, 48, 8, 0),
}
# Kernels, and operators of torch: forward, and backward with one head and with several.
FORWARD_LAUNCHES, BACKWARD_LAUNCHES = 3, {1: 4, 2: 5, 3: 5}
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
    assert directions[2].launches <= FORWARD_LAUNCHES
    assert directions[1].launches <= BACKWARD_LAUNCHES[num_heads]
    assert not any(code.note for code in codes)
    assert max(code.shared for code in codes) <= SHARED_MEMORY[capability]
