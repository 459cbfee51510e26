"""The quick part of the check, at the beginning of a training."""

from collections.abc import Iterator, Sequence

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import MMLogger

from ...errors import UserError, explain
from .check import check_annotations
from .findings import Finding, by_kind
from .kinds import WARNING
from .report import check_command, findings_of, raise_errors

_SHOWN = 3


def check_before_training(cfg: Config, logger: MMLogger, command: str = "") -> None:
    """Check the annotations of the config's data sets, see :func:`.check.check_annotations`.

    One process of a distributed run reads the files, and all end if it finds errors.

    Args:
        cfg: a complete config.
        logger: gets the warnings.
        command: what shows all that is wrong; default: ``tools/check_data.py`` with the config's file.

    Raises:
        UserError: There are errors, or the config's data sets cannot be built.
    """
    told: list[str | None] = [None]
    if is_main_process():
        try:
            findings = findings_of(check_annotations(cfg))
            for line in warning_lines(findings):
                logger.warning(line)
            raise_errors(findings, command or check_command(str(cfg.filename)))
        except Exception as error:
            told = [explain(error)]
            if told[0] is None:
                raise
    broadcast_object_list(told)
    if told[0] is not None:
        raise UserError(told[0])


def warning_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """One line for each kind of warning, with the first findings."""
    for kind, of_kind in by_kind(findings).items():
        if kind.severity == WARNING:
            shown = "; ".join(f"{f.data_set}: {f.message}" for f in of_kind[:_SHOWN])
            more = f"; ... and {len(of_kind) - _SHOWN} more" if len(of_kind) > _SHOWN else ""
            yield f"data: {kind.summary}: {len(of_kind)} ({shown}{more}); {kind.advice}"
