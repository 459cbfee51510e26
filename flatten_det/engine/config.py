"""From a config file and command-line options to the config that a Runner gets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..user_files import NotUtf8Error, utf8_text
from .amp import AMP_DTYPES
from .checkpoint import check_checkpoint
from .errors import UserError
from .newest_checkpoint import newest_valid_checkpoint, why_not_resumable


def load_config(
    path: str | Path, cfg_options: dict[str, Any] | None = None, work_dir: str | None = None
) -> Config:
    """Read a config file and apply what the command line overrides.

    Args:
        path: Config file of mmengine, absolute or relative to the current directory.
        cfg_options: Dotted keys and their new values (``--cfg-options``).
        work_dir: Output folder. Default: the config's own ``work_dir``, else
            ``./work_dirs/<config stem>``.

    Raises:
        UserError: The file is missing, is no config, or an option does not fit it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"config file {path} not found: check the path (here: {Path.cwd()})")
    try:
        utf8_text(path.read_bytes())  # mmengine's own error does not tell of a byte order mark.
        cfg = Config.fromfile(path)
    except NotUtf8Error as error:
        raise UserError(f"config file {path} {error}") from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"config file {path} cannot be read: {type(error).__name__}: {reason}"
        ) from error
    if cfg_options:
        try:
            cfg.merge_from_dict(cfg_options)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"--cfg-options does not fit config file {path}: {error.args[0]}"
            ) from error
    if not cfg.get("default_scope") and (scope := _scope_of_model(cfg)):
        cfg.default_scope = scope
    cfg.work_dir = work_dir or cfg.get("work_dir") or str(Path("work_dirs", path.stem))
    return cfg


def _scope_of_model(cfg: Config) -> str | None:
    """Pure-Python configs name classes, which need no scope; other names in them, and we, do."""
    model = cfg.get("model")
    kind = model.get("type") if isinstance(model, Mapping) else None
    package = kind.__module__.partition(".")[0] if isinstance(kind, type) else None
    return package if package in ("mmdet", "mmseg") else None


def type_name(node: Mapping[str, Any]) -> str:
    """The name of the class that a part of a config is built of, without scope or module.

    ``type`` may be ``'Resize'``, ``'mmdet.Resize'`` or the class itself; ``''`` if there is none.
    """
    kind = node.get("type") or ""
    return kind.rpartition(".")[2] if isinstance(kind, str) else getattr(kind, "__name__", "")


def loads_annotations(step: Mapping[str, Any]) -> bool:
    """Whether this step of a pipeline reads the ground truth."""
    return type_name(step).endswith("Annotations")


def is_segmentor(cfg: Config) -> bool:
    """Whether a config is of MMSegmentation."""
    return cfg.get("default_scope") == "mmseg"


def enable_amp(cfg: Config, dtype: str | None = None) -> None:
    """Train in mixed precision, fp16 with a loss scale.

    Args:
        cfg: The config; its ``optim_wrapper`` is changed.
        dtype: ``'fp16'`` or ``'bf16'``. None: what the config says, an ``AmpOptimWrapper`` without a dtype
            fp16 on CUDA, else bf16, or fp16 on a GPU that has no bf16.

    Raises:
        UserError: The config's optimizer wrapper has no mixed-precision counterpart.
    """
    wrapper = cfg.optim_wrapper
    kind = type_name(wrapper) or "OptimWrapper"
    if kind not in ("OptimWrapper", "AmpOptimWrapper", "CPUAmpOptimWrapper"):
        raise UserError(f"--amp works with OptimWrapper, not with this config's {kind}: drop --amp")
    on_cuda = torch.cuda.is_available()
    says_nothing = kind != "AmpOptimWrapper" and not {"dtype", "loss_scale"} & wrapper.keys()
    if dtype is None and says_nothing and on_cuda:
        # Emulated bf16, which torch counts in by default, would save no time.
        dtype = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if dtype is not None:
        wrapper.dtype = AMP_DTYPES[dtype]
    wrapper.type = "AmpOptimWrapper"
    if not on_cuda:
        use_amp_of_cpu(cfg)
    elif dtype == "bf16":
        wrapper.loss_scale = dict(enabled=False)
    else:
        wrapper.setdefault("loss_scale", "dynamic")


def use_amp_of_cpu(cfg: Config) -> None:
    """Have the CPU's counterpart in place of a config's ``AmpOptimWrapper``, which needs a GPU."""
    wrapper = cfg.get("optim_wrapper") or {}
    if type_name(wrapper) != "AmpOptimWrapper":
        return
    wrapper.type = "CPUAmpOptimWrapper"
    wrapper.pop("use_fsdp", None)
    if wrapper.get("dtype") != "float16":
        wrapper.pop("loss_scale", None)


def enable_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate with the total batch size, from the config's base batch size.

    Raises:
        UserError: The config does not say for which batch size its learning rate is meant.
    """
    if not cfg.get("auto_scale_lr", {}).get("base_batch_size"):
        raise UserError(
            "--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config: "
            "add the batch size that its learning rate is meant for"
        )
    cfg.auto_scale_lr.enable = True


def resume_from(cfg: Config, checkpoint: str) -> None:
    """Continue a run: from ``checkpoint``, or for ``"auto"`` from the newest valid one of the work dir.

    Raises:
        UserError: There is no such checkpoint, or it cannot be read.
    """
    if checkpoint == "auto":
        checkpoint = newest_valid_checkpoint(cfg.work_dir)
    else:
        check_checkpoint(checkpoint)
        reason = None if "://" in checkpoint else why_not_resumable(checkpoint)
        if reason is not None:
            raise UserError(
                f"checkpoint {checkpoint} cannot be resumed: {reason}: give another one, or start from "
                "its weights alone with --cfg-options load_from=... instead of --resume"
            )
    cfg.resume = True
    cfg.load_from = checkpoint


def datasets_under_test(cfg: Config) -> list[ConfigDict]:
    """The configs of the data sets that are tested on, inside wrappers like ``ConcatDataset``.

    A wrapper with a pipeline of its own (``MultiImageMixDataset``) is among them, not what is inside.
    """
    return _with_pipeline(cfg.test_dataloader.dataset)


def _with_pipeline(dataset: ConfigDict) -> list[ConfigDict]:
    if dataset.get("pipeline"):
        return [dataset]
    inner = dataset.get("datasets") or ([dataset["dataset"]] if "dataset" in dataset else [])
    return [found for each in inner for found in _with_pipeline(each)] or [dataset]


def build_runner(cfg: Config) -> Runner:
    """Build the Runner that the config names (``runner_type``), mmengine's own by default."""
    return RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
