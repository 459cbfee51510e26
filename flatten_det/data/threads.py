"""Work on many files at once."""

import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.progress import track


def in_threads(
    work: Callable, items: Collection, title: str, workers: int | None = None
) -> Iterator[Any]:
    """The results of ``work`` on each item, in order, with a progress bar; by default a thread per CPU.

    Threads, since drawing, decoding and encoding release the GIL; processes would each have to import this
    package first.
    """
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        try:
            yield from track(pool.map(work, items), title, total=len(items))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C need not wait for the rest.
            raise
