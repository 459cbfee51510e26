"""The package and its tools start no program, and unpickle or execute nothing but in named places."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("flatten_det/**/*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("*.py")])

MODULES = {"subprocess", "pty", "marshal", "shelve", "dill", "joblib", "cloudpickle", "tarfile"}
CALLS = {
    "eval", "exec", "os.system", "os.popen", "os.startfile", "pickle.load", "pickle.loads",
    "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "tempfile.mktemp", "torch.hub.load",
    "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell",
}  # fmt: skip
PREFIXES = ("os.exec", "os.spawn", "os.posix_spawn")
METHODS = {"extractall"}
# What is allowed in one place only, each for the reason that the place gives.
EXCEPTIONS = {
    ("flatten_det/files/checkpoints.py", "torch.load without weights_only=True"),
    ("flatten_det/compat/mmengine_files.py", "yaml.load without a safe loader"),
    # Slurm's scontrol is asked for a name, and --processes starts this Python: neither by a shell.
    ("flatten_det/distributed.py", "import subprocess"),
    ("flatten_det/train/processes.py", "import subprocess"),
    # What another process of the same run wrote into memory that has no name.
    ("flatten_det/distributed.py", "pickle.loads"),
}


def dangerous(source: str) -> list[str]:
    """The dangerous things in a piece of Python, in words."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [f"import {node.module}"] * ((node.module or "").split(".")[0] in MODULES)
            found += [f"import {name}" for name in names if name in CALLS]
        elif isinstance(node, ast.Call):
            found += _dangerous_call(node)
    return found


def _dangerous_call(node: ast.Call) -> list[str]:
    name, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
    if name in CALLS or name.startswith(PREFIXES):
        return [name]
    if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
        return [f"{node.func.attr} of an archive"]
    if options.get("shell", "False") != "False":
        return ["shell=True"]
    if options.get("allow_pickle", "False") != "False":
        return ["allow_pickle=True"]
    reads = name in ("torch.load", "torch.hub.load_state_dict_from_url")
    if reads and options.get("weights_only") != "True":
        return [f"{name} without weights_only=True"]
    if name == "yaml.load" and "Safe" not in options.get("Loader", ""):
        return ["yaml.load without a safe loader"]
    return []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_dangerous(path):
    name = path.relative_to(ROOT).as_posix()
    found = {(name, what) for what in dangerous(path.read_text(encoding="utf-8"))}
    assert found <= EXCEPTIONS


def test_exceptions_are_needed():
    found = {
        (path.relative_to(ROOT).as_posix(), what)
        for path in FILES
        for what in dangerous(path.read_text(encoding="utf-8"))
    }
    assert found == EXCEPTIONS


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess",
        "from subprocess import run",
        "from os import system",
        "import os; os.system('ls')",
        "import os; os.execvp('ls', [])",
        "run('ls', shell=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.hub.load_state_dict_from_url(url)",
        "numpy.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "archive.extractall(folder)",
        "eval(text)",
        "pickle.loads(content)",
    ],
)
def test_what_is_dangerous_is_seen(source):
    assert dangerous(source)
