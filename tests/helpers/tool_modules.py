"""The tools as modules, to be called within the process of the tests."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from mmengine.utils import ManagerMixin

TOOLS = Path(__file__).parents[2] / "tools"


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
    """Import ``tools/<name>.py``, to be called any number of times."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        spec.loader.exec_module(module)
    main = module.main

    def main_as_in_a_fresh_process(argv: list[str]) -> int:
        forget_named_instances()
        return main(argv)

    module.main = main_as_in_a_fresh_process
    return module


def tool_fixture(name: str) -> Callable:
    """A fixture that loads a tool once for all tests."""
    return pytest.fixture(scope="session")(lambda: load_tool(name))
