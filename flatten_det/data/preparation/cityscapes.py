"""Cityscapes: archives behind a login, unpacked here and converted for MMDetection and MMSegmentation."""

from pathlib import Path

from ...errors import UserError
from .cityscapes_labels import write_instances, write_train_ids
from .fetch import fetch
from .layout import Files, Layout, Listing, Pairs
from .public import check, report
from .sources import Archive, DataSet

PAGE = "https://www.cityscapes-dataset.com/downloads/"
_COUNTS = {"train": 2975, "val": 500}


def cityscapes(counts: dict[str, int] = _COUNTS) -> DataSet:
    """The data set with these numbers of images per split."""
    splits = counts.items()
    images = [Files(f"leftImg8bit/{split}", "_leftImg8bit.png", count) for split, count in splits]
    labels, instances, train_ids = (
        [Files(f"gtFine/{split}", f"_gtFine_{kind}.png", count) for split, count in splits]
        for kind in ("labelIds", "instanceIds", "labelTrainIds")
    )
    layout = Layout(
        files=(*images, *train_ids, *instances),
        pairs=tuple(Pairs(*pair) for pair in zip(images, train_ids, strict=True)),
        listings=tuple(
            Listing(instances_file(split), files)
            for split, files in zip(counts, images, strict=True)
        ),
    )
    archives = (
        Archive("", "leftImg8bit_trainvaltest.zip", tuple(images), unpacked=11_700_000_000),
        Archive("", "gtFine_trainvaltest.zip", (*labels, *instances), unpacked=1_200_000_000),
    )
    return DataSet("Cityscapes", layout, archives)


def instances_file(split: str) -> str:
    """Where MMDetection looks for the instances of a split, relative to the data set's root."""
    return f"annotations/instancesonly_filtered_gtFine_{split}.json"


CITYSCAPES = cityscapes()


def prepare_cityscapes(dataset: DataSet, root: Path, archives: Path | None = None) -> list[str]:
    """Unpack the archives that the user has downloaded, convert the labels, and check.

    The archives are kept: getting them again takes a login.

    Returns:
        What is missing all the same, one line per problem.

    Raises:
        UserError: The archives are not there (the message says how to get them), or damaged.
    """
    problems = dataset.layout.problems(root)
    if not problems:
        print("nothing to do")
        report(dataset, root, problems)
        return problems
    folder = archives or root
    missing = [
        archive.name
        for archive in dataset.archives
        if not archive.is_unpacked(root) and not (folder / archive.name).is_file()
    ]
    if missing:
        print(steps(folder))
        raise UserError(f"{' and '.join(missing)} not found in {folder}: follow the steps above")
    fetch(dataset.archives, root, folder)
    for split in _COUNTS:
        write_train_ids(root, split)
        write_instances(root, split, root / instances_file(split))
    return check(dataset, root)


def steps(folder: Path) -> str:
    """How to get what this package cannot download."""
    return f"""Cityscapes must be downloaded by hand, because its licence takes a login:
  1. Register at {PAGE} (free for research) and log in.
  2. Download gtFine_trainvaltest.zip (241 MB) and leftImg8bit_trainvaltest.zip (11 GB).
  3. Put both, as they are, into {folder.absolute()}
  4. Run the same command again: it unpacks, converts and checks them."""
