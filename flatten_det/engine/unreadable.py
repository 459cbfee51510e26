"""Testing without the images that cannot be read, and saying so."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine import dist
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..image_files import pixel_limit
from .errors import UserError
from .images import CheckedPipeline, ImageError, check_images

COUNT = "unreadable_images"
_LISTED = 10


@dataclass(frozen=True)
class Unreadable:
    """In place of a sample: why there is none.

    Attributes:
        reason: one line, with the file's name.
        img_id: as the data set counts.
    """

    reason: str
    img_id: Any = None


def left_out(reasons: Sequence[str], total: int, what: str = "") -> UserError:
    """The error with which a tool ends that did its work for all other images.

    Args:
        reasons: one line for each image that could not be read.
        total: number of images, with these.
        what: of the results that is to be known.
    """
    listed = "; ".join(reasons[:_LISTED])
    more = f"; and {len(reasons) - _LISTED} more" if len(reasons) > _LISTED else ""
    return UserError(f"{len(reasons)} of {total} images{what}: {listed}{more}")


class _Pipeline(CheckedPipeline):
    """Gives :class:`Unreadable` where there is no sample."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any] | Unreadable | None:
        try:
            return super().__call__(data)
        except ImageError as error:
            return Unreadable(str(error), data.get("img_id"))


@dataclass(frozen=True)
class _Collate:
    """Makes a batch of the samples, if there is one, beside what could not be read."""

    collate: Callable[[list], Any]

    def __call__(self, items: list) -> tuple[Any, list[Unreadable]]:
        samples = [item for item in items if not isinstance(item, Unreadable)]
        unreadable = [item for item in items if isinstance(item, Unreadable)]
        return (self.collate(samples) if samples else None), unreadable


@dataclass(frozen=True)
class _Readable:
    """A data loader without what cannot be read.

    Attributes:
        loader: with a :class:`_Collate`.
        note: called at the end with what was left out, on all ranks.
    """

    loader: DataLoader
    note: Callable[[list[Unreadable]], None]

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        found = []
        for batch, unreadable in self.loader:
            found += unreadable
            if batch is not None:
                yield batch
        self.note([each for of_rank in dist.all_gather_object(found) for each in of_rank])


class LeaveOutUnreadableHook(Hook):
    """Tests on the images that can be read.

    Objects in the others do not count. How many these are is among the metrics (:data:`COUNT`), in the log
    too.

    Attributes:
        reasons: one line for each image that was left out, on all ranks.
    """

    priority = "HIGHEST"  # before the metrics are logged

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def before_test_epoch(self, runner: Runner) -> None:
        """Put it between the data loader and the loop, before workers copy the data set."""
        loader = runner.test_dataloader
        check_images(loader.dataset, pixel_limit(runner.cfg), _Pipeline)
        loader.collate_fn = _Collate(loader.collate_fn)

        def note(unreadable: list[Unreadable]) -> None:
            # A sampler may give an image to two ranks.
            self.reasons = list(dict.fromkeys(each.reason for each in unreadable))
            if len(self.reasons) == len(loader.dataset):
                raise left_out(self.reasons, len(loader.dataset))
            _leave_out(runner.test_evaluator.metrics, unreadable)

        runner.test_loop.dataloader = _Readable(loader, note)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Count them among the metrics."""
        if self.reasons:
            metrics[COUNT] = float(len(self.reasons))


def _leave_out(metrics: Iterable[BaseMetric], unreadable: Sequence[Unreadable]) -> None:
    """Keep COCO's metrics from taking the objects in images without a prediction for missed."""
    without = {each.img_id for each in unreadable}
    for metric in metrics:
        api = getattr(metric, "_coco_api", None) or getattr(metric, "_lvis_api", None)
        if without and api is not None and getattr(metric, "img_ids", ()) is None:
            metric.img_ids = [id_ for id_ in api.get_img_ids() if id_ not in without]
