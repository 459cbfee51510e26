"""Checks of the arguments that describe a network, so that mistakes are named before training starts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .options import NUM_STAGES, check_arch_fields, is_count, is_list


def resolve_arch(arch: str | Mapping[str, Any], zoo: Mapping[str, Mapping[str, Any]]) -> dict:
    """The fields of an architecture by name, or with single fields changed.

    Args:
        arch: a name in ``zoo``, or a dict of fields that replace those of ``zoo[arch['base']]``
            (``base`` defaults to the smallest).
        zoo: name -> fields; all entries have the same fields, smallest architecture first.

    Raises:
        ValueError: for an unknown name or field, a per-stage field that has not one value for each
            stage, or channels that the heads do not divide.
    """
    changes: Mapping[str, Any] = {}
    name = arch
    if isinstance(arch, Mapping):
        changes = {key: value for key, value in arch.items() if key != "base"}
        name = arch.get("base", next(iter(zoo)))
    if not isinstance(name, str) or name not in zoo:
        raise ValueError(f"unknown arch {name!r}; choose one of {', '.join(map(repr, zoo))}")
    fields = dict(zoo[name])
    if unknown := sorted(map(str, set(changes) - set(fields))):
        raise ValueError(
            f"unknown arch fields {unknown}; the fields are {sorted(fields)} and 'base'"
        )
    for key, value in changes.items():
        if isinstance(fields[key], tuple) and (
            not isinstance(value, Sequence) or len(value) != len(fields[key])
        ):
            raise ValueError(
                f"arch field {key!r} needs {_values(len(fields[key]))}, one a stage; got {value!r}"
            )
        fields[key] = tuple(value) if isinstance(fields[key], tuple) else value
    check_arch_fields(fields)
    dims = fields["embed_dims"]
    heads_of_stages = fields["num_heads"]
    dims = dims if isinstance(dims, tuple) else [dims * 2**i for i in range(len(heads_of_stages))]
    for stage, (dim, heads) in enumerate(zip(dims, heads_of_stages, strict=True)):
        if dim % heads:
            raise ValueError(
                f"stage {stage + 1}: {dim} channels cannot be split into {heads} heads"
            )
    return fields


def _values(count: int) -> str:
    return "1 value" if count == 1 else f"{count} values"


def check_attn_types(attn_types: Sequence[str], num_stages: int = NUM_STAGES) -> tuple[str, ...]:
    """``('L', 'L', 'S', 'S')`` and the like: linear or softmax, one a stage.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(attn_types, str):
        attn_types = tuple(attn_types)
    if not is_list(attn_types, num_stages, lambda kind: kind in ("L", "S")):
        raise ValueError(
            f"attn_types needs {_values(num_stages)}, each 'L' (focused linear) or 'S' (softmax); "
            f"got {attn_types!r}"
        )
    return tuple(attn_types)


def check_out_indices(out_indices: int | Sequence[int]) -> tuple[int, ...]:
    """Stages to return, ascending; one, or the last by -1, as the frameworks' backbones take them.

    Raises:
        ValueError: for anything else.
    """
    given = (out_indices,) if isinstance(out_indices, int) else out_indices
    given = tuple(given) if isinstance(given, Iterable) else ()
    if not given or not all(is_count(i, NUM_STAGES - 1, -NUM_STAGES) for i in given):
        raise ValueError(
            f"out_indices needs stages from 0 to {NUM_STAGES - 1}, or from the last one on, -1 to "
            f"{-NUM_STAGES}; got {out_indices!r}"
        )
    indices = tuple(i % NUM_STAGES for i in given)
    if list(indices) != (ascending := sorted(set(indices))):
        raise ValueError(
            "out_indices needs each stage once, from the finest map to the coarsest, as they are "
            f"returned: {tuple(ascending)}; got {out_indices!r}"
        )
    return indices


def check_frozen_stages(frozen_stages: int, num_stages: int = NUM_STAGES) -> int:
    """-1: nothing; 0: the patch embedding; n: it and the first n stages.

    Raises:
        ValueError: for anything else.
    """
    if not is_count(frozen_stages, num_stages, -1):
        raise ValueError(f"frozen_stages must be from -1 to {num_stages}; got {frozen_stages!r}")
    return frozen_stages


def drop_path_rates(drop_path_rate: float, depths: Sequence[int]) -> list[list[float]]:
    """One rate a block, one list a stage, growing linearly from 0 to ``drop_path_rate``."""
    step = drop_path_rate / max(sum(depths) - 1, 1)
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    return [
        [step * (start + i) for i in range(depth)]
        for start, depth in zip(starts, depths, strict=True)
    ]


def map_sizes(img_size: int | Sequence[int]) -> list[tuple[int, int]]:
    """``(H, W)`` of the four maps (strides 4, 8, 16, 32; sizes rounded up) of an image size."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]
