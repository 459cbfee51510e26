"""Our counts beside the paper's."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...config import blame_config, load_config
from ...errors import UserError
from .paper import PaperCount, count_as_published
from .published import PUBLISHED, Published, find_published
from .target import Target

EXPLAINED_FROM = 0.03  # Relative difference of the complete count.


@dataclass(frozen=True)
class Comparison:
    """One model.

    Attributes:
        title: what it is called.
        published: None: the paper reports nothing for it, at this size.
        count: ours, in both styles.
    """

    title: str
    published: Published | None
    count: PaperCount

    @property
    def explanation(self) -> str | None:
        """What a difference of more than 3 % to the complete count is made of; None: there is none."""
        if self.published is None:
            return None
        macs, modules, softmax, style = (
            value / 1e9
            for value in (
                self.count.complete.macs,
                self.count.modules,
                self.count.softmax,
                self.count.paper_style,
            )
        )
        gflops = self.published.gflops
        if abs(macs / gflops - 1) <= EXPLAINED_FROM:
            return None
        return (
            f"{self.title}: {gflops} G published = {macs:.1f} G complete {modules - macs:+.1f} G (products "
            "of linear attention, which a counter of modules misses, less norms and biases, which it has) "
            f"{softmax:+.1f} G (products of softmax attention, which this model has not, but FLOPs scripts "
            f"add for every block) {gflops - style:+.1f} G not explained"
        )


def compare_published(root: Path) -> Iterator[Comparison]:
    """All models of the paper's Tables 1 and 2, from the configs of the checkout ``root``.

    Raises:
        UserError: a config cannot be read.
    """
    for published in PUBLISHED:
        cfg = load_config(root / published.config)
        count = count_as_published(cfg, published.size, **published.changes)
        yield Comparison(published.title, published, count)


def compare_config(target: Target, size: tuple[int, int] | None) -> Comparison:
    """A config beside what the paper reports for it.

    Args:
        target: of a config.
        size: ``(H, W)`` of the image in pixels; None: the paper's, or else the config's own.

    Raises:
        UserError: it is the name of a backbone, or a model that cannot be counted.
    """
    if target.cfg is None:
        raise UserError(
            f"{target.name} is a backbone, and the paper counts whole models: give a config, or none for "
            "all that the paper reports"
        )
    published = None if target.is_changed else find_published(target.name)
    if size is None:
        size = published.size if published else target.size()
    if published and published.size != size:
        published = None
    with blame_config(target.cfg):
        count = count_as_published(target.cfg, size)
    title = published.title if published else Path(target.name).name
    return Comparison(title, published, count)
