"""Config files and ``--cfg-options``: reading them, asking them, naming the one whose values are wrong."""

import argparse
import ast
import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, RUNNERS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from .distributed import connect, from_first_of_machine
from .errors import UserError, did_you_mean, explain, in_one_line, printable
from .files.user_files import NotUtf8Error, utf8_text

_PACKAGE = Path(__file__).parent
IN_CHECKOUT = not (_PACKAGE / ".mim").is_dir()
# A wheel carries them where OpenMMLab's packages have theirs.
CONFIGS = (_PACKAGE.parent if IN_CHECKOUT else _PACKAGE / ".mim") / "configs"
_SCOPE = "flatten_det::"  # of our configs' names, as mmdet:: is of MMDetection's
_CLOSING = {"(": ")", "[": "]", "{": "}"}


class CfgOptions(argparse.Action):
    """``KEY=VALUE ...`` as one dict of dotted keys, with a usage error for anything else."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            parsed = parse_cfg_options(values)
        except UserError as error:
            parser.error(printable(f"argument {option_string}: {error}"))
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), **parsed})


def parse_cfg_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` pairs as one dict of dotted keys.

    A value is a Python literal, or else text as it is written. ``V1,V2`` and ``[V1,V2]`` are lists and
    ``(V1,V2)`` is a tuple, whose members need no quotes; ``true`` and ``false`` are booleans. A UserError if
    one of them is no pair, or its value is not complete.
    """
    parsed = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not (key and separator):
            raise UserError(f"expected KEY=VALUE, got {pair!r}")
        try:
            parsed[key] = _parse(value)
        except (ValueError, RecursionError) as error:
            reason = "too deeply nested" if isinstance(error, RecursionError) else error
            raise UserError(
                f"{pair}: {reason}: correct it, or put quotes around what is text, as in "
                "KEY=\"'a [b'\""
            ) from error
    return parsed


def split_outside(text: str, separator: str) -> list[str]:
    """The parts of a text between separators outside of brackets and quotes, which must be closed."""
    parts, begin = [], 0
    closing: list[str] = []
    quote, is_escaped = "", False
    can_begin = True  # An apostrophe within a word is no quote.
    for index, char in enumerate(text):
        if quote:
            if char == quote and not is_escaped:
                quote = ""
            is_escaped = char == "\\" and not is_escaped
            continue
        if char in "\"'" and can_begin:
            quote = char
        elif char in _CLOSING:
            closing.append(_CLOSING[char])
        elif char in ")]}":
            if not closing or closing.pop() != char:
                raise ValueError("its brackets do not match")
        elif char == separator and not closing:
            parts.append(text[begin:index])
            begin = index + 1
        can_begin = char in "([{,:=" or (char.isspace() and (can_begin or char == separator))
    if closing or quote:
        raise ValueError(f"its {'quotes' if quote else 'brackets'} are not closed")
    return [*parts, text[begin:]]


def _parse(text: str) -> Any:
    if not text.strip():
        return text
    literals = _literals(text)
    if literals is not None:
        is_list = len(literals) > 1 or text.rstrip().endswith(",")
        return literals if is_list else literals[0]
    first, last = text.strip()[0], text.strip()[-1]
    if "," not in text and first not in "([{\"'":
        return _parse_word(text)
    members = split_outside(text, ",")
    if len(members) > 1:
        return _parse_members(members)
    if _CLOSING.get(first) != last:
        return _parse_word(text)
    if first == "{":
        raise ValueError("it is no Python dict: the texts in it need quotes")
    inner = _parse_members(split_outside(text.strip()[1:-1], ","))
    return tuple(inner) if first == "(" else inner


def _literals(text: str) -> list | None:
    """The Python literals that a text consists of, between commas, if it does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of "\d" in quotes, which means what is written
            # Brackets around it tell (1, 2) from 1, 2.
            found = ast.literal_eval(f"[{text}]")
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def _parse_members(members: list[str]) -> list:
    if not members[-1].strip():
        members.pop()  # after a last comma
    return [_parse(member.strip()) for member in members]


def _parse_word(text: str) -> bool | int | float | str:
    if text.strip().lower() in ("true", "false"):
        return text.strip().lower() == "true"
    for kind in (int, float):  # 007, inf and nan, which are no literals.
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def our_configs() -> dict[str, Path]:
    """Files of this package's configs that can be trained, by name: the file's, without ``.py``."""
    files = sorted(CONFIGS.glob("*/*.py"))
    return {file.stem: file for file in files if file.parent.name != "_base_"}


def find_config(name: str | Path) -> Path:
    """The file of a config: a path, or the name of one of this package's.

    Args:
        name: a path, absolute or relative to the current directory;
            ``mask-rcnn_flatten-pvt-t_fpn_1x_coco``; or ``flatten_det::mask_rcnn/<name>.py``.

    Raises:
        UserError: there is no such file, and no config of this name.
    """
    path, text = Path(name), str(name)
    if path.is_file():
        return path
    if text.startswith(_SCOPE):
        inside = CONFIGS / text.removeprefix(_SCOPE)
        if inside.is_file() and inside.resolve().is_relative_to(CONFIGS.resolve()):
            return inside
    configs = our_configs()
    stem = text.rpartition("/")[2].removesuffix(".py")
    if stem == text and stem in configs:
        return configs[stem]
    meant = did_you_mean(stem, configs, most=3) or "check the path "
    raise UserError(
        f"config file {name} not found, and no model is called so: {meant}(flatten-det models lists them; "
        f"here: {Path.cwd()})"
    )


def load_config(
    path: str | Path, cfg_options: dict[str, Any] | None = None, work_dir: str | None = None
) -> Config:
    """Read a config file of mmengine and apply what the command line overrides.

    Args:
        path: A path, or the name of one of ours, see :func:`find_config`.
        cfg_options: Dotted keys and their new values (``--cfg-options``).
        work_dir: Output folder. Default: the config's own ``work_dir``, else ``./work_dirs/<config stem>``.

    Raises:
        UserError: The file is missing, is no config, or an option does not fit it.
    """
    path = find_config(path)
    try:
        utf8_text(path.read_bytes())  # mmengine's own error does not tell of a byte order mark.
        cfg = Config.fromfile(path)
    except NotUtf8Error as error:
        raise UserError(f"config file {path} {error}") from error
    except Exception as error:
        raise UserError(f"config file {path} cannot be read: {in_one_line(error)}") from error
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


def has_mask_head(cfg: Config) -> bool:
    """Whether the model learns instance masks."""
    keys = ("mask_head", "num_things_classes")
    return any(find_field(cfg.model, key) is not None for key in keys)


def pretrained_weights(cfg: Config) -> list[str]:
    """The files or URLs that the backbone starts from."""
    init_cfg = cfg.model.get("backbone", {}).get("init_cfg") or []
    parts = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg]
    return [part["checkpoint"] for part in parts if part.get("type") == "Pretrained"]


def find_field(node: Any, key: str) -> Any:
    """The first value under this key, at any depth; None if there is none."""
    if isinstance(node, dict):
        if key in node:
            return node[key]
        node = node.values()
    elif not isinstance(node, list | tuple):
        return None
    return next((value for child in node if (value := find_field(child, key)) is not None), None)


def enable_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate with the total batch size; a UserError if the config has no base for it."""
    if not cfg.get("auto_scale_lr", {}).get("base_batch_size"):
        raise UserError(
            "--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config: "
            "add the batch size that its learning rate is meant for"
        )
    cfg.auto_scale_lr.enable = True


def datasets_under_test(cfg: Config) -> list[ConfigDict]:
    """The configs of the data sets that are tested on, inside wrappers like ``ConcatDataset``.

    A wrapper with a pipeline of its own (``MultiImageMixDataset``) is among them, not what is inside.
    """
    return _with_pipeline(cfg.test_dataloader.dataset)


def _with_pipeline(dataset: ConfigDict) -> list[ConfigDict]:
    inner = [] if dataset.get("pipeline") else wrapped_datasets(dataset)
    return [found for each in inner for found in _with_pipeline(each)] or [dataset]


def wrapped_datasets(dataset: Any) -> list[Any]:
    """The data sets directly inside a wrapper like ``ConcatDataset``; empty if it is none.

    The wrapper is a config's, or a built one; or a config's data loader.
    """
    is_config = isinstance(dataset, Mapping)
    inner, one = (
        dataset.get(name) if is_config else getattr(dataset, name, None)
        for name in ("datasets", "dataset")
    )
    return list(inner or ([] if one is None else [one]))


def all_datasets(dataset: Any) -> Iterator[Any]:
    """A data set, or a data loader's config, and all that is inside of it, the outermost first."""
    yield dataset
    for inner in wrapped_datasets(dataset):
        yield from all_datasets(inner)


def build_runner(cfg: Config, default: type[Runner] = Runner) -> Runner:
    """Build the Runner that the config names (``runner_type``), mmengine's own by default.

    The processes of a distributed run are connected first, see :func:`.distributed.connect`.
    """
    connect(cfg)
    runner = RUNNERS.build(cfg) if "runner_type" in cfg else default.from_cfg(cfg)
    runner.build_dataloader = partial(build_dataloader, runner.build_dataloader)
    return runner


def build_dataloader(
    build: Callable[..., DataLoader], loader: DataLoader | Mapping[str, Any], **options: Any
) -> DataLoader:
    """What ``build``, a Runner's ``build_dataloader``, makes of a loader's config, and feeds better.

    Workers stay from epoch to epoch, and a GPU is fed from pinned memory, if the config does not say
    otherwise. One process of each machine reads the annotations for all of them.
    """
    if not (isinstance(loader, Mapping) and isinstance(loader.get("dataset"), Mapping)):
        return build(loader, **options)

    def build_dataset() -> Any:
        dataset = DATASETS.build(loader["dataset"])
        if hasattr(dataset, "full_init"):
            dataset.full_init()
        return dataset

    dataset = from_first_of_machine(build_dataset, _is_same_in_all)
    defaults = {
        "persistent_workers": loader.get("num_workers", 0) > 0,
        "pin_memory": get_device() == "cuda",
    }
    # mmengine copies what it is given, but for functions.
    return build({**defaults, **loader, "dataset": {"type": lambda: dataset}}, **options)


def _is_same_in_all(dataset: Any) -> bool:
    """Whether a data set is known to be the same in all processes: those of mmengine's kind are."""
    leaves = [each for each in all_datasets(dataset) if not wrapped_datasets(each)]
    return all(isinstance(leaf, BaseDataset) for leaf in leaves)


class StageHook(Hook):
    """Knows how far a training or a test has come.

    Attributes:
        checkpoint_is_read: what follows, until it has begun, comes of the checkpoint's content.
        has_begun: everything is built and restored, and, of a test or after a checkpoint, one iteration was
            done: the optimizer and the schedulers take what they were given as it is until then.
    """

    priority = "HIGHEST"

    def __init__(self) -> None:
        self.checkpoint_is_read = False
        self.has_begun = False
        self._iterations = 0

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.checkpoint_is_read = True

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Note that the first iteration begins, or, after a checkpoint, the second."""
        self.has_begun = self._iterations > 0 or not self.checkpoint_is_read
        self._iterations += 1

    def before_test(self, runner: Runner) -> None:
        """Note that the checkpoint fits: :class:`~.files.checkpoints.CheckFitHook` has looked at it."""
        self.checkpoint_is_read = False

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        self.has_begun = True


@contextmanager
def blame_config(cfg: Config) -> Iterator[StageHook]:
    """Turn unexpected errors, until the work goes well, into UserErrors that name config or checkpoint.

    The parts of the frameworks fail on wrong values in a hundred ways, deep down and without a file's name.
    Yields a hook for the runner, if there is one; the work goes well from its ``has_begun`` on.
    """
    stage = StageHook()
    try:
        yield stage
    except Exception as error:
        if stage.has_begun or explain(error) is not None:
            raise
        reason = in_one_line(error)
        if stage.checkpoint_is_read:
            raise UserError(
                f"checkpoint {cfg.load_from} does not fit config file {cfg.filename} or its data, or is "
                f"damaged: {reason}: use what it was written with, or another checkpoint (--debug "
                "shows where it fails)"
            ) from error
        raise UserError(
            f"config file {cfg.filename}: what it says cannot be built: {reason}: correct it, or what "
            "--cfg-options change (--debug shows where it fails)"
        ) from error
