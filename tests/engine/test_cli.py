"""Options that all tools share."""

import argparse

import pytest

from flatten_det.engine.cli import add_common_options, parse_cfg_options
from flatten_det.engine.errors import UserError


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_common_options(parser)
    return parser.parse_args(argv)


def test_repeated_cfg_options_add_up():
    args = parse("--cfg-options", "a.b=1", "c=x", "--cfg-options", "c=[1,2]", "d=(3,4)")
    assert args.cfg_options == {"a.b": 1, "c": [1, 2], "d": (3, 4)}
    assert parse().cfg_options is None


@pytest.mark.parametrize("pair", ["a", "a=(1,2"])
def test_bad_pairs(pair, capsys):
    with pytest.raises(UserError):
        parse_cfg_options([pair])
    with pytest.raises(SystemExit):
        parse("--cfg-options", pair)
    assert "argument --cfg-options" in capsys.readouterr().err


def test_values():
    assert parse_cfg_options(["a=True", "b.c=0.5", "d=None", "e=x=y"]) == {
        "a": True,
        "b.c": 0.5,
        "d": None,
        "e": "x=y",
    }
