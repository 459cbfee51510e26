"""Import flatten_det without the frameworks' remarks about optional packages of theirs."""

import contextlib
import io
import warnings

warnings.filterwarnings("ignore", message="faster_coco_eval is not installed")
_printed = io.StringIO()
try:
    with contextlib.redirect_stdout(_printed):
        import flatten_det  # noqa: F401
finally:
    for _line in _printed.getvalue().splitlines():
        if not _line.startswith("Could not import OneDL"):
            print(_line)
