"""Examining the images of a data set, with worker processes and a progress bar."""

from collections.abc import Iterator, Sequence
from functools import partial

import cv2
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from ...errors import UserError
from ...files.images import set_pixel_limit
from .outcome import Outcome

_BATCH = 8  # Images that a worker examines at a time: messages between processes cost too.


def examine_all(images: Sequence[Outcome], workers: int, title: str) -> Iterator[Outcome]:
    """Examine all images of a data set.

    Args:
        images: gives the outcome of one image by its index, when it is asked for.
        workers: processes; 0 examines within this one.
        title: for the progress bar, on stderr.

    Yields:
        The outcomes in the order of the images.

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
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    console = Console(stderr=True)
    progress = Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    batches = iter(loader)  # Starts the processes, before there is a thread that draws.
    with progress:
        task, done = progress.add_task(title, total=len(images)), 0
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
