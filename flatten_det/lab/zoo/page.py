"""The zoo page: tables of all configs, from the metafiles; and which links of a page are dead."""

import re
from collections.abc import Container, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from ...backbones import BACKBONES
from ..output import markdown_table
from .metafiles import DATASETS, METHODS, NOT_RELEASED, backbone_of

PAGE = "configs/README.md"
_METRICS = ("box AP", "mask AP", "mIoU", "mAcc")
_HEADINGS = (
    *("backbone", "schedule", "input", "params", "FLOPs"),
    *("reported by others", "ImageNet weights, top-1", "config"),
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|#", flags=re.IGNORECASE)
_INTRO = f"""\
# Model zoo

<!-- Written by tools/update_zoo.py from the metafiles: change those, or the tool. -->

All configs but the [quickstarts](quickstart) and the [ablation](ablation), each beside its softmax baseline
where there is one. For tools, [`model-index.yml`](../model-index.yml) lists the metafiles, one for each
family of backbones: {{metafiles}}.

**There are no trained weights of ours yet, and no results of ours.** What the columns say:

- **input**: height x width in pixels of the images, or crops, of the training; where they vary, of the
  test. 800x1280 stands for COCO's images of at most 800x1333, as papers count.
- **params**: of the whole model, auxiliary heads included.
- **FLOPs**: multiply-adds of one image of that size, as papers, MMDetection and MMSegmentation count them
  (half of the floating-point operations), but with the matrix products of *every* attention, which
  others often leave out. Two-stage detectors: 1000 proposals, 100 masks. Not counted: auxiliary heads,
  norms, activations, resizing, and the sampling of deformable attention.
- **reported by others**: the paper is *FLatten Transformer* ([arXiv 2308.00442](https://arxiv.org/abs/2308.00442));
  its authors trained with code of their own. A dash: it reports nothing for this config.
- **ImageNet weights, top-1**: what `init_cfg` loads, linked to its source, and the ImageNet-1K accuracy in
  percent that the paper (Fig. 6), or for FLatten-PVTv2-B0 the release page, reports. Files of the
  release go into `checkpoints/`, those of the baselines are downloaded. *{NOT_RELEASED}*: there are
  no such weights; train the classifier, or start with `--cfg-options model.backbone.init_cfg=None`.
"""


def render_page(metafiles: dict[str, dict[str, Any]]) -> str:
    """The zoo page from the contents of the metafiles, by path relative to the checkout."""
    names = ", ".join(
        f"[{PurePosixPath(path).parent.name}]({_from_page(path)})" for path in metafiles
    )
    entries = sorted(
        (entry for content in metafiles.values() for entry in content["Models"]), key=_order
    )
    parts = [_INTRO.format(metafiles=names)]
    for data, of_data in groupby(entries, key=lambda entry: entry["Metadata"]["Training Data"]):
        parts.append(f"## {data}\n")
        for method, rows in groupby(
            of_data, key=lambda entry: entry["Metadata"]["Architecture"][1]
        ):
            table = markdown_table(dict.fromkeys(_HEADINGS, "left"), map(_row, rows))
            parts += [f"### {method}\n", table]
    return "\n".join(parts)


def _order(entry: dict[str, Any]) -> tuple:
    metadata = entry["Metadata"]
    backbone = backbone_of(entry["Config"])
    base = backbone.removeprefix("flatten-")
    return (
        list(DATASETS.values()).index(metadata["Training Data"]),
        list(METHODS.values()).index(metadata["Architecture"][1]),
        list(BACKBONES).index(f"flatten-{base}"),
        metadata.get("Epochs", 0),
        backbone != base,
        entry["Config"],
    )


def _row(entry: dict[str, Any]) -> list[str]:
    metadata = entry["Metadata"]
    iterations = f"{metadata.get('Iterations', 0):,} iterations"
    return [
        metadata["Architecture"][0],
        f"{metadata['Epochs']} epochs" if "Epochs" in metadata else iterations,
        metadata["Input Size"],
        f"{metadata['Parameters'] / 1e6:.1f} M",
        f"{metadata['FLOPs'] / 1e9:.1f} G",
        _reported(entry.get("Results", ())),
        _weights(metadata),
        f"[config]({_from_page(entry['Config'])})",
    ]


def _reported(results: Sequence[dict[str, Any]]) -> str:
    by_source: dict[str, list[str]] = {}
    for result in results:
        shown = [
            f"{name} {result['Metrics'][name]}" for name in _METRICS if name in result["Metrics"]
        ]
        by_source.setdefault(result["Source"], []).extend(shown)
    return "; ".join(f"{', '.join(shown)} ({source})" for source, shown in by_source.items()) or "-"


def _weights(metadata: dict[str, Any]) -> str:
    name = PurePosixPath(metadata["Pretraining Weights"]).name
    source = metadata["Pretraining Source"]
    if source == NOT_RELEASED:
        return f"{name}: {NOT_RELEASED}"
    top1 = metadata.get("Pretraining Top 1 Accuracy")
    return f"[{name}]({source})" + ("" if top1 is None else f", {top1}")


def _from_page(path: str) -> str:
    """A path relative to the checkout, as a link on the page."""
    return path.removeprefix("configs/")


def dead_links(page: Path, text: str, planned: Container[Path] = ()) -> list[str]:
    """The relative links of a page's ``text`` that lead to no file or folder.

    ``page`` is where it is, or will be; ``planned`` are resolved paths of files that will exist.
    """
    dead = []
    for link in dict.fromkeys(_LINK.findall(text)):
        target = (page.parent / link.split("#")[0]).resolve()
        if not _ELSEWHERE.match(link) and not target.exists() and target not in planned:
            dead.append(link)
    return dead
