"""What a check found: for people, for programs, and at the beginning of a training."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console
from rich.text import Text

from ...cli import command_line
from ...distributed import from_first_process
from ...errors import UserError, listed, printable
from ...files.atomic import write_atomically
from .check import Checked, check_annotations
from .faults import ERROR, WARNING, Finding, by_kind, count_errors, counted

_COLOURS = {ERROR: "bold red", WARNING: "bold yellow"}


def findings_of(checked: Iterable[Checked]) -> list[Finding]:
    """All that was found, data set by data set."""
    return [finding for one in checked for finding in one.findings]


def print_report(checked: Sequence[Checked], show: int, console: Console) -> None:
    """Say what was looked at, and per kind how much was found, the first ``show`` findings and what to do."""

    def say(text: Text | str, indent: int = 0) -> None:
        # Not wrapped: a terminal does that, and a file with the output can be searched.
        console.print(Text(" " * indent) + text, soft_wrap=True)

    for one in checked:
        data_set, parts = one.data_set, [counted(one.images, "image")]
        if one.objects is not None:
            parts.append(counted(one.objects, "object"))
        parts.append(f"{len(data_set.classes)} classes in {printable(data_set.place)}")
        say(f"{data_set.name}: {', '.join(parts)} ({data_set.type})")
    findings = findings_of(checked)
    for kind, of_kind in by_kind(findings).items():
        console.print()
        title = Text.assemble((kind.severity, _COLOURS[kind.severity]), f"  {kind.summary} ")
        say(title.append(f"[{kind.name}]: {len(of_kind):,}"))
        shown_file = None
        for finding in of_kind[:show]:
            if finding.file != shown_file:
                shown_file = finding.file
                say(Text(f"{finding.data_set}: {printable(finding.file)}", "cyan"), 4)
            say(finding.message, 6)
        if len(of_kind) > show:
            say(f"... and {len(of_kind) - show:,} more (--show N or --json FILE)", 6)
        say(Text.assemble(("to do: ", "bold"), kind.advice), 4)
    console.print()
    errors = counted(count_errors(findings), "error")
    warnings = counted(len(findings) - count_errors(findings), "warning")
    say(f"{errors} and {warnings} were found." if findings else "Nothing wrong was found.")


def write_json(path: Path, config: str, checked: Sequence[Checked]) -> None:
    """Write the whole list: counts, kinds with what to do, and every finding; folders are made."""
    findings = findings_of(checked)
    errors = count_errors(findings)
    content = {
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
            kind.name: {k: v for k, v in vars(kind).items() if k != "name"}
            | {"count": len(of_kind)}
            for kind, of_kind in by_kind(findings).items()
        },
        "findings": [
            {**vars(finding), "kind": finding.kind.name, "severity": finding.kind.severity}
            for finding in findings
        ],
    }
    write_atomically(path, json.dumps(content, indent=1).encode())


def check_command(config: str, cfg_options: Sequence[str] = ()) -> str:
    """The command line that shows all that is wrong with the data of a config file."""
    options = ["--cfg-options", *cfg_options] if cfg_options else []
    return command_line("check", [config, *options])


def check_before_training(cfg: Config, logger: MMLogger, command: str = "") -> None:
    """Check the annotations of the config's data sets, see :func:`.check.check_annotations`.

    One process of a distributed run reads the files, and all end if it finds errors. ``command`` shows all
    that is wrong; by default it is ``flatten-det check`` with the config's file. UserError if there are
    errors, or the config's data sets cannot be built.
    """

    def check() -> None:
        findings = findings_of(check_annotations(cfg))
        for kind, of_kind in by_kind(findings).items():
            if kind.severity == WARNING:
                shown = listed([f"{f.data_set}: {f.message}" for f in of_kind], 3, "; ")
                what = f"{kind.summary}: {len(of_kind)} ({shown}); {kind.advice}"
                logger.warning(f"data: {what}")
        errors = [finding for finding in findings if finding.kind.severity == ERROR]
        if errors:
            first, where = errors[0], printable(errors[0].file)
            place = "" if where in first.message else f"{where}: "
            raise UserError(
                f"the data has {counted(len(errors), 'error')}, the first: {place}{first.message} "
                f"({first.kind.name}: {first.kind.advice}). The whole list: "
                f"{command or check_command(str(cfg.filename))} ; to train on it all the same: "
                "--no-data-check"
            )

    from_first_process(check)
