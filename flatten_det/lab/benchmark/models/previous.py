"""Going on from the results of an earlier run."""

import json
from collections.abc import Mapping
from pathlib import Path

from ....errors import UserError
from .result import Result

FORMAT = "flatten_det benchmark of models, 1"


def load_previous(path: Path, how: Mapping[str, object]) -> list[Result]:
    """The cells of an earlier run's ``results.json``; none if there is no such file.

    Args:
        path: of the file.
        how: what must not have changed for cells to stand side by side.

    Raises:
        UserError: if the file is none of this tool's, or was measured otherwise; it says what differs.
    """
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(content["format"])
        # What files lack that were written before it could be measured.
        before = {"cuda-graphs": False, **content["how"]}
        cells = [Result.from_record(cell) for cell in content["cells"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not of this tool, or of another version of it: give another --out, or --fresh "
            "to write over it"
        ) from error
    # As JSON has it: tuples are lists there.
    now = json.loads(json.dumps(how))
    changed = [key for key in now if now[key] != before.get(key)]
    if changed:
        was = "; ".join(
            f"{key}: {_text(before.get(key))}, now {_text(now[key])}" for key in changed
        )
        raise UserError(
            f"{path} was measured otherwise ({was}): give the same options to go on, another --out, or "
            "--fresh to measure all anew"
        )
    return cells


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
