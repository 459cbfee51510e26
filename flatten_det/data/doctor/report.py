"""What a check found, for people and for programs."""

import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ...files.atomic import write_atomically
from ...errors import UserError
from .check import Checked
from .findings import Finding, by_kind, count_errors, counted
from ...errors import printable
from .kinds import ERROR, Kind

_COLOURS = {"error": "bold red", "warning": "bold yellow"}


def findings_of(checked: Iterable[Checked]) -> list[Finding]:
    """All that was found, data set by data set."""
    return [finding for one in checked for finding in one.findings]


def print_report(checked: Sequence[Checked], show: int, console: Console) -> None:
    """Say what was looked at, and per kind how much was found, the first findings and what to do.

    Args:
        checked: the data sets.
        show: how many findings of each kind are listed.
        console: where to.
    """
    for one in checked:
        _print(console, Text(_heading(one)))
    findings = findings_of(checked)
    for kind, of_kind in by_kind(findings).items():
        console.print()
        _print_kind(console, kind, of_kind, show)
    console.print()
    _print(console, Text(verdict(findings)))


def _heading(one: Checked) -> str:
    data_set = one.data_set
    parts = [counted(one.images, "image")]
    if one.objects is not None:
        parts.append(counted(one.objects, "object"))
    parts.append(f"{len(data_set.classes)} classes")
    place = printable(data_set.place)
    return f"{data_set.name}: {', '.join(parts)} in {place} ({data_set.type})"


def _print_kind(console: Console, kind: Kind, findings: list[Finding], show: int) -> None:
    title = Text.assemble((kind.severity, _COLOURS[kind.severity]), f"  {kind.summary} ")
    _print(console, title.append(f"[{kind.name}]: {len(findings):,}"))
    shown_file = None
    for finding in findings[:show]:
        if finding.file != shown_file:
            shown_file = finding.file
            _print(console, Text(f"{finding.data_set}: {printable(finding.file)}", "cyan"), 4)
        _print(console, Text(finding.message), 6)
    if len(findings) > show:
        more = f"... and {len(findings) - show:,} more (--show N or --json FILE)"
        _print(console, Text(more), 6)
    _print(console, Text.assemble(("to do: ", "bold"), kind.advice), 4)


def _print(console: Console, text: Text, indent: int = 0) -> None:
    # Not wrapped: a terminal does that, and a file with the output can be searched.
    console.print(Text(" " * indent) + text, soft_wrap=True)


def verdict(findings: Sequence[Finding]) -> str:
    """The sum of it all in one line."""
    errors = count_errors(findings)
    warnings = len(findings) - errors
    if not findings:
        return "Nothing wrong was found."
    return f"{counted(errors, 'error')} and {counted(warnings, 'warning')} were found."


def as_json(config: str, checked: Sequence[Checked]) -> dict[str, Any]:
    """The whole list as JSON: counts, kinds with what to do, and every finding."""
    findings = findings_of(checked)
    errors = count_errors(findings)
    return {
        "config": config,
        "errors": errors,
        "warnings": len(findings) - errors,
        "data_sets": [
            {
                "name": one.data_set.name,
                "type": one.data_set.type,
                "annotations": one.data_set.annotation_file or None,
                "images_folder": one.data_set.images,
                "label_maps_folder": one.data_set.label_maps,
                "images": one.images,
                "objects": one.objects,
            }
            for one in checked
        ],
        "kinds": {
            kind.name: {
                "severity": kind.severity,
                "summary": kind.summary,
                "advice": kind.advice,
                "count": len(of_kind),
            }
            for kind, of_kind in by_kind(findings).items()
        },
        "findings": [
            {
                "kind": finding.kind.name,
                "severity": finding.kind.severity,
                "data_set": finding.data_set,
                "file": finding.file,
                "id": finding.id,
                "message": finding.message,
            }
            for finding in findings
        ],
    }


def write_json(path: Path, config: str, checked: Sequence[Checked]) -> None:
    """Write :func:`as_json`; folders are made."""
    write_atomically(path, json.dumps(as_json(config, checked), indent=1).encode())


def check_command(config: str, cfg_options: Sequence[str] = ()) -> str:
    """The command line that shows all that is wrong with a config's data.

    Args:
        config: its file.
        cfg_options: ``KEY=VALUE`` pairs, as they were given.
    """
    options = ["--cfg-options", *cfg_options] if cfg_options else []
    return shlex.join(["uv", "run", "tools/check_data.py", config, *options])


def raise_errors(findings: Sequence[Finding], command: str) -> None:
    """End a run for which the data is not fit.

    Args:
        findings: of its data.
        command: what shows all of them.

    Raises:
        UserError: There are errors; it shows the first of them and how to see all.
    """
    errors = [finding for finding in findings if finding.kind.severity == ERROR]
    if errors:
        first = errors[0]
        where = printable(first.file)
        place = "" if where in first.message else f"{where}: "
        raise UserError(
            f"the data has {counted(len(errors), 'error')}, the first: {place}{first.message} "
            f"({first.kind.name}: {first.kind.advice}). The whole list: {command} ; "
            "to train on it all the same: --no-data-check"
        )
