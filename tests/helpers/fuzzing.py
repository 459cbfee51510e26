"""Fuzzing: how many cases there are, what they are made of, and how a tool may end on one."""

import contextlib
import copy
import gc
import io
import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

FEW, MANY = 50, 2000
# A case takes milliseconds: this is a hang, or work that grows with a number in the input.
_DEADLINE = timedelta(seconds=30)

_NIGHTLY = pytest.param(MANY, marks=[pytest.mark.nightly, pytest.mark.timeout(4 * 3600)])
# Decorators of a test with the argument ``num_cases``; the second where few cases take long, too.
numbers_of_cases = pytest.mark.parametrize("num_cases", [FEW, _NIGHTLY])
numbers_of_slow_cases = pytest.mark.parametrize(
    "num_cases", [pytest.param(FEW, marks=pytest.mark.slow), _NIGHTLY]
)


def fuzz(check: Callable[..., None], num_cases: int, *cases: st.SearchStrategy) -> None:
    """Call ``check`` with this many cases: the same ones every time if they are few, else new ones."""
    limits = settings(
        max_examples=num_cases,
        derandomize=num_cases <= FEW,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        deadline=_DEADLINE,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    gc.freeze()  # mmengine collects garbage for each data set: all modules, without this.
    try:
        limits(given(*cases)(check))()
    finally:
        gc.unfreeze()


@dataclass(frozen=True)
class Ending:
    """How a tool ended: exit code, and what it printed."""

    code: int
    out: str
    err: str

    def check(self, *names: str | Path, good: Sequence[int] = (0,)) -> None:
        """Success, or one clear error that names one of these."""
        assert "Traceback" not in self.err
        # What frameworks print on stderr comes before, a listing of ours, indented, after it.
        lines = self.err.removesuffix("\n").split("\n")
        while len(lines) > 1 and lines[-1].startswith("  "):
            lines.pop()
        errors = [line for line in lines if re.match(r"(\S+: )?error: ", line)]
        if self.code in good:
            assert not errors
            return
        assert self.code == 2, self
        (error,) = errors
        assert any(str(name) in error for name in names), error
        assert error.isprintable(), error
        assert lines[-1] == error, self.err


def ending(main: Callable[[list[str]], int], *arguments: object) -> Ending:
    """Run a tool. What it does not explain itself is raised, and so is text that no terminal shows."""
    out, err = (
        io.TextIOWrapper(io.BytesIO(), "utf-8", errors=errors, write_through=True)
        for errors in ("strict", "backslashreplace")  # As those of Python itself.
    )
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stopped:  # By argparse.
            code = stopped.code
    return Ending(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))


def empty_folder(path: Path) -> Path:
    """A folder with nothing in it, whatever was there."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def files_in(folder: Path) -> list[str]:
    """What a tool has left behind."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# What exporters, editors, shells, disks and attackers make of values.
odd_values = st.sampled_from(
    [None, True, False, 0, 1, -1, 7, 2**31, 2**63, 10**400, 0.5, -0.5, 1e-320, 1e308]
    + [math.nan, math.inf, -math.inf, "", " ", "0", "1e400", "nan", "x" * 300, "x/y.png", "."]
    + ["../../secret", "/etc/passwd", "C:\\x", "\0", "\n", "\x1b[31mred", "\ud800", "Ä ö {{ x }}"]
    + [[], [[]], [None], [0], [1, 2], [0, 0, 5, 5], [[0, 0, 9, 0, 9, 9]], [math.nan] * 4]
    + [{}, {"id": 1}, {"type": "X"}, {"size": [64, 64], "counts": "x"}, {"size": 1, "counts": [-1]}]
).map(copy.deepcopy) | st.integers(-300, 300)


@st.composite
def changed(draw: st.DrawFn, document: Any, most: int = 3) -> Any:
    """A copy of lists, dicts and values in which one to ``most`` places are wrong.

    Every level of it is as likely to be hit as any other one.
    """
    holder = [copy.deepcopy(document)]
    for _ in range(draw(st.integers(1, most))):
        _change(draw, holder)
    return holder[0]


def _change(draw: st.DrawFn, holder: list) -> None:
    node, key = holder, 0
    for _ in range(draw(st.integers(0, 6))):
        inner = node[key]
        if not isinstance(inner, list | dict) or not inner:
            break
        node = inner
        key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
    how = draw(st.sampled_from(["replace", "remove", "repeat", "add"]))
    if how == "replace" or node is holder:
        node[key] = draw(odd_values)
    elif how == "remove":
        del node[key]
    elif isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]) if how == "repeat" else draw(odd_values))
    elif how == "repeat":
        node[key] = [node[key], copy.deepcopy(node[key])]
    else:
        node[draw(st.sampled_from(["", "id", "x", "type", "name"]))] = draw(odd_values)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes after a bad disk, a broken transfer or an editor: cut, flipped, inserted, repeated."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        # Headers are at the beginning, directories at the end.
        place = draw(st.integers(0, len(content)) | st.integers(0, min(len(content), 64)))
        place = len(content) - place if draw(st.booleans()) else place
        how = draw(st.sampled_from(["cut", "flip", "insert", "overwrite", "zeros", "repeat"]))
        if how == "cut":
            del content[place:]
        elif how == "flip" and place < len(content):
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "insert":
            content[place:place] = draw(st.binary(max_size=8))
        elif how == "overwrite":
            new = draw(st.binary(min_size=1, max_size=8))
            content[place : place + len(new)] = new
        elif how == "zeros":
            length = len(content[place : place + 512])
            content[place : place + length] = bytes(length)
        elif how == "repeat":
            content[place:place] = content[place : place + 64]
    return bytes(content)


def json_files(document: Any) -> st.SearchStrategy[bytes]:
    """JSON files like one of this content: with wrong entries, damaged, or not of this world."""
    text = json.dumps(document).encode()
    strange = [b"", b"\xef\xbb\xbf" + text, text.decode().encode("utf-16"), b"[" * 100_000]
    strange += [text.replace(b"1", b"1" * 5000, 1), text * 2, b"PK\x03\x04" + text, b"null", b"{}"]
    entries = changed(document).map(lambda content: json.dumps(content).encode())
    return st.one_of(entries, entries, entries, damaged(text), st.sampled_from(strange))
