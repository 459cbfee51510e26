"""Fixtures for the whole suite. Data folders are shared: copy one before changing it."""

import ast
import functools
import gc
import os
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import (
    add_panoptic_annotations,
    make_ade20k_folder,
    make_cityscapes_folder,
    make_coco_folder,
)
from forked_ranks import Forker
from golden_values import Golden, load_golden
from mmengine.config import utils as config_utils
from timm.layers import weight_init
from tool_modules import forget_named_instances
from yapf.yapflib import yapf_api

from flatten_det.files import atomic as atomic_files


def pytest_configure() -> None:
    """Give each of pytest-xdist's workers, and what it starts, its share of the cores."""
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        threads = max(1, (os.cpu_count() or 1) // int(workers))
        torch.set_num_threads(threads)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    _save_repeated_work()


def _save_repeated_work() -> None:
    """Leave out what takes most of the time around configs, models without values, and data sets."""
    # A hundred metafiles of MMDetection for every config that inherits one of its configs.
    config_utils.load = functools.cache(config_utils.load)
    draw = weight_init._trunc_normal_
    weight_init._trunc_normal_ = lambda tensor, *args: (
        tensor if tensor.is_meta else draw(tensor, *args)
    )
    # Every training lays its config out five times.
    yapf_api.FormatCode = _only_parsed


def _only_parsed(text: str, **options) -> tuple[str, bool]:
    ast.parse(text)  # What cannot be parsed fails as before.
    return text, False


def pytest_collection_finish() -> None:
    """Every data set of mmengine collects garbage, which then need not look at all that is imported."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Triton's bindings print what is not collected in the end."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def named_instances_are_forgotten() -> Iterator[None]:
    """A later run of the same name must not write into this test's folder, which is gone by then.

    pytest gives the names of removed folders to later tests; and by the scope of registries, a test could
    depend on the one that ran before.
    """
    yield
    forget_named_instances()


@pytest.fixture(autouse=True, scope="session")
def impatient_with_workers() -> Iterator[None]:
    """Workers of a failed training, which normally end with the process, are waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
        yield


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    """Starts commands whose processes need not import the frameworks anew."""
    with Forker() as forker:
        yield forker


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """What must not come into being: a command in a file that is read would make it."""
    path = tmp_path / "marker"
    yield path
    assert not path.exists()


@pytest.fixture
def no_nohup() -> Iterator[None]:
    """SIGHUP acts, even if the suite itself was started by ``nohup``."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """``full_disk(folder)``: what is written whole or not at all there meets the kernel's own ENOSPC."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no device that is always full")

    def fill(folder: Path) -> None:
        def open_there(path, mode):
            file = open(path, mode)  # noqa: SIM115
            if mode != "xb" or not path.is_relative_to(folder):
                return file
            file.close()
            return open("/dev/full", "wb")

        monkeypatch.setattr(atomic_files, "open", open_there, raising=False)
        # The device is one for all processes, and so is its lock.
        lock = atomic_files.lock
        monkeypatch.setattr(
            atomic_files, "lock", lambda file: file.name == "/dev/full" or lock(file)
        )

    return fill


@pytest.fixture
def golden() -> Callable[[str], Golden]:
    """``golden('pvt_tiny_224')``: the record of that name."""
    return load_golden


@pytest.fixture(scope="session")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set in COCO's layout, to be read only."""
    folder = make_coco_folder(tmp_path_factory.mktemp("data") / "coco")
    return add_panoptic_annotations(folder)


@pytest.fixture(scope="session")
def ade20k_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set in ADE20K's layout, to be read only."""
    return make_ade20k_folder(tmp_path_factory.mktemp("data") / "ADEChallengeData2016")


@pytest.fixture(scope="session")
def cityscapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set in Cityscapes' layout, to be read only."""
    return make_cityscapes_folder(tmp_path_factory.mktemp("data") / "cityscapes")


@pytest.fixture(scope="session")
def healthy_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes without a fault, to be read only."""
    from shapes_patient import render_shapes  # Slow to import, and needed by few.

    return render_shapes(tmp_path_factory.mktemp("healthy") / "shapes")


@pytest.fixture
def patient(healthy_shapes: Path, tmp_path: Path) -> Any:
    """A copy of Shapes to plant faults in."""
    from shapes_patient import Patient

    return Patient(healthy_shapes, tmp_path / "shapes")


@pytest.fixture
def lone_process(tmp_path) -> Iterator[None]:
    """A process group of one."""
    torch.distributed.init_process_group(
        "gloo",
        f"file://{tmp_path / 'rendezvous'}",
        rank=0,
        world_size=1,
        timeout=timedelta(seconds=9),
    )
    yield
    torch.distributed.destroy_process_group()
