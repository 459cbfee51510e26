"""Machine code of the kernels: what an element costs on a card that need not be there.

A kernel's figures come from Triton's compiler and NVIDIA's disassembler, which its package brings along. Each
loop is recognised by the variable of the ``for`` statement that it belongs to: loops of known length count as
often as they run; one that walks over tiles counts once, and what is outside of it not at all.

A loop that the assembler unrolls further counts too often, never too rarely. Both sides of a branch count.
"""

import ast
import math
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from gpu_cases import make_case
from operators import Operators
from recorded_launches import Launch, compiled_for
from rich.table import Table
from triton.backends.nvidia.compiler import get_ptxas

from flatten_det.attention import gpu
from flatten_det.attention.gpu import plan as plans
from flatten_det.attention.gpu.plan import plan_for
from flatten_det.lab.output import make_table, number

Size = Callable[[Mapping[str, Any]], int]


def _tile(c: Mapping[str, Any]) -> int:
    return c["BLOCK"] * c.get("GROUP", 1) * c["HEAD_DIM"]


def _row(c: Mapping[str, Any]) -> int:
    return c["BLOCK"] * c["HEADS"] * c["HEAD_DIM"]


def _line(c: Mapping[str, Any]) -> int:
    return c["GROUPS"] * c["COLUMNS"] * c["HEAD_DIM"]


# Elements of a tensor (B, N, C) that a program handles: in a pass of each loop over tiles, by the loop's
# variable; under None in the whole program. Kernels that are not here do not grow with the tokens.
ELEMENTS: dict[str, dict[str | None, Size]] = {
    # Either queries or keys.
    "row_norms": {None: lambda c: 2 * _row(c)},
    "reduce_keys": {"tile": _tile},
    "attend": {"step": _tile, "line": _line},
    "convolve": {"line": _line},
    "backward_queries": {"tile": _tile},
    "join_heads": {"query_tile": _tile, "key_tile": _tile},
    "backward_keys": {"step": _tile, "line": _line},
    "backward_depthwise": {"line": _line},
}
# How often the other loops run, by their variable, where the tokens fill the device.
TRIPS: dict[str, Size] = {"g": lambda c: c["GROUP"], "item": lambda c: 1, "start": lambda c: 1}


class Code(NamedTuple):
    """Figures of a kernel.

    Attributes:
        registers, spilled, shared: the first of a thread, the others bytes of a thread and of a program.
        barriers: of a tile, or of the whole program where it has one tile.
        per_element: instructions executed by a thread per element that it handles; None where the kernel does
            not grow with the tokens.
        note: loops that are in no table and were counted once.
    """

    kernel: str
    registers: int
    spilled: int
    shared: int
    barriers: int
    instructions: int
    per_element: float | None
    note: str


class Direction(NamedTuple):
    """The launches of a forward or a backward: kernels, and torch's operators that read or write memory."""

    name: str
    codes: list[Code]
    operators: list[str]

    @property
    def per_element(self) -> float:
        return sum(code.per_element or 0 for code in self.codes)

    @property
    def launches(self) -> int:
        return len(self.codes) + len(self.operators)


class _For(NamedTuple):
    """A ``for`` statement of the sources."""

    file: str
    first: int
    last: int
    variable: str


class _Instruction(NamedTuple):
    """With the label of a branch, whether it is always taken, and source loops, the innermost first."""

    name: str
    target: str | None
    always: bool
    fors: list[_For]


class _Loop(NamedTuple):
    body: frozenset[int]
    source: _For | None


def missing_tool(capability: int) -> str | None:
    """Why machine code cannot be made and read here, or None."""
    tools = (get_ptxas(capability), triton.knobs.nvidia.nvdisasm, triton.knobs.nvidia.cuobjdump)
    for tool in tools:
        if f"sm_{capability}" not in _run(tool.path, "--help").replace("SM", "sm_"):
            name = Path(tool.path).name
            return f"{name} {tool.version} of Triton {triton.__version__} knows no sm_{capability}"
    return None


def compile_attention(
    dim: int, num_heads: int, dtype: torch.dtype, capability: int, folder: Path
) -> list[Direction]:
    """Forward, backward and inference of an attention with all of its parameters, compiled.

    ``capability`` is the compute capability times ten; the folder is for the files of the disassembler.
    """
    case = make_case((64, 64), num_heads, dim // num_heads, 5, dtype, B=1)
    # The tensors are on the CPU, and know of no card.
    plan = plan_for(dim, num_heads, dtype, 64 * 64, 64, capability // 10)
    inputs = case.inputs()
    with compiled_for(capability) as launches, Operators() as operators:
        _, *saved = gpu.forward(inputs, plan)
        first = len(launches), len(operators.names)
        gpu.backward(case.grad, inputs, *saved, (True,) * 7, plan)
        second = len(launches), len(operators.names)
        gpu.forward(inputs, plan, for_backward=False)
    read = {key: read_code(x, folder) for key, x in {x.compiled.hash: x for x in launches}.items()}
    codes = [read[x.compiled.hash] for x in launches]
    return [
        Direction("forward", codes[: first[0]], operators.names[: first[1]]),
        Direction("backward", codes[first[0] : second[0]], operators.names[first[1] : second[1]]),
        Direction("inference", codes[second[0] :], operators.names[second[1] :]),
    ]


def make_code_table(title: str, directions: Sequence[Direction]) -> Table:
    """The figures, and below each direction its sum."""
    columns = dict.fromkeys(
        ("registers", "spilled", "shared", "barriers", "instructions", "per element"), "right"
    )
    rows = []
    for direction in directions:
        for code in direction.codes:
            figures = [str(x) for x in code[1:6]]
            rows.append(
                [direction.name, code.kernel, *figures, number(code.per_element, ".1f"), code.note]
            )
        launches = f"{len(direction.codes)} kernels, {len(direction.operators)} operators"
        rows.append(
            [direction.name, launches, *[""] * 5, f"{direction.per_element:.1f}",
             ", ".join(direction.operators)]
        )  # fmt: skip
    return make_table(
        title, {"direction": "left", "kernel": "left", **columns, "note": "left"}, rows
    )


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def read_code(launch: Launch, folder: Path) -> Code:
    """The figures of a kernel that :func:`compiled_for` compiled; files go into the folder."""
    compiled, constants = launch.compiled, launch.constants
    cubin = folder / f"{launch.name}_{compiled.hash}.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = _run(triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin)
    registers, stack = (int(re.search(rf"{x}:(\d+)", usage)[1]) for x in ("REG", "STACK"))
    code, labels = _parse(_run(triton.knobs.nvidia.nvdisasm.path, "-gi", "-c", cubin))

    instructions, barriers = _count(code, [], None, constants)
    per_element, note = 0.0, ""
    if sizes := ELEMENTS.get(launch.name):
        loops = _find_loops(code, labels)
        counts = {name: _count(code, loops, name, constants) for name in sizes}
        barriers = max(waits for _, waits in counts.values())
        threads = 32 * compiled.metadata.num_warps
        per_element = sum(counts[x][0] * threads / sizes[x](constants) for x in sizes)
        known = {*TRIPS, *sizes}
        # Shorter ones wait for a copy or a product.
        long = [x for x in loops if len(x.body) > 16]
        unknown = {x.source.variable if x.source else "?" for x in long} - known
        note = f"counted once: {', '.join(sorted(unknown))}" if unknown else ""
    usage = (registers, stack, compiled.metadata.shared)
    return Code(launch.name, *usage, barriers, instructions, per_element or None, note)


def _parse(listing: str) -> tuple[list[_Instruction], dict[str, int]]:
    """Instructions in their order, and which of them the labels stand before."""
    code, labels, fors, inlined = [], {}, [], False
    for line in listing.splitlines():
        if places := re.findall(r'"([^"]+)", line (\d+)', line):
            # The function itself, then a line for each of its callers.
            fors = (fors if inlined else []) + _fors_around(places[0][0], int(places[0][1]))
            inlined = len(places) > 1
        elif match := re.match(r"(\.L_x_\d+):", line):
            labels[match[1]] = len(code)
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(@\S+\s+)?([A-Z]\w*)(.*)", line):
            predicate, name, operands = match.groups()
            # A jump that is too far for a branch is a call, to a label instead of a function.
            target = re.search(r"`\((\.L_x_\d+)\)", operands) if name in ("BRA", "CALL") else None
            jump = name == "BRA" and operands.lstrip().startswith("`")
            always = not predicate and (jump or name in ("EXIT", "RET"))
            code.append(_Instruction(name, target[1] if target else None, always, fors))
    return code, labels


def _fors_around(file: str, line: int) -> list[_For]:
    around = [x for x in _fors_of(file) if x.first <= line <= x.last]
    return sorted(around, key=lambda x: x.first, reverse=True)


@cache
def _fors_of(file: str) -> list[_For]:
    nodes = [x for x in ast.walk(ast.parse(Path(file).read_text())) if isinstance(x, ast.For)]
    return [
        _For(file, x.lineno, x.end_lineno, ast.unparse(x.target))
        for x in nodes
        if not ast.unparse(x.iter).startswith("tl.static_range")
    ]


def _find_loops(code: list[_Instruction], labels: dict[str, int]) -> list[_Loop]:
    """Natural loops: what leads to a branch back to their first instruction."""
    follows: list[list[int]] = []
    for i, x in enumerate(code):
        next_ones = [] if x.always or i + 1 == len(code) else [i + 1]
        follows.append(next_ones + ([labels[x.target]] if x.target else []))
    precedes: dict[int, list[int]] = {}
    for i, next_ones in enumerate(follows):
        for j in next_ones:
            precedes.setdefault(j, []).append(i)
    bodies: dict[int, set[int]] = {}
    for branch, start in _back_edges(follows):
        body, waiting = bodies.setdefault(start, {start}), [branch]
        while waiting:
            i = waiting.pop()
            if i not in body:
                body.add(i)
                waiting += precedes.get(i, [])
    loops = [frozenset(body) for body in bodies.values()]
    return [_Loop(body, _source(code, body, loops)) for body in loops]


def _back_edges(follows: list[list[int]]) -> list[tuple[int, int]]:
    edges, seen, path, stack = [], {0}, {0}, [(0, iter(follows[0]))]
    while stack:
        i, rest = stack[-1]
        j = next(rest, None)
        if j is None:
            stack.pop()
            path.remove(i)
        elif j in path:
            edges.append((i, j))
        elif j not in seen:
            seen.add(j)
            path.add(j)
            stack.append((j, iter(follows[j])))
    return edges


def _source(
    code: list[_Instruction], body: frozenset[int], loops: list[frozenset[int]]
) -> _For | None:
    """The innermost ``for`` that its branch and nearly all of its own instructions belong to.

    Some branches bear the line of an unrolled loop inside, or of the function.
    """
    own = body.difference(*(x for x in loops if x < body))
    votes = Counter(x for i in own for x in code[i].fors)
    likely = {x: votes[x] for x in votes if votes[x] >= 0.8 * len(own)}
    branch = [x for x in code[max(own)].fors if x in likely]
    return branch[0] if branch else min(likely, key=likely.__getitem__, default=None)


def _count(
    code: list[_Instruction], loops: list[_Loop], variable: str | None, constants: Mapping[str, Any]
) -> tuple[int, int]:
    """Instructions and barriers that a thread executes in a pass of a loop, or in all."""
    body = frozenset(range(len(code)))
    if variable is not None:
        bodies = [x.body for x in loops if x.source and x.source.variable == variable]
        if not bodies:
            raise ValueError(f"there is no loop with the variable {variable!r}")
        # What compilers make two loops of: the longer one is the usual case.
        body = max(bodies, key=len)
    inner = [
        (x.body, TRIPS[x.source.variable](constants))
        for x in loops
        if x.body < body
        and x.source
        and x.source.variable in TRIPS
        # A wait inside is not another pass.
        and not any(x.body < y.body and x.source == y.source for y in loops)
    ]
    executed = barriers = 0
    for i in body:
        if code[i].name != "NOP":
            times = math.prod(trips for loop, trips in inner if i in loop)
            executed += times
            barriers += times * (code[i].name == "BAR")
    return executed, barriers


def programs_of_a_large_map(monkeypatch: Any) -> None:
    """Splits, and all heads in a program, as on large maps, on a map that is quick to make."""
    monkeypatch.setattr(plans, "PROGRAMS_PER_MULTIPROCESSOR", 16)
