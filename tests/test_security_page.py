"""SECURITY.md names what exists, and its example runs."""

import re
from argparse import Namespace
from pathlib import Path

import pytest
from mmengine.config import Config
from tool_modules import load_tool

from flatten_det.commands import run_command
from flatten_det.files.checkpoints import is_trusting, trusted_checkpoints
from flatten_det.files.images import pixel_limit

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_the_readme_leads_to_it():
    assert "(SECURITY.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("tool", ["train", "test", "infer", "convert_checkpoint"])
def test_tools_have_the_option(tool, capsys):
    assert f"{tool}.py" in PAGE
    with pytest.raises(SystemExit):
        load_tool(tool).main(["--help"])
    assert "--trust-checkpoint" in capsys.readouterr().out


def test_the_option_means_trust():
    seen = []
    for trust in (False, True):
        args = Namespace(trust_checkpoint=trust, debug=False)
        assert run_command(lambda _: seen.append(is_trusting()), args) == 0
    assert seen == [False, True]


def test_the_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    seen = {"seen": lambda: seen.update(trusting=is_trusting())}
    exec(example.replace("...", "seen()"), seen)
    assert seen["trusting"]
    assert seen["trusted_checkpoints"] is trusted_checkpoints


def test_the_limit_is_the_one_in_force():
    (megapixels,) = re.findall(r"beyond (\d+) megapixels", PAGE)
    assert round(pixel_limit(Config()) / 1e6) == int(megapixels)
