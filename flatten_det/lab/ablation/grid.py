"""The runs of an ablation: each variant of the attention, with each seed and each value of a sweep."""

import copy
import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from ...config import blame_config, load_config, type_name
from ...errors import UserError

SOFTMAX = "softmax"
_LINEAR = re.compile(r"p(\d+(?:\.\d+)?)-k(\d+)")


def vary(cfg: Config, name: str, path: str) -> None:
    """Exchange the attention of a config's backbone for a variant's; UserError if that cannot be.

    ``model.backbone`` gets ``focusing_factor`` and ``kernel_size`` of ``p<factor>-k<size>``, or softmax
    attention in all of its stages of ``softmax``. ``path`` of the config is for messages.
    """
    match = _LINEAR.fullmatch(name)
    if not match and name != SOFTMAX:
        raise UserError(
            f"variant {name} of --config: give p<focusing factor>-k<kernel size>, such as p3-k5, or {SOFTMAX}"
        )
    backbone = cfg.get("model", {}).get("backbone") or {}
    options = _options(cfg, backbone.get("type"))
    if "focusing_factor" not in options:
        raise UserError(
            f"{path}: its backbone {type_name(backbone) or None} has no focused linear attention to vary: "
            "give a config with one of flatten_det's"
        )
    if match:
        power, kernel = float(match[1]), int(match[2])
        backbone.focusing_factor = int(power) if power.is_integer() else power
        backbone.kernel_size = kernel
    else:
        backbone.attn_types = "S" * len(options["attn_types"].default)


def _options(cfg: Config, kind: str | type | None) -> Mapping[str, inspect.Parameter]:
    """The arguments of a backbone's class; none if there is no such class."""
    init_default_scope(cfg.get("default_scope", "mmdet"))
    found = MODELS.get(kind) if isinstance(kind, str) else kind
    return {} if found is None else inspect.signature(found).parameters


# Enough for the claims of the paper, and for an hour on two CPU cores with three seeds.
DEFAULT_VARIANTS = ("p1-k0", "p3-k0", "p1-k5", "p3-k5", "softmax")
DEFAULT_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Run:
    """One training."""

    variant: str
    seed: int  # of weights and order of the data
    folder: Path  # of its checkpoints, logs and run.json
    cfg: Config  # complete

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def fingerprint(self) -> str:
        """Tells configs apart that give other results; the place of the files is no part of it."""
        content = self.cfg.to_dict()
        for key in ("work_dir", "experiment_name", "resume", "load_from", "log_level"):
            content.pop(key, None)
        return hashlib.sha256(repr(_sorted(content)).encode()).hexdigest()[:16]


def known_variants(folder: Path) -> list[str]:
    """Names of the configs in a folder."""
    return sorted(path.stem for path in folder.glob("*.py"))


def make_grid(
    variants: Sequence[str],
    seeds: Sequence[int],
    configs: Path,
    out: Path,
    cfg_options: Mapping[str, Any] | None = None,
    config: Path | None = None,
    sweep: Mapping[str, Sequence[Any]] | None = None,
) -> list[Run]:
    """All runs, seed by seed, so that an ablation that was stopped early has whole comparisons.

    Args:
        variants: names of configs in the folder ``configs``, or paths of others, each once; with none,
            ``config`` itself is trained.
        seeds: from 0, each once.
        configs: see ``variants``.
        out: each run has a folder ``<variant>/seed<seed>`` in it.
        cfg_options: changes of all configs, dotted keys and values.
        config: another training, whose attention is exchanged by :func:`vary`, instead of ``configs``.
        sweep: values of config fields, by dotted keys: all variants are trained with each combination of
            them, which becomes part of their names.

    Raises:
        UserError: for other variants and seeds, and configs that cannot be read.
    """
    if len(set(seeds)) < len(seeds) or any(seed < 0 for seed in seeds):
        raise UserError(f"seeds must be different numbers from 0, got {' '.join(map(str, seeds))}")
    cfgs = []
    for suffix, point in _points(sweep or {}):
        found = _configs(variants, configs, {**(cfg_options or {}), **point}, config)
        cfgs += [(name + suffix, cfg) for name, cfg in found.items()]
    _check_different([name for name, _ in cfgs])
    return [_make_run(cfg, name, seed, out) for seed in seeds for name, cfg in cfgs]


def _points(sweep: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each combination of the values, with what it adds to the name of a variant, and of its folder."""
    last = [key.rpartition(".")[2] for key in sweep]
    labels = [
        key if last.count(short) > 1 else short for key, short in zip(sweep, last, strict=True)
    ]
    for values in product(*sweep.values()):
        suffix = "".join(f",{label}={value}" for label, value in zip(labels, values, strict=True))
        yield re.sub(r"[^\w.,=()+-]+", "_", suffix), dict(zip(sweep, values, strict=True))


def _configs(
    variants: Sequence[str], configs: Path, options: dict[str, Any], config: Path | None
) -> dict[str, Config]:
    """The config of each variant."""
    if config is None:
        return {
            name: load_config(path, options) for name, path in _files(variants, configs).items()
        }
    _check_different(variants)
    base = load_config(config, options)
    if not variants:
        return {config.stem: base}
    cfgs = {name: copy.deepcopy(base) for name in variants}
    for name, cfg in cfgs.items():
        with blame_config(cfg):
            vary(cfg, name, str(config))
    return cfgs


def _files(variants: Sequence[str], configs: Path) -> dict[str, Path]:
    """The config of each variant."""
    paths = []
    for name in variants:
        path = Path(name) if name.endswith(".py") else configs / f"{name}.py"
        if not path.is_file():
            known = ", ".join(known_variants(configs))
            raise UserError(
                f"variant {name} not found: choose among {known}, or give a config file"
            )
        paths.append(path)
    _check_different([path.stem for path in paths])
    return {path.stem: path for path in paths}


def _check_different(variants: Sequence[str]) -> None:
    for name in variants:
        if variants.count(name) > 1:
            raise UserError(f"variant {name} is given twice: name each once")


def _make_run(cfg: Config, variant: str, seed: int, out: Path) -> Run:
    folder = out / variant / f"seed{seed}"
    cfg = copy.deepcopy(cfg)
    cfg.work_dir = str(folder)
    cfg.randomness = dict(cfg.get("randomness") or {}, seed=seed)
    # mmengine keeps loggers and the like by this name for as long as the process lives.
    cfg.experiment_name = f"{variant}-seed{seed}"
    # Losses and metrics are in the runs' scalars.json; the terminal is the progress bar's.
    cfg.log_level = "WARNING"
    return Run(variant, seed, folder, cfg)


def _sorted(content: Any) -> Any:
    if isinstance(content, Mapping):
        return [(key, _sorted(content[key])) for key in sorted(content)]
    return [_sorted(item) for item in content] if isinstance(content, list | tuple) else content
