"""Import flatten_det, keep the frameworks' useless remarks to themselves, and outlive closed pipes."""

import contextlib
import io
import warnings

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

from flatten_det.cli import outlive_readers  # noqa: E402

outlive_readers()
