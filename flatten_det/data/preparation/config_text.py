"""Values as the Python text of a config file."""

from typing import Any

LINE_LENGTH = 100
_INDENT = "    "


class Code(str):
    """An expression, to be written as it is."""

    __slots__ = ()


def assignments(values: dict[str, Any]) -> str:
    """One assignment per entry."""
    return "".join(f"{name} = {literal(value, len(name) + 3)}\n" for name, value in values.items())


def literal(value: Any, used: int = 0, indent: str = "") -> str:
    """Write a value in the style of the zoo's configs: ``dict(...)``, broken where a line is too long.

    Args:
        value: dicts with names as keys, lists, tuples, strings, numbers, booleans, None and
            :class:`Code`.
        used: characters of the first line that are taken, without the indent.
        indent: what the lines start with.
    """
    short = _one_line(value)
    if len(indent) + used + len(short) < LINE_LENGTH or not isinstance(value, dict | list | tuple):
        return short
    deeper = indent + _INDENT
    if isinstance(value, dict):
        opening, closing = "dict(", ")"
        items = [f"{key}={literal(v, len(key) + 2, deeper)}" for key, v in value.items()]
    else:
        opening, closing = "[]" if isinstance(value, list) else "()"
        items = [literal(item, 1, deeper) for item in value]
    lines = "".join(f"{deeper}{item},\n" for item in items)
    return f"{opening}\n{lines}{indent}{closing}"


def _one_line(value: Any) -> str:
    if isinstance(value, Code):
        return str(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, dict):
        return f"dict({', '.join(f'{key}={_one_line(v)}' for key, v in value.items())})"
    if isinstance(value, list):
        return f"[{', '.join(map(_one_line, value))}]"
    if isinstance(value, tuple):
        comma = "," if len(value) == 1 else ""
        return f"({', '.join(map(_one_line, value))}{comma})"
    return repr(value)


def _string(value: str) -> str:
    text = repr(value)
    if text[0] == "'" and '"' not in text and "\\'" not in text:
        text = f'"{text[1:-1]}"'
    # mmengine replaces {{ ... }} in the text of a config, also within strings.
    return text.replace("{", r"\x7b") if "{{" in text else text
