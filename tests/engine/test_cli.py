"""Options that all tools share."""

import argparse
import ast

import pytest

from flatten_det.benchmark.models.candidates import as_config
from flatten_det.engine.cfg_options import parse_cfg_options
from flatten_det.engine.cli import add_common_options
from flatten_det.engine.config import load_config
from flatten_det.engine.errors import UserError


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_common_options(parser)
    return parser.parse_args(argv)


def test_repeated_cfg_options_add_up():
    args = parse("--cfg-options", "a.b=1", "c=x", "--cfg-options", "c=[1,2]", "d=(3,4)")
    assert args.cfg_options == {"a.b": 1, "c": [1, 2], "d": (3, 4)}
    assert parse().cfg_options is None


BAD = [
    "a",
    "=1",
    "a=(1,2",
    "a=1,2]",
    "a=[1] [2]",
    "a='x",
    "a={b: c}",
    "a=" + "[" * 3000,
]


@pytest.mark.parametrize("pair", BAD)
def test_bad_pairs(pair, capsys):
    with pytest.raises(UserError):
        parse_cfg_options([pair])
    with pytest.raises(SystemExit):
        parse("--cfg-options", pair)
    assert "argument --cfg-options" in capsys.readouterr().err


LITERALS = [
    "['traffic light']", "[{'type': 'TensorboardVisBackend', 'x': (1,)}]", "{'a': {'b.c': [1, (2, 3)]}}",
    "('a, b', \"it's = [\")", "'a=b, c'", r"'C:\\new'", r"r'C:\new'", "'ä ö'", "'1'", "'None'", "'[1, 2]'",
    "''",
    "None", "True", "1e-3", "-1", "-0.5", "1_000", "0x10", "(1)", "(1,)", "()", "[]", "{}", "[[]]", "{1, 2}",
]  # fmt: skip


@pytest.mark.parametrize("value", LITERALS)
def test_python_literals_pass_as_written(value):
    expected = ast.literal_eval(value)
    parsed = parse_cfg_options([f"a.b={value}"])["a.b"]
    assert (parsed, type(parsed)) == (expected, type(expected))
    # tools/benchmark.py takes them behind a config's path.
    path, options = as_config(f"my configs/x.py a.b={value} c={value}")
    assert path == "my configs/x.py"
    assert parse_cfg_options(options) == {"a.b": expected, "c": expected}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/my run/a b.pth", "/my run/a b.pth"),
        ("C:\\new\\a (1", "C:\\new\\a (1"),
        ("x=y", "x=y"),
        ("#fff", "#fff"),
        ("it's", "it's"),
        ("", ""),
        ("true", True),
        ("1,2", [1, 2]),
        ("1,", [1]),
        ("a b, it's,3,-1.5", ["a b", "it's", 3, -1.5]),
        ("(a, [traffic light, None])", ("a", ["traffic light", None])),
        ("['a, b', c]", ["a, b", "c"]),
        ("(1,2),(3,4)", [(1, 2), (3, 4)]),
        ("[{'a': 1}, b]", [{"a": 1}, "b"]),
    ],
)
def test_other_values_are_text_or_lists(value, expected):
    assert parse_cfg_options([f"a={value}"]) == {"a": expected}


def test_literals_replace_lists_and_change_their_members(tmp_path):
    path = tmp_path / "c.py"
    path.write_text("a = dict(b=[dict(type='X', scale=(1, 2)), dict(type='Y')])")
    options = parse_cfg_options(["a.b.0.scale=(3, 4)", "a.b.1={'type': 'Z z'}"])
    assert load_config(path, options).a.b == [dict(type="X", scale=(3, 4)), dict(type="Z z")]
    assert load_config(path, parse_cfg_options(["a.b=[{'type': 'W'}]"])).a.b == [dict(type="W")]
    with pytest.raises(UserError, match="--cfg-options does not fit"):
        load_config(path, parse_cfg_options(["a.b.0=3"]))
