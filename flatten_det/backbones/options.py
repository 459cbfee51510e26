"""What the options of the backbones may be, so that mistakes are named early, and names of the usual ones."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from mmengine.registry import MODELS
from torch import nn

NUM_STAGES = 4
# Far beyond any network, and far below what ends in hours of building or in a full memory.
MAX_CHANNELS, MAX_DEPTH, MAX_WINDOW, MAX_RATIO = 16_384, 1000, 1024, 64
MAX_KERNEL, MAX_IMG_SIZE = 99, 8192

# What is computed again in the backward pass, see :mod:`.blocks`.
BLOCK, MLP, ELEMENTWISE = POLICIES = ("block", "mlp", "elementwise")


def is_count(value: Any, most: int, least: int = 1) -> bool:
    """Whether this is a whole number from ``least`` to ``most``."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any, least: float, most: float) -> bool:
    """Whether this is a number, not NaN, from ``least`` to ``most``."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def is_list(value: Any, length: int, is_item: Callable[[Any], bool]) -> bool:
    """Whether this is a list or tuple of that many items, all of them good."""
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return is_sequence and len(value) == length and all(map(is_item, value))


_is_side = partial(is_count, most=MAX_IMG_SIZE)
_is_window = partial(is_count, most=MAX_WINDOW)
_is_reduction = partial(is_count, most=MAX_RATIO)
_is_ratio = partial(is_number, least=0.1, most=MAX_RATIO)
_CHANNELS = (partial(is_count, most=MAX_CHANNELS), f"from 1 to {MAX_CHANNELS}")
_FLAG = (lambda v: isinstance(v, bool), "be True or False")
_OPTIONS = {
    "in_channels": (_CHANNELS[0], f"be {_CHANNELS[1]}"),
    "la_sr_ratios": (
        lambda v: is_list(v, NUM_STAGES, _is_reduction),
        f"be one whole number a stage, from 1 to {MAX_RATIO}",
    ),
    "window_size": (_is_window, f"be from 1 to {MAX_WINDOW} tokens"),
    "la_window_size": (
        lambda v: v is None or _is_window(v),
        f"be None or from 1 to {MAX_WINDOW} tokens",
    ),
    "split_size": (
        lambda v: is_list(v, NUM_STAGES, _is_window),
        f"have {NUM_STAGES} positive values, one a stage",
    ),
    "mlp_ratio": (_is_ratio, f"be a number from 0.1 to {MAX_RATIO}"),
    "focusing_factor": (
        lambda v: is_number(v, math.ulp(0.0), math.inf) and v != math.inf,
        "be a finite number above 0",
    ),
    "kernel_size": (
        lambda v: is_count(v, MAX_KERNEL, 0) and (v == 0 or v % 2 == 1),
        f"be odd, from 1 to {MAX_KERNEL}, or 0 for no convolution",
    ),
    "qkv_bias": _FLAG,
    "drop_path_rate": (lambda v: is_number(v, 0, 1) and v < 1, "lie in [0, 1)"),
    "pretrain_img_size": (
        lambda v: _is_side(v) or is_list(v, 2, _is_side),
        f"be one or two sizes from 1 to {MAX_IMG_SIZE} px",
    ),
    "norm_eval": _FLAG,
    "mask_padding": _FLAG,
    "compile": (lambda v: isinstance(v, bool | Mapping), "be True, False or a dict"),
}
_ARCH_FIELDS = {
    "embed_dims": _CHANNELS,
    "num_heads": _CHANNELS,
    "depths": (partial(is_count, most=MAX_DEPTH), f"from 1 to {MAX_DEPTH}"),
    "mlp_ratios": (_is_ratio, f"from 0.1 to {MAX_RATIO}"),
    "sr_ratios": (_is_reduction, f"from 1 to {MAX_RATIO}"),
}


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that is not what it should be; unknown ones are passed over."""
    for name, value in options.items():
        if name in _OPTIONS:
            is_good, words = _OPTIONS[name]
            if not is_good(value):
                raise ValueError(f"{name} must {words}; got {value!r}")


def resolve_arch(arch: str | Mapping[str, Any], zoo: Mapping[str, Mapping[str, Any]]) -> dict:
    """The fields of an architecture by its name in ``zoo``, or with single fields changed.

    Args:
        arch: a name, or a dict of fields that replace those of ``zoo[arch['base']]`` (default: the first).

    Raises:
        ValueError: for an unknown name or field, a field of wrong values or without one for each stage,
            or channels that the heads do not divide.
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
    for key, values in fields.items():
        is_good, words = _ARCH_FIELDS[key]
        for value in values if isinstance(values, tuple) else (values,):
            if not is_good(value):
                raise ValueError(f"arch field {key!r}: each value must be {words}; got {value!r}")
    for stage, (dim, heads) in enumerate(zip(stage_dims(fields), fields["num_heads"], strict=True)):
        if dim % heads:
            raise ValueError(
                f"stage {stage + 1}: {dim} channels cannot be split into {heads} heads"
            )
    return fields


def stage_dims(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """Channels of each stage; an architecture that has one number doubles it from stage to stage."""
    dims = fields["embed_dims"]
    return dims if isinstance(dims, tuple) else tuple(dims * 2**i for i in range(NUM_STAGES))


def _values(count: int) -> str:
    return "1 value" if count == 1 else f"{count} values"


def check_attn_types(attn_types: Sequence[str], num_stages: int) -> tuple[str, ...]:
    """``('L', 'L', 'S', 'S')`` and the like: linear or softmax, one a stage; ValueError for anything else."""
    if isinstance(attn_types, str):
        attn_types = tuple(attn_types)
    if not is_list(attn_types, num_stages, lambda kind: kind in ("L", "S")):
        raise ValueError(
            f"attn_types needs {_values(num_stages)}, each 'L' (focused linear) or 'S' (softmax); "
            f"got {attn_types!r}"
        )
    return tuple(attn_types)


def check_out_indices(out_indices: int | Sequence[int]) -> tuple[int, ...]:
    """Stages to return, ascending; one, or the last by -1, as in the frameworks; ValueError for others."""
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


def checkpoint_policies(
    with_cp: bool | Mapping[str, Any], num_stages: int = NUM_STAGES
) -> tuple[str | None, ...]:
    """The checkpointing policy of each stage, None for no checkpointing; ValueError for mistakes.

    ``with_cp`` is False, True (``'block'`` everywhere), or a dict of ``policy`` and ``stages`` (from 0 on).
    """
    if isinstance(with_cp, bool):
        return (BLOCK if with_cp else None,) * num_stages
    if not isinstance(with_cp, Mapping) or set(with_cp) - {"policy", "stages"}:
        raise ValueError(
            f"with_cp must be True, False or a dict of 'policy' and 'stages'; got {with_cp!r}"
        )
    policy, stages = with_cp.get("policy", BLOCK), with_cp.get("stages", range(num_stages))
    if policy not in POLICIES:
        raise ValueError(f"with_cp: policy must be one of {', '.join(POLICIES)}; got {policy!r}")
    if not isinstance(stages, Sequence) or not all(is_count(s, num_stages - 1, 0) for s in stages):
        raise ValueError(f"with_cp: stages must be a list of 0 to {num_stages - 1}; got {stages!r}")
    return tuple(policy if stage in stages else None for stage in range(num_stages))


def drop_path_rates(drop_path_rate: float, depths: Sequence[int]) -> list[list[float]]:
    """One rate a block, one list a stage, growing linearly from 0 to ``drop_path_rate``."""
    step = drop_path_rate / max(sum(depths) - 1, 1)
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    return [
        [step * (start + i) for i in range(depth)]
        for start, depth in zip(starts, depths, strict=True)
    ]


def map_sizes(img_size: int | Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """``(H, W)`` of the maps of an image size, one a stride, rounded up."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


_PVT = {"t": "tiny", "s": "small", "m": "medium", "l": "large"}
_SWIN = _DEIT = {"t": "tiny", "s": "small", "b": "base"}
# CSwin's own depths, where the linear models have others.
_CSWIN_DEPTHS = {"t": (1, 2, 21, 1), "b": (2, 4, 32, 2)}


def _all_names() -> dict[str, dict[str, Any]]:
    linear = {f"pvt-{s}": dict(type="FLattenPVT", arch=arch) for s, arch in _PVT.items()}
    linear |= {f"pvtv2-b{i}": dict(type="FLattenPVTv2", arch=f"b{i}") for i in range(6)}
    linear |= {f"swin-{s}": dict(type="FLattenSwin", arch=arch) for s, arch in _SWIN.items()}
    linear |= {f"cswin-{s}": dict(type="FLattenCSwin", arch=arch) for s, arch in _SWIN.items()}
    names = {f"flatten-{name}": config for name, config in linear.items()}
    names["flatten-swin-b-384"] = linear["swin-b"] | dict(pretrain_img_size=384, window_size=12)
    names["flatten-cswin-b-384"] = linear["cswin-b"] | dict(
        pretrain_img_size=384, split_size=(1, 2, 12, 12)
    )
    for name, config in linear.items():
        names[name] = config | dict(attn_types="SSSS")
    for size, depths in _CSWIN_DEPTHS.items():
        names[f"cswin-{size}"]["arch"] = dict(base=_SWIN[size], depths=depths)
    for size, arch in _DEIT.items():
        deit = dict(type="FLattenDeiT", arch=arch)
        # In this order: DeiT's own files fit both, and are DeiT's.
        names |= {f"deit-{size}": deit | dict(attn_types="S"), f"flatten-deit-{size}": deit}
    return names


BACKBONES = _all_names()


def backbone_config(name: str, **changes: Any) -> dict[str, Any]:
    """The config of a backbone by its short name, with arguments that replace or extend those of the name.

    ``flatten-pvt-t``, ``flatten-swin-b-384``, …, or ``pvt-t``, ``cswin-s``, … for the softmax baselines;
    :data:`BACKBONES` has all of them. A ValueError if there is no such name.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name] | changes


def build_backbone(name: str, **changes: Any) -> nn.Module:
    """The backbone of a short name, with random weights; arguments as for :func:`backbone_config`."""
    return MODELS.build(backbone_config(name, **changes))
