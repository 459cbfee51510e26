"""The page of :mod:`.browse`: samples with their pictures and what is in them, as HTML."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import PurePath

from ..errors import printable

# Of a sample's two pictures, in their files' names.
SIDES = ("disk", "model")
_CAPTIONS = ("on disk", "as the model gets it")

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5em; color: #111; background: #fff; }
h1 { font-size: 1.3em; } h2 { font-size: 1em; margin: 0 0 .6em; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15em 1em; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(36em, 100%), 1fr)); gap: 1em; }
article { border: 1px solid #bbb; border-radius: 4px; padding: .8em; }
.pair { display: flex; gap: .8em; align-items: flex-start; }
figure { flex: 1; margin: 0; min-width: 0; }
img { width: 100%; max-height: 30em; object-fit: contain; background: #eee; }
figcaption { color: #444; } .note { border-left: 4px solid #111; padding-left: .6em; }
table { border-collapse: collapse; margin-top: .6em; } th, td { padding: .1em .8em .1em 0; text-align: left; }
td + td, th + th { text-align: right; } .changed { font-weight: 700; }
"""


@dataclass(frozen=True)
class View:
    """A picture of a sample, and what its annotations hold.

    Attributes:
        picture: name of the file; None if it could not be drawn.
        size: width and height of the image, in pixels, of which the picture may show fewer or more.
        objects: how many of them by label.
        ignored: how many regions do not count, such as crowds.
        shares: of the pixels of the label map, 0 to 1, by label; empty if there is no map.
    """

    picture: str | None
    size: tuple[int, int]
    objects: Counter[int]
    ignored: int
    shares: Mapping[int, float]


@dataclass(frozen=True)
class BrowsedSample:
    """A sample of a data set before and after its pipeline.

    Attributes:
        index: its number in the data set.
        path: the image.
        taken: the image that the model gets: another one if the pipeline left this one out.
        before, after: views of them.
        classes: their names, by label.
    """

    index: int
    path: str
    taken: str
    before: View
    after: View
    classes: tuple[str, ...]

    def counts(self) -> Iterator[tuple[str, str, str]]:
        """Rows of a table: what, how much of it on disk, and how much the model gets."""
        views = (self.before, self.after)
        if any(view.objects or view.ignored for view in views) or not self.before.shares:
            yield "objects", *(str(view.objects.total()) for view in views)
        for label in sorted({label for view in views for label in view.objects}):
            yield self._name(label), *(str(view.objects[label]) for view in views)
        if any(view.ignored for view in views):
            yield "(ignored regions)", *(str(view.ignored) for view in views)
        shares = [self._shares(view) for view in views]
        for name in dict.fromkeys(name for each in shares for name in each):
            yield f"{name}, pixels", *(f"{each.get(name, 0):.1%}" for each in shares)

    def _name(self, label: int) -> str:
        return self.classes[label] if 0 <= label < len(self.classes) else f"class {label}"

    def _shares(self, view: View) -> dict[str, float]:
        known = range(len(self.classes))
        shares = {
            self._name(each): view.shares[each] for each in sorted(view.shares) if each in known
        }
        if rest := sum(share for label, share in view.shares.items() if label not in known):
            shares["(not labelled)"] = rest
        return shares


def contact_sheet(
    title: str,
    facts: Sequence[tuple[str, str]],
    samples: Sequence[BrowsedSample],
    left_out: Sequence[str],
) -> str:
    """A page in HTML, to be put beside the folder ``pictures``.

    Args:
        title: Its heading.
        facts: What is said of all samples, each with its name.
        samples: In their order.
        left_out: A line for each sample that could not be read.
    """
    rows = [f"<dt>{html_text(name)}</dt><dd>{html_text(fact)}</dd>" for name, fact in facts]
    missing = [f'<p class="note">Left out: {html_text(reason)}</p>' for reason in left_out]
    parts = [f"<dl>{''.join(rows)}</dl>", *missing]
    parts += ['<div class="samples">', *map(_article, samples), "</div>"]
    return html_page(title, _STYLE, parts)


def _article(sample: BrowsedSample) -> str:
    name = PurePath(sample.path).name
    note = ""
    if sample.taken != sample.path:
        other = PurePath(sample.taken).name
        note = f"The pipeline left this image out: the model gets {other} in its place."
        note = f'<p class="note">{html_text(note)}</p>'
    figures = "".join(map(_figure, (sample.before, sample.after), _CAPTIONS))
    rows = "".join(
        f"<tr{' class=changed' if before != after else ''}><td>{html_text(what)}</td>"
        f"<td>{before}</td><td>{after}</td></tr>"
        for what, before, after in sample.counts()
    )
    return (
        f'<article>\n<h2 title="{html_text(sample.path)}">{sample.index}: {html_text(name)}</h2>{note}\n'
        f'<div class="pair">{figures}</div>\n'
        f"<table><tr><th></th><th>on disk</th><th>model</th></tr>{rows}</table>\n</article>"
    )


def _figure(view: View, caption: str) -> str:
    width, height = view.size
    picture = "<p>could not be drawn</p>"
    if view.picture:
        link = f"pictures/{view.picture}"
        picture = (
            f'<a href="{link}"><img src="{link}" loading="lazy" alt="{caption}" '
            f'style="aspect-ratio: {width} / {height}"></a>'
        )
    return f"<figure>{picture}<figcaption>{caption}, {width} x {height}</figcaption></figure>"


def html_page(title: str, style: str, parts: Sequence[str]) -> str:
    """A page of these parts in HTML under its title, with a style sheet."""
    lines = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html_text(title)}</title>\n<style>{style}</style>\n</head>\n<body>",
        f"<h1>{html_text(title)}</h1>",
    ]
    return "\n".join([*lines, *parts, "</body>\n</html>\n"])


def html_text(value: str) -> str:
    """A text that may be a stranger's, for between tags and within quotes."""
    return escape(printable(value))
