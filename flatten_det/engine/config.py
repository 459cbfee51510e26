"""From a config file and command-line options to the config that a Runner gets."""

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
        except (KeyError, TypeError) as error:
            raise UserError(
                f"--cfg-options does not fit config file {path}: {error.args[0]}"
            ) from error
    cfg.work_dir = work_dir or cfg.get("work_dir") or str(Path("work_dirs", path.stem))
    return cfg


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
    kind = wrapper.get("type", "OptimWrapper")
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
    if wrapper.get("type") != "AmpOptimWrapper":
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


def dataset_under_test(cfg: Config) -> ConfigDict:
    """The config of the data set that is tested on, inside wrappers like ``ConcatDataset``."""
    dataset = cfg.test_dataloader.dataset
    while "pipeline" not in dataset:
        dataset = dataset["dataset"] if "dataset" in dataset else dataset["datasets"][0]
    return dataset


def build_runner(cfg: Config) -> Runner:
    """Build the Runner that the config names (``runner_type``), mmengine's own by default."""
    return RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
