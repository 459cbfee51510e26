"""What all tools share: options, and what they print to."""

import argparse
import ast
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.progress import track

from flatten_det.cli import add_common_options, outlive_readers, run_tool
from flatten_det.config import load_config, parse_cfg_options
from flatten_det.errors import UserError
from flatten_det.lab.benchmark.sources import as_config

ROOT = Path(__file__).parents[1]


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


@pytest.fixture
def printed_to():
    """Runs a function in a process that has a descriptor as its standard output, and error if told so."""

    def run(function, stdout: int, stderr: int = 2) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            code = 99
            try:
                os.dup2(stderr, 2)
                os.dup2(stdout, 1)
                for descriptor, name in ((1, "stdout"), (2, "stderr")):
                    stream = open(descriptor, "w", closefd=False)  # noqa: SIM115
                    setattr(sys, name, stream)
                    setattr(sys, f"__{name}__", stream)
                outlive_readers()
                code = run_tool(function)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    return run


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_work_goes_on_when_nobody_reads(printed_to, tmp_path):
    """As with ``| head``: log, progress bar and prints are dropped, and nothing else."""

    def work() -> None:
        logger = logging.Logger("work")
        logger.addHandler(logging.StreamHandler(sys.stdout))
        for number in range(3):
            print("x" * 10_000, flush=True)
            print("x", file=sys.stderr)
            os.write(1, b"as C does it")
            logger.info(number)
        list(track(range(3)))
        (tmp_path / "done").touch()

    pipe = closed_pipe()
    assert printed_to(work, pipe, pipe) == 0
    assert (tmp_path / "done").exists()


def test_exit_codes_stay_when_nobody_reads(printed_to):
    def fail() -> None:
        print("x" * 10_000, flush=True)
        raise UserError("wrong")

    pipe = closed_pipe()
    assert printed_to(fail, pipe, pipe) == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_standard_output_on_a_full_disk_is_an_error_after_the_work(printed_to, tmp_path, capfd):
    def work() -> None:
        print("x" * 10_000, flush=True)
        (tmp_path / "done").touch()

    assert printed_to(work, os.open("/dev/full", os.O_WRONLY)) == 2
    assert (tmp_path / "done").exists()
    assert capfd.readouterr().err == (
        "error: standard output cannot be written: No space left on device: what was printed is not "
        "complete; make room, or send it elsewhere\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("closing", ["2>&1 | head -1", "2>&1 >&- | head -1", ">&- 2>&-"])
def test_a_tool_whose_output_is_closed(closing):
    command = f"set -o pipefail; '{sys.executable}' tools/get_flops.py --help {closing}"
    ended = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0
    assert ended.stderr == ""
    assert len(ended.stdout.splitlines()) == ("head" in closing and ">&- |" not in closing)
