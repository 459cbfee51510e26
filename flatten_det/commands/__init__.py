"""What all tools share: importing it imports flatten_det, without the frameworks' useless remarks."""

import argparse
import contextlib
import io
import warnings
from collections.abc import Callable

for _remark in (
    "faster_coco_eval is not installed",
    "Default ``avg_non_ignore`` is False",
    "The draw is False",
    "`reduce_zero_label` will be deprecated",
    "torch.meshgrid",  # MMDetection's call, which goes on to work.
):
    warnings.filterwarnings("ignore", message=_remark)
_printed = io.StringIO()
try:
    with contextlib.redirect_stdout(_printed):
        import flatten_det  # noqa: F401
finally:
    for _line in _printed.getvalue().splitlines():
        if not _line.startswith("Could not import OneDL"):
            print(_line)

from flatten_det.cli import outlive_readers, run_tool  # noqa: E402
from flatten_det.compat.patches import atomic_local_files  # noqa: E402
from flatten_det.files.checkpoints import checkpoints_read_once, trusted_checkpoints  # noqa: E402

outlive_readers()


def run(work: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Do a tool's work; returns the exit code.

    Files that mmengine writes are whole or not there, no checkpoint is read twice, and those of
    ``--trust-checkpoint`` are trusted.

    Args:
        work: gets the arguments, and may return an exit code.
        args: of the command line; ``debug`` is among them.
    """
    codes: list[int] = []
    trust = getattr(args, "trust_checkpoint", False)

    def guarded() -> None:
        with atomic_local_files(), checkpoints_read_once(), trusted_checkpoints(trust):
            codes.append(work(args) or 0)

    return run_tool(guarded, args.debug) or sum(codes)
