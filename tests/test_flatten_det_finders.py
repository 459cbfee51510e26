"""How the modules that may be missing are found; tests/compat tests two of them."""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from pathlib import Path

import mmcv
import mmcv.ops
import pytest
import torch
from mmcv import _ext
from mmengine.utils.dl_utils.misc import mmcv_full_available

ROOT = Path(__file__).parents[1]

USE_MMCV = """
import mmcv.ops, torch
boxes = torch.tensor([[0., 0, 4, 4], [0, 0, 4, 5], [9, 9, 12, 12]])
assert mmcv.ops.nms(boxes, torch.tensor([.9, .8, .7]), 0.5)[1].tolist() == [0, 2]
"""


def run_python(code, *options):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *options, "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_python_starts_with_the_finder_and_without_the_packages():
    run_python(
        "import sys; names = [getattr(finder, '__name__', '') for finder in sys.meta_path];"
        "assert names.index('StandInFinder') > names.index('PathFinder'), names;"
        "assert not {'flatten_det', 'mmcv', 'torch'} & set(sys.modules)"
    )


# Each takes a process of several seconds; the fast tests hold one that starts with mmdet, as
# DetInferencer does, and one that starts with flatten_det.
@pytest.mark.parametrize(
    "first",
    [
        "mmdet.apis",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("mmcv.ops", "mmseg.apis")),
    ],
)
def test_any_framework_may_be_imported_before_flatten_det(first):
    run_python(
        f"import {first}, sys; assert 'flatten_det' not in sys.modules\n"
        + USE_MMCV
        + "import flatten_det, mmdet.apis, mmseg.apis"
    )


def test_importing_flatten_det_is_enough_where_pth_files_are_not_read():
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(ROOT)}
    # Nor does the attention need Triton, which some systems have no packages of.
    run_python(
        f"import sys; sys.path += {sorted(paths)}; sys.modules['triton'] = None; import flatten_det\n"
        + USE_MMCV
        + "from flatten_det.attention import gpu; assert not gpu.available()",
        "-S",
    )


def test_the_installed_finder_is_the_one_in_the_repository():
    source = ROOT / "flatten_det_finders.py"
    installed = {path.name: path for path in importlib.metadata.files("flatten-det")}
    assert "flatten_det_finders.pth" in installed
    assert installed["flatten_det_finders.py"].read_text() == source.read_text(), (
        "flatten_det_finders.py has changed since flatten_det was installed: install it again"
    )


def test_a_compiled_extension_is_left_alone(tmp_path, monkeypatch):
    compiled = tmp_path / f"_ext{EXTENSION_SUFFIXES[0]}"
    compiled.touch()
    monkeypatch.setattr(mmcv, "__path__", [*mmcv.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mmcv._ext")

    spec = importlib.util.find_spec("mmcv._ext")

    assert spec.origin == str(compiled)
    assert isinstance(spec.loader, ExtensionFileLoader)


def test_an_installed_panopticapi_is_left_alone(tmp_path, monkeypatch):
    installed = tmp_path / "panopticapi" / "__init__.py"
    installed.parent.mkdir()
    installed.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "panopticapi", raising=False)
    assert importlib.util.find_spec("panopticapi").origin == str(installed)


def test_nothing_else_is_answered():
    finder = next(f for f in sys.meta_path if getattr(f, "__name__", "") == "StandInFinder")
    assert finder.find_spec("mmcv._ext2") is None
    assert finder.find_spec("_ext") is None
    assert importlib.util.find_spec("mmcv._other") is None


def test_mmseg_configs_can_be_inherited_in_a_fresh_process(tmp_path):
    (tmp_path / "config.py").write_text("_base_ = 'mmseg::_base_/default_runtime.py'")
    run_python(
        "from mmengine.config import Config; import sys;"
        f"assert Config.fromfile({str(tmp_path / 'config.py')!r}).default_scope == 'mmseg';"
        "assert not {'flatten_det', 'mmseg'} & set(sys.modules)"
    )


def test_mmsegmentation_is_a_place_not_a_module():
    with pytest.raises(ImportError):
        importlib.import_module("mmsegmentation")


def test_the_module_looks_like_an_extension_to_mmengine():
    assert mmcv_full_available()
    assert Path(_ext.__spec__.origin).parent == ROOT / "flatten_det" / "compat" / "mmcv_ops"
    assert "flatten_det" in mmcv.ops.get_compiler_version()
    assert mmcv.ops.get_compiling_cuda_version() == "not available"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("mmcv.ops", "nms_rotated"),
        ("mmcv.ops", "RoIAlignRotated"),
        ("mmcv.ops", "ball_query"),  # also a module's name
        ("mmcv.ops.ball_query", "ball_query"),
        ("mmcv.ops.nms", "nms_rotated"),
    ],
)
def test_an_op_without_a_compile_free_version_cannot_be_imported(module, name):
    with pytest.raises(ImportError, match=rf"'{name}'.*install a compiled mmcv"):
        exec(f"from {module} import {name}", {})
    assert name not in dir(sys.modules[module])


def test_what_can_be_imported_from_mmcv_ops():
    """Ops that are here, those that mmcv has in Python too, and nothing else of its extension."""
    everything = {}
    exec("from mmcv.ops import *", everything)
    assert {"nms", "line_nms", "DeformRoIPoolPack", "SyncBatchNorm", "CornerPool"} <= {*everything}
    assert not {"nms_rotated", "RoIAlignRotated", "knn"} & {*everything}
    upsampled = everything["upsample2d"](torch.rand(1, 1, 4, 4), torch.rand(3, 3))
    assert upsampled.shape == (1, 1, 8, 8)

    needing = {
        path.stem
        for path in Path(mmcv.ops.__file__).parent.glob("*.py")
        if {*re.findall(r"ext_module\.(\w+)", path.read_text())} - {*_ext.__all__}
    }
    homes = {
        str(getattr(getattr(value, "__self__", value), "__module__", None)).split(".")[-1]
        for value in everything.values()
    }
    # nms also holds ops that are here, and group_points one that needs none.
    in_python = {"bias_act", "filtered_lrelu", "fused_bias_leakyrelu", "upfirdn2d"}
    assert needing & homes == in_python | {"nms", "group_points"}


def test_an_op_without_a_compile_free_version_says_so_when_called():
    boxes = torch.tensor([[5.0, 5, 2, 3, 0.1]])
    with pytest.raises(NotImplementedError, match=r"'nms_rotated'.*install a compiled mmcv"):
        mmcv.ops.nms_rotated(boxes, torch.ones(1), 0.5)
    rotated = dict(type="nms_rotated", iou_threshold=0.5)
    with pytest.raises(NotImplementedError, match=r"'nms_rotated'.*install a compiled mmcv"):
        mmcv.ops.batched_nms(boxes, torch.ones(1), torch.zeros(1, dtype=torch.long), rotated)
    assert not hasattr(_ext, "__wrapped__")
