"""Every change that this package makes to others: why, what upstream says, which test tells when it can go.

``import flatten_det`` makes those that must hold before anything is read or built;
:func:`atomic_local_files` and :func:`loggers_print_by` hold for the time of a run. Elsewhere there is one:
:mod:`.mmcv_ops.missing` hides ops in ``mmcv.ops``, which may be loaded before this package. What the
frameworks' registries build is no patch: :mod:`flatten_det.train.run` registers classes for the time of a
training.
"""

import contextlib
import logging
import os
import shutil
import sysconfig
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import cv2
import mmengine.runner.checkpoint as mmengine_checkpoint
import mmengine.utils.dl_utils as dl_utils
import numpy as np
from mmengine.config import Config
from mmengine.fileio import LocalBackend, get_file_backend, register_backend, register_handler
from mmengine.fileio.io import backend_instances
from mmengine.infer.infer import BaseInferencer
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import VISBACKENDS
from mmengine.runner import CheckpointLoader
from mmengine.runner import runner as mmengine_runner
from mmengine.visualization import LocalVisBackend
from torch import nn

from ..backbones.base import DenseBackbone
from ..config import find_config, our_configs
from ..errors import CheckpointError
from ..files.atomic import write_atomically
from ..files.checkpoints import is_trusting
from ..files.images import IMAGE_SUFFIXES
from .mmengine_files import DataPickleHandler, DataYamlHandler, load_file, load_from_local, load_url
from .model_calls import call


def read_mmengine_checkpoints_as_data() -> None:
    """Let all loaders of mmengine refuse files that hold code.

    Left to themselves,

    - the maintained distribution reads a local file that fails to load as data once more without any
      restriction, after a mere warning (``_safe_torch_load``, a way around open-mmlab/mmengine#1655);
    - both distributions unpickle what they download, and unpack it among the other downloads;
    - both execute texts in checkpoints: see :func:`.mmengine_files.without_instructions`, and inferencers
      that get no config (``BaseInferencer._init_model``).

    Each of these happens in one function, through which ``load_from``, resuming, ``init_cfg``,
    ``init_detector`` and all others go.

    Can go when mmengine passes tests/files/test_malicious_checkpoints.py by itself.
    """
    if hasattr(mmengine_checkpoint, "_safe_torch_load"):
        mmengine_checkpoint._safe_torch_load = load_file
    else:
        CheckpointLoader.register_scheme(prefixes="", loader=load_from_local, force=True)
    for module in (mmengine_checkpoint, dl_utils, dl_utils.hub):
        module.load_url = load_url
    BaseInferencer._init_model = _with_config_given(BaseInferencer._init_model)


def _with_config_given(init_model: Any) -> Any:
    @wraps(init_model)
    def checked(self, cfg: Any, weights: str | None, device: str = "cpu") -> nn.Module:
        if not cfg and not is_trusting():
            raise CheckpointError(
                f"checkpoint {weights} comes without a config: give the config file, too; the one in the "
                "checkpoint is not used, because configs are code (for a checkpoint of your own: within "
                "flatten_det.files.checkpoints.trusted_checkpoints())"
            )
        return init_model(self, cfg, weights, device)

    return checked


def read_mmengine_files_as_data() -> None:
    """Let ``mmengine.load``, and with it data sets and metrics, refuse pickle and YAML files that hold code.

    mmengine's ``PickleHandler`` and ``YamlHandler`` load them with ``pickle.load`` and PyYAML's unsafe
    ``Loader``; its ``register_handler`` is the way to have others.

    Can go when mmengine passes tests/compat/test_data_files.py by itself.
    """
    register_handler(["pkl", "pickle"])(DataPickleHandler)
    register_handler(["yaml", "yml"])(DataYamlHandler)


def tell_backbones_of_padding() -> None:
    """Let models with a backbone of this package tell it, and segmentors' heads, what they are called with.

    The frameworks give backbones the images alone, so that the padding of a batch changes what is found in
    an image (open-mmlab/mmdetection#8157), and Mask2Former's head the size of the whole image in a sliding
    window (open-mmlab/mmsegmentation#3666, and #3752 for its repair). ``BaseModel.__call__`` is the one
    place that all calls go through: of training loops, also distributed, of evaluation, of inferencers and
    of one's own code. Other models are called as ever.

    Can go when tests/test_padding_in_frameworks.py passes without it.
    """
    BaseModel.__call__ = call


def ask_no_compiler_that_is_absent() -> None:
    """Let trainings on machines without a compiler not begin with "gcc: not found".

    mmengine's Runner asks the compiler that Python was built with for its version, by a shell, whose
    complaint goes to the terminal.

    Can go when tests/compat/test_patches.py passes without it.
    """
    collect = mmengine_runner.collect_env

    def collect_quietly() -> dict[str, Any]:
        compiler = (sysconfig.get_config_var("CC") or "").partition(" ")[0]
        if not compiler or shutil.which(os.path.basename(compiler)):
            return collect()
        stderr = os.dup(2)
        try:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            return collect()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)

    mmengine_runner.collect_env = collect_quietly


def find_our_configs_by_name() -> None:
    """Let configs inherit ``flatten_det::<folder>/<name>.py``, and inferencers take our configs' names.

    mmengine knows the packages of OpenMMLab alone, in a table, and takes the configs of others for a scope
    of their own; its inferencers want weights with each name. Names of other packages are found as ever.

    Can go when mmengine.config.utils.MODULE2PACKAGE has a way in for others.
    """
    get_path, load_by_name = Config._get_cfg_path, BaseInferencer._load_model_from_metafile

    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith("flatten_det::"):
            return str(find_config(cfg_path)), None
        return get_path(cfg_path, filename)

    def load_model(self: BaseInferencer, model: str) -> tuple[Config, str | None]:
        ours = our_configs().get(model)
        return load_by_name(self, model) if ours is None else (Config.fromfile(ours), None)

    Config._get_cfg_path = staticmethod(get_cfg_path)
    BaseInferencer._load_model_from_metafile = load_model


def decay_layers_of_our_backbones(constructor: type[DefaultOptimWrapperConstructor]) -> None:
    """Let MMDetection's and MMSegmentation's constructors do for our backbones what they do for theirs.

    They know ConvNeXt, BEiT and MAE by the names of the classes, are not made for others
    (open-mmlab/mmsegmentation#1623), and raise a NotImplementedError for these. ``__call__`` of their base
    class is patched, for these two and models with a backbone of this package alone, as importing the two
    themselves takes seconds.

    Can go when they ask a backbone for its layers: see tests/train/test_optimizer.py. ``constructor`` builds
    the optimizer in their place, of the same ``optim_wrapper_cfg`` and ``paramwise_cfg``.
    """
    theirs = ("LearningRateDecayOptimizerConstructor", "LayerDecayOptimizerConstructor")
    build = DefaultOptimWrapperConstructor.__call__

    @wraps(build)
    def build_or_delegate(self: DefaultOptimWrapperConstructor, model: nn.Module) -> OptimWrapper:
        is_theirs = type(self).__name__ in theirs
        if not (is_theirs and any(isinstance(m, DenseBackbone) for m in model.modules())):
            return build(self, model)
        cfg = {**self.optim_wrapper_cfg, "optimizer": self.optimizer_cfg}
        return constructor(cfg, self.paramwise_cfg)(model)

    DefaultOptimWrapperConstructor.__call__ = build_or_delegate


class AtomicLocalBackend(LocalBackend):
    """mmengine's access to local files, with :func:`~flatten_det.files.atomic.write_atomically`."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(filepath, obj, durable=Path(filepath).suffix not in IMAGE_SUFFIXES)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        self.put(obj.encode(encoding), filepath)


class DistinctVisBackend(LocalVisBackend):
    """mmengine's folder of drawn pictures, in which none takes the place of another one.

    The frameworks' hooks name pictures of equally named images, or of two validations, alike.
    """

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs) -> None:
        """Write an RGB picture whole or not at all."""
        folder = Path(self.experiment._img_save_dir)
        path, number = folder / f"{name}_{step}.png", 1
        while path.exists():
            number += 1
            path = folder / f"{name}_{step}-{number}.png"
        _, content = cv2.imencode(".png", image[..., ::-1])
        write_atomically(path, content.tobytes(), durable=False)


def _dump_config(cfg: Config, file: str | Path | None = None) -> str | None:
    """mmengine's ``Config.dump``, which neither leaves half a file nor replaces the config itself."""
    if file is None:
        return _DUMP(cfg)
    path = Path(file)
    both_exist = cfg.filename and path.exists() and os.path.exists(cfg.filename)
    if both_exist and path.samefile(cfg.filename):
        path = path.with_stem(f"{path.stem}_dumped")
    if path.suffix == ".py":
        write_atomically(path, cfg.pretty_text.encode())
        return None
    return _DUMP(cfg, path)


_DUMP = Config.dump


@contextlib.contextmanager
def atomic_local_files() -> Iterator[None]:
    """Let mmengine write local files, checkpoints above all, whole or not at all, within the block.

    Its ``LocalBackend.put``, ``LocalVisBackend.add_image`` and ``Config.dump`` write into the file that has
    the name, so that a killed process or a full disk leaves half of it, and replace files of equal names.
    Its other backends (s3, petrel and the like) are left alone: their services have no rename.

    Can go when mmengine renames what it has written: see tests/files/test_atomic_files.py and
    tests/train/test_kill_9.py.
    """
    before = type(get_file_backend(".")), VISBACKENDS.get("LocalVisBackend"), Config.dump
    _have_mmengine_write(AtomicLocalBackend, DistinctVisBackend, _dump_config)
    try:
        yield
    finally:
        _have_mmengine_write(*before)


@contextlib.contextmanager
def loggers_print_by(handler: logging.Handler) -> Iterator[None]:
    """Give loggers that mmengine makes within the block this handler instead of the one for standard output.

    Its Runner makes its logger and writes the whole config and environment to it before anyone can reach
    it, and has one level for console and file. What goes to files stays as it is.

    Can go when the level of MMLogger's console can be set apart from that of its file.
    """
    make = MMLogger.__init__

    def make_with_handler(self: MMLogger, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        # A FileHandler is a StreamHandler, too.
        self.handlers = [h for h in self.handlers if type(h) is not logging.StreamHandler] + [
            handler
        ]

    MMLogger.__init__ = make_with_handler
    try:
        yield
    finally:
        MMLogger.__init__ = make


def _have_mmengine_write(backend: type, vis_backend: type, dump_config: Any) -> None:
    register_backend("local", backend, force=True, prefixes="")
    # mmengine's functions keep the backends that they made before.
    for key in [key for key, made in backend_instances.items() if isinstance(made, LocalBackend)]:
        del backend_instances[key]
    VISBACKENDS.register_module("LocalVisBackend", force=True, module=vis_backend)
    Config.dump = dump_config
