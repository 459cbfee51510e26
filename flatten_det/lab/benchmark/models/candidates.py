"""What is compared: models by name, as they are, compiled, or replayed from CUDA graphs."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ....config import split_outside
from ....errors import UserError

_COMPILED, _GRAPHS = VARIANTS = (" compiled", " graphs")


@dataclass(frozen=True)
class Candidate:
    """One curve.

    Attributes:
        model: see :func:`~.sources.find_source`.
        compiled: by ``torch.compile``, for each size anew, so that it is at its best.
        fused: at inference, fold what :meth:`~...DenseBackbone.fuse_for_inference` folds.
        graphs: replayed from CUDA graphs; of a whole model, its backbone.
    """

    model: str
    compiled: bool = False
    fused: bool = True
    graphs: bool = False

    @property
    def name(self) -> str:
        """In tables and files; a config goes by its file name."""
        variant = _COMPILED * self.compiled + _GRAPHS * self.graphs
        return f"{short_name(self.model)}{variant}"


def short_name(model: str) -> str:
    """Of a model: a config's file name without folders and ending, and the ends of its options' keys."""
    config = as_config(model)
    if config is None:
        return model
    path, options = config
    return " ".join([Path(path).stem, *(_short_option(option) for option in options)])


def as_config(model: str) -> tuple[str, list[str]] | None:
    """Path and ``KEY=VALUE`` options of a model that is a config; None for others.

    Raises:
        UserError: if brackets or quotes of the options are not closed.
    """
    parts = re.fullmatch(r"[\"']?(.+?\.py)[\"']?(?:\s+(.*))?", model.strip(), re.DOTALL)
    if parts is None:
        return None
    path, options = parts.groups(default="")
    try:
        pairs = split_outside(options, " ")
    except ValueError as error:
        raise UserError(f"--models {model}: {error}") from error
    # Quotes around a whole pair are those of a shell.
    return path, [pair[1:-1] if pair[0] in "\"'" else pair for pair in pairs if pair]


def _short_option(option: str) -> str:
    key, separator, value = option.partition("=")
    return f"{key.rpartition('.')[2]}{separator}{value}"


def is_flatten(name: str) -> bool:
    """Whether a candidate of this name has focused linear attention; the zoo's names say so."""
    return "flatten" in name


def variant_of(name: str) -> str:
    """What tells a candidate from the others of its model: nothing if it is the model as it is."""
    return next((variant for variant in VARIANTS if name.endswith(variant)), "")


def make_candidates(
    models: Iterable[str], compile: bool, fuse: bool, graphs: bool = False
) -> list[Candidate]:
    """Each model once, in the order given; once more for each of ``compile`` and ``graphs``."""
    variants = [{}, *[{"compiled": True}] * compile, *[{"graphs": True}] * graphs]
    return [
        Candidate(model, fused=fuse, **variant)
        for model in dict.fromkeys(models)
        for variant in variants
    ]
