"""Checking the data sets of a config, and what was found: for people, for programs, before a training."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
from mmengine.config import Config
from mmengine.logging import MMLogger
from PIL import Image
from rich.console import Console
from rich.text import Text
from torch.utils.data import DataLoader

from ...cli import command_line, progress_bar
from ...distributed import from_first_process
from ...errors import UserError, listed, printable
from ...files.atomic import write_atomically
from ...files.images import pixel_limit, set_pixel_limit
from . import faults
from .annotations import read_content
from .data_sets import (
    INSTANCES,
    LOADERS,
    SEMANTIC,
    UNKNOWN,
    ConfiguredDataSet,
    class_count_findings,
    find_data_sets,
)
from .faults import ERROR, WARNING, Finding, Outcome, by_kind, count_errors, counted
from .instances import InstanceCheck
from .label_maps import SemanticCheck
from .panoptic import PanopticCheck

_COLOURS = {ERROR: "bold red", WARNING: "bold yellow"}
_BATCH = 8  # Images that a worker examines at a time: messages between processes cost too.


@dataclass
class Checked:
    """A data set, the number of its images and objects, and what was found.

    Attributes:
        objects: None for semantic data, which has none.
        unlearned: why nothing can be learned from it, in words; None if something can.
        unmeasured: why nothing can be measured on it, likewise.
    """

    data_set: ConfiguredDataSet
    images: int = 0
    objects: int | None = None
    findings: list[Finding] = field(default_factory=list)
    unlearned: str | None = None
    unmeasured: str | None = None


def check_data(cfg: Config, workers: int) -> list[Checked]:
    """Check everything, every image included, with ``workers`` processes; 0 opens them in this one.

    UserError if the config names no data sets, or they cannot be built.
    """
    return _check_all(cfg, find_data_sets(cfg), workers)


def check_annotations(cfg: Config) -> list[Checked]:
    """Check what can be checked in seconds: annotation files and lists of files; no image is opened.

    Semantic label maps are opened until one shows something that can be learned. Data that is rendered
    on first use (Shapes) is rendered, as a training does. Raises as :func:`check_data`.
    """
    return _check_all(cfg, find_data_sets(cfg, render=True), None)


def _check_all(
    cfg: Config, data_sets: list[ConfiguredDataSet], workers: int | None
) -> list[Checked]:
    set_pixel_limit(pixel_limit(cfg))
    checked = [_check(cfg, data_set, workers) for data_set in data_sets]
    for loader in LOADERS:
        # A part of the data may have a purpose without objects: backgrounds, or images without labels.
        parts = [one for one in checked if loader in one.data_set.loaders]
        kind = faults.NOTHING_TO_LEARN if loader == "train" else faults.NOTHING_TO_MEASURE
        reasons = [one.unlearned if loader == "train" else one.unmeasured for one in parts]
        if parts and all(reasons) and not _only_formats(cfg, loader):
            for one, reason in zip(parts, reasons, strict=True):
                finding = one.data_set.finding(kind, reason)
                if finding not in one.findings:  # That of a validation may be that of the test.
                    one.findings.append(finding)
    return checked


def _only_formats(cfg: Config, loader: str) -> bool:
    """Whether results are written, to be measured elsewhere."""
    evaluator = cfg.get(f"{loader}_evaluator") or []
    metrics = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    return any(metric.get("format_only") for metric in metrics if isinstance(metric, dict))


def _check(cfg: Config, data_set: ConfiguredDataSet, workers: int | None) -> Checked:
    checked = Checked(data_set)
    if data_set.task is UNKNOWN:
        what = "was not checked: neither COCO's format nor MMSegmentation's, on disk"
        checked.findings.append(data_set.finding(faults.NOT_CHECKED, f"{data_set.type} {what}"))
        return checked
    checked.findings += class_count_findings(cfg, data_set)
    check = _check_semantic if data_set.task is SEMANTIC else _check_coco
    checked.findings += check(checked, workers)
    return checked


def _check_semantic(checked: Checked, workers: int | None) -> Iterator[Finding]:
    check, seen = SemanticCheck(checked.data_set), set()
    checked.images = len(check)
    yield from check.files
    if workers is not None and check.names:
        for outcome in examine_all(check, workers, checked.data_set.name):
            yield from outcome.findings
            seen |= outcome.labels
    if checked.data_set.label_maps is not None and check.names:
        reason = check.why_nothing_counts(None if workers is None else seen)
        checked.unlearned = checked.unmeasured = reason
        if workers is not None:
            yield from check.unused_classes(seen)


def _check_coco(checked: Checked, workers: int | None) -> Iterator[Finding]:
    data_set = checked.data_set
    content, findings = read_content(data_set)
    yield from findings
    if content is None:
        return
    check = (InstanceCheck if data_set.task is INSTANCES else PanopticCheck)(data_set, content)
    checked.images, checked.objects = len(check), len(check.objects)
    yield from check.findings()
    if content["images"]:
        checked.unlearned = check.why_none_counts(to_learn=True)
        checked.unmeasured = check.why_none_counts(to_learn=False)
    if workers is not None and not any(data_set.missing_folders()):
        for outcome in examine_all(check, workers, data_set.name):
            yield from outcome.findings


def examine_all(images: Sequence[Outcome], workers: int, title: str) -> Iterator[Outcome]:
    """Examine all images of a data set, in so many processes, and yield the outcomes in their order.

    ``images`` gives the outcome of one image by its index, when it is asked for; ``title`` is for the
    progress bar, on stderr.

    Raises:
        UserError: A worker died, as a decoder can when content is meant to break it.
    """
    loader = DataLoader(
        images,
        batch_size=_BATCH,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=partial(_prepare, 2 * Image.MAX_IMAGE_PIXELS),
    )
    batches, done = iter(loader), 0  # The processes start before there is a thread that draws.
    with progress_bar() as progress:
        task = progress.add_task(title, total=len(images))
        try:
            for batch in batches:
                yield from batch
                done += len(batch)
                progress.update(task, completed=done)
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error) and "killed by signal" not in str(error):
                raise
            raise UserError(
                f"{title}: a worker process died at about image {done}, for "
                "lack of memory or of an image that breaks its decoder: try fewer --workers"
            ) from error


def _prepare(max_pixels: int, worker: int) -> None:
    """A worker need not inherit what was set in this process."""
    set_pixel_limit(max_pixels)
    cv2.setNumThreads(0)


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
    """Check the annotations of the config's data sets, see :func:`check_annotations`.

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
