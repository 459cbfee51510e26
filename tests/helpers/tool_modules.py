"""Commands as modules, to be called within the process of the tests."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from mmengine.utils import ManagerMixin

ROOT = Path(__file__).parents[2]


def forget_named_instances() -> None:
    """Let mmengine make its visualizers, loggers, scopes and message hubs anew.

    It keeps them by name for as long as the process lives.
    """
    kinds = [ManagerMixin]
    for kind in kinds:
        if hasattr(kind, "_instance_dict"):
            kind._instance_dict.clear()
        kinds.extend(kind.__subclasses__())


def load_tool(name: str) -> ModuleType:
    """Import the command of ``tools/<name>.py``, or else the file itself, to be called many times."""
    file = ROOT / "tools" / f"{name}.py"
    command = re.search(r"flatten_det\.commands\.(\w+) import main", file.read_text())
    if command:
        file = ROOT / "flatten_det" / "commands" / f"{command[1]}.py"
    # With the package's own name, by which modules import their neighbours.
    spec = importlib.util.spec_from_file_location(f"flatten_det.commands.{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main = module.main

    def main_as_in_a_fresh_process(argv: list[str]) -> int:
        forget_named_instances()
        return main(argv)

    module.main = main_as_in_a_fresh_process
    return module


def one_line_error(capsys: pytest.CaptureFixture) -> str:
    """The last line on stderr, the only one but for warnings of the frameworks."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert text.endswith(f"{line}\n")
    return line


def tool_fixture(name: str) -> Callable:
    """A fixture that loads a tool once for all tests."""
    return pytest.fixture(scope="session")(lambda: load_tool(name))
