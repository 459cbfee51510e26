"""What ``--cfg-options KEY=VALUE ...`` means: Python's literals as they are, and mmengine's short forms."""

import argparse
import ast
import contextlib
import warnings
from collections.abc import Sequence
from typing import Any

from ..data_doctor.findings import printable
from .errors import UserError

_CLOSING = {"(": ")", "[": "]", "{": "}"}


class CfgOptions(argparse.Action):
    """``KEY=VALUE ...`` as one dict of dotted keys, with a usage error for anything else."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Parse the pairs, and add them to those of the same option before."""
        try:
            parsed = parse_cfg_options(values)
        except UserError as error:
            parser.error(printable(f"argument --cfg-options: {error}"))
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), **parsed})


def parse_cfg_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` pairs as one dict of dotted keys.

    A value is a Python literal, or else text as it is written. ``V1,V2`` and ``[V1,V2]`` are lists and
    ``(V1,V2)`` is a tuple, whose members need no quotes; ``true`` and ``false`` are booleans.

    Raises:
        UserError: if one of them is no pair, or its value is not complete.
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
    """The parts of a text between separators that are in no brackets and no quotes.

    Raises:
        ValueError: if brackets or quotes are not closed.
    """
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
