"""Preparing and checking a data set that anyone can download."""

from pathlib import Path

from .fetch import fetch
from .sources import DataSet


def check(dataset: DataSet, root: Path) -> list[str]:
    """Say what is missing in a data set's folder; nothing is written.

    Returns:
        One line per problem; empty for a complete folder.
    """
    problems = dataset.layout.problems(root)
    report(dataset, root, problems)
    return problems


def report(dataset: DataSet, root: Path, problems: list[str]) -> None:
    """Print what is missing, or that nothing is."""
    if problems:
        print(f"{dataset.name} in {root} is not complete:")
        print("\n".join(f"  {problem}" for problem in problems))
    else:
        print(f"{dataset.name} in {root} is complete: {dataset.layout.summary()}")


def prepare(
    dataset: DataSet,
    root: Path,
    archives: Path | None = None,
    mirror: str | None = None,
    keep_archives: bool = False,
) -> list[str]:
    """Download and unpack what is missing in a data set's folder; a complete one is left alone.

    Args:
        dataset: which one.
        root: its folder.
        archives, mirror, keep_archives: see :func:`~flatten_det.data.preparation.fetch.fetch`.

    Returns:
        What is missing all the same, one line per problem.

    Raises:
        UserError: The data cannot be downloaded or unpacked.
    """
    problems = dataset.layout.problems(root)
    if not problems:
        print("nothing to do")
        report(dataset, root, problems)
        return problems
    fetch(dataset.archives, root, archives, mirror, keep_archives)
    return check(dataset, root)
