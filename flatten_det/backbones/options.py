"""What the options of the backbones may be, so that a wrong value is named, and what it should be."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

NUM_STAGES = 4
# Far beyond any network, and far below what ends in hours of building or in a full memory.
MAX_CHANNELS, MAX_DEPTH, MAX_WINDOW, MAX_RATIO = 16_384, 1000, 1024, 64
MAX_KERNEL, MAX_IMG_SIZE = 99, 8192


def is_count(value: Any, most: int, least: int = 1) -> bool:
    """Whether this is a whole number from ``least`` to ``most``."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any, least: float, most: float) -> bool:
    """Whether this is a number, not NaN, from ``least`` to ``most``."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def is_list(value: Any, length: int, is_item: Callable[[Any], bool] = lambda item: True) -> bool:
    """Whether this is a list or tuple of that many items, all of them good."""
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return is_sequence and len(value) == length and all(map(is_item, value))


def _is_image_size(value: Any) -> bool:
    def is_side(side: Any) -> bool:
        return is_count(side, MAX_IMG_SIZE)

    return is_side(value) or is_list(value, 2, is_side)


def _each(is_item: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: is_list(value, NUM_STAGES, is_item)


def _is_window(value: Any) -> bool:
    return is_count(value, MAX_WINDOW)


def _is_ratio(value: Any) -> bool:
    return is_number(value, 0.1, MAX_RATIO)


def _is_reduction(value: Any) -> bool:
    return is_count(value, MAX_RATIO)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


_FLAG = (_is_flag, "be True or False")
_OPTIONS = {
    "in_channels": (lambda v: is_count(v, MAX_CHANNELS), f"be from 1 to {MAX_CHANNELS}"),
    "la_sr_ratios": (_each(_is_reduction), f"be one whole number a stage, from 1 to {MAX_RATIO}"),
    "window_size": (_is_window, f"be from 1 to {MAX_WINDOW} tokens"),
    "la_window_size": (
        lambda v: v is None or _is_window(v),
        f"be None or from 1 to {MAX_WINDOW} tokens",
    ),
    "split_size": (_each(_is_window), f"have {NUM_STAGES} positive values, one a stage"),
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
    "pretrain_img_size": (_is_image_size, f"be one or two sizes from 1 to {MAX_IMG_SIZE} px"),
    "norm_eval": _FLAG,
    "mask_padding": _FLAG,
    "compile": (lambda v: isinstance(v, bool | Mapping), "be True, False or a dict"),
}
_ARCH_FIELDS = {
    "embed_dims": (lambda v: is_count(v, MAX_CHANNELS), f"from 1 to {MAX_CHANNELS}"),
    "num_heads": (lambda v: is_count(v, MAX_CHANNELS), f"from 1 to {MAX_CHANNELS}"),
    "depths": (lambda v: is_count(v, MAX_DEPTH), f"from 1 to {MAX_DEPTH}"),
    "mlp_ratios": (_is_ratio, f"from 0.1 to {MAX_RATIO}"),
    "sr_ratios": (_is_reduction, f"from 1 to {MAX_RATIO}"),
}


def check_options(options: Mapping[str, Any]) -> None:
    """Check the options that mean the same in all families; others are passed over.

    Raises:
        ValueError: for one that is not what it should be.
    """
    for name, value in options.items():
        if name in _OPTIONS:
            is_good, words = _OPTIONS[name]
            if not is_good(value):
                raise ValueError(f"{name} must {words}; got {value!r}")


def check_arch_fields(fields: Mapping[str, Any]) -> None:
    """Check the values of an architecture: one, or a tuple of one a stage.

    Raises:
        ValueError: for one that is not what it should be.
    """
    for name, values in fields.items():
        is_good, words = _ARCH_FIELDS[name]
        for value in values if isinstance(values, tuple) else (values,):
            if not is_good(value):
                raise ValueError(f"arch field {name!r}: each value must be {words}; got {value!r}")
