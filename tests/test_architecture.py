"""The floors of ARCHITECTURE.md: who may import whom, and what a file and a class name must be like."""

import ast
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flatten_det"
# From the bottom up: a module imports from its own floor and from those before it.
FLOORS = (
    "attention",
    "errors",
    "files",
    "results",
    "onnx_runner",
    "distributed",
    "config",
    "cli",
    "compat.mmcv_ops",
    "compat.panoptic_api",
    "backbones",
    "necks",
    "compat",
    "data",
    "train",
    "predict",
    "export",
    "lab",
    "serving",
    "commands",
)
SMALLEST = 40  # lines of a file that fewer than three others import


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def _imports(name: str) -> set[str]:
    """Whatever a module imports anywhere, functions included, by full names."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join(
                [*(parts if node.level else []), *([node.module] if node.module else [])]
            )
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= (names & MODULES.keys()) | ({base} if names - MODULES.keys() else set())
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            module = node.args[0].value if isinstance(node.args[0], ast.Constant) else ""
            found.add(package + module if module.startswith(".") else module)
    return found - {name}


IMPORTS = {name: _imports(name) for name in MODULES}


def _floor(name: str) -> int | None:
    """The number of a module's floor; None for the package itself, which registers what there is."""
    inner = name.removeprefix("flatten_det.")
    fits = [floor for floor in FLOORS if f"{inner}.".startswith(f"{floor}.")]
    return FLOORS.index(max(fits, key=len)) if fits else None


def test_every_module_has_a_floor():
    assert [name for name in MODULES if _floor(name) is None] == ["flatten_det"]


def test_imports_run_downward():
    upward = [
        f"{name} -> {other}"
        for name, others in IMPORTS.items()
        for other in others & MODULES.keys()
        if name != "flatten_det" and _floor(other) > _floor(name)
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle():
    left = {name: {o for o in others if o in MODULES} for name, others in IMPORTS.items()}
    left.pop("flatten_det")
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert sorted(left) == []


def test_attention_imports_nothing_but_torch():
    packages = {
        other.partition(".")[0]
        for name, others in IMPORTS.items()
        if name.startswith("flatten_det.attention")
        for other in others
        if not other.startswith("flatten_det.attention")
    }
    assert packages - set(sys.stdlib_module_names) <= {"torch", "triton"}


def test_no_file_is_too_small_to_be_one():
    readers = Counter(other for others in IMPORTS.values() for other in others)
    small = [
        name
        for name, path in MODULES.items()
        if path.name != "__init__.py"
        and len(path.read_text().splitlines()) < SMALLEST
        and readers[name] < 3
    ]
    assert small == []


def test_public_class_names_are_unique():
    names = Counter(
        node.name
        for tree in TREES.values()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


def _foreign_names(tree: ast.Module) -> set[str]:
    """What a module imports from other packages, the standard library's left out."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(a.asname or a.name).partition(".")[0]: a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {a.asname or a.name: node.module for a in node.names}
    ours = {"flatten_det", *sys.stdlib_module_names}
    return {name for name, module in found.items() if module.partition(".")[0] not in ours}


def _patches(tree: ast.Module) -> list[int]:
    """Lines where an attribute of something imported from another package is set."""
    foreign = _foreign_names(tree)
    lines = []
    for node in ast.walk(tree):
        targets = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign):
            targets = [node.target]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setattr":
            targets = [ast.Attribute(node.args[0])]
        for target in targets:
            root = target
            while isinstance(root, ast.Attribute | ast.Subscript):
                root = root.value
            if root is not target and isinstance(root, ast.Name) and root.id in foreign:
                lines.append(node.lineno)
    return lines


# Within a block, and put back after it.
PATCHES_OF_A_BLOCK = {"flatten_det.files.images"}  # Pillow's own limit of pixels


def test_other_packages_are_patched_in_compat_alone():
    patched = {
        name: lines
        for name, tree in TREES.items()
        if not name.startswith("flatten_det.compat") and (lines := _patches(tree))
    }
    assert patched.keys() == PATCHES_OF_A_BLOCK


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load = None",
        "from mmengine import Config\nsetattr(Config, 'dump', None)",
        "import numpy as np\nnp.core.numeric.x += 1",
    ],
)
def test_patches_are_found(source):
    assert _patches(ast.parse(source))


def test_the_page_names_every_floor_and_only_files_that_are_there():
    page = (ROOT / "ARCHITECTURE.md").read_text()
    for floor in FLOORS:
        top = floor.partition(".")[0]
        assert f"`{top}/`" in page or f"`{top}.py`" in page, floor
    for path in re.findall(r"`((?:flatten_det|tests|tools|configs)/[\w./-]+)`", page):
        assert (ROOT / path).exists(), path
