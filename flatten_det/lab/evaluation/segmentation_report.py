"""The reports on a semantic segmentor, and on a panoptic one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...predict.evaluate import Tested
from .collect import CollectPanoptic, CollectPixels, ImageFiles, WorstLabels
from .detections import mean_of
from .figures import draw_classes, draw_confusion
from .pictures import class_colours, draw_labels
from .pixels import BAND, class_measures
from .report import (
    PagePicture,
    Report,
    ReportOptions,
    Rows,
    Section,
    WorstImage,
    left_out_note,
    matrix_caption,
    nan_last,
    number_text,
    pairs_table,
    worst_section,
)


def report_segmentation(
    test: Callable[..., Tested], options: ReportOptions, check: Callable[[ImageFiles], None]
) -> Report:
    """Test a semantic segmentor, and draw figures and pictures.

    ``test`` runs it with hooks of ours, and ``check`` gets the images before.
    """
    hook = CollectPixels(options.worst, check)
    tested = test([hook])
    confusion, names = hook.counts.confusion, [str(name) for name in hook.classes]
    measures = class_measures(confusion)
    accuracy = float(np.trace(confusion[:-1, :-1])) / max(int(confusion[:-1].sum()), 1)
    classes = [
        {
            "name": name,
            **{key: float(values[label]) for key, values in measures.items()},
            "recall": float(measures["accuracy"][label]),
        }
        for label, name in enumerate(names)
    ]
    means = {f"mean_{key}": mean_of(measures[key]) for key in ("iou", "accuracy", "precision")}
    boundary = hook.counts.boundary()
    shown = [entry for entry in classes if not np.isnan(entry["iou"])]
    rows = [
        [
            entry["name"],
            f"{entry['pixels'] / max(confusion.sum(), 1):.2%}",
            *(number_text(entry[key]) for key in ("iou", "accuracy", "precision")),
        ]
        for entry in sorted(shown, key=lambda entry: entry["iou"])
    ]
    table = Rows(
        f"Mean IoU {number_text(means['mean_iou'])}, accuracy {number_text(accuracy)}; per class, "
        "the lowest IoU first" + left_out_note(classes, shown),
        ("class", "of all pixels", "IoU", "accuracy (recall)", "precision"),
        rows,
    )
    _draw_pixels(names, measures, confusion, options.out_dir)
    parts = [
        table,
        PagePicture("classes.png", "IoU, recall and precision of each class."),
        pairs_table(confusion, names, "pixels"),
        PagePicture("confusion.png", matrix_caption(len(names), "")),
    ]
    colours = class_colours(hook.palette, len(names))
    entries, section = worst_section(
        "Images with most wrong pixels",
        "By the share of the pixels that count. Classes of more than 1 % of the image are named in it.",
        [_worst_image(found, hook.counts.ignored, names, colours) for found in hook.worst()],
        hook.images,
        options.out_dir,
    )
    content = {
        "images": len(hook.scores),
        "classes": names,
        "accuracy": accuracy,
        **means,
        "boundary": boundary | {"reach": f"{BAND:g} of an image's diagonal"},
        "per_class": classes,
        "confusion": confusion.tolist(),
        "per_image": [
            {"image": path, "wrong": wrong, "mean_iou": iou}
            for path, (wrong, iou) in hook.scores.items()
        ],
        "worst": entries,
    }
    sections = [Section("Classes", _boundary_text(boundary), parts), section]
    return Report(content, sections, [table], tested.unreadable)


def _draw_pixels(
    names: list[str], measures: dict[str, np.ndarray], confusion: np.ndarray, folder: Path
) -> None:
    keys = {"IoU": "iou", "recall": "accuracy", "precision": "precision"}
    series = {name: measures[key] for name, key in keys.items()}
    draw_classes(names, series, "IoU", folder / "classes.png")
    has_others = bool(confusion[-1].sum() + confusion[:, -1].sum())
    drawn = [*names, "other labels"] if has_others else names
    draw_confusion(drawn, confusion, len(names), "Pixels by class", folder / "confusion.png")


def _worst_image(
    found: WorstLabels, ignored: int, names: list[str], colours: np.ndarray
) -> WorstImage:
    def draw(image: np.ndarray, path: Path) -> None:
        draw_labels(image, found.truth, found.predicted, ignored, names, colours, path)

    return WorstImage(
        {"image": found.path, "wrong": found.wrong, "mean_iou": found.iou},
        found.path,
        f"{found.path}: {found.wrong:.1%} of the pixels wrong, mean IoU {found.iou:.2f}",
        draw,
        found.shape,
    )


def _boundary_text(boundary: dict[str, float | None]) -> str:
    if boundary["share_of_errors"] is None:
        return "No pixel is wrong."
    return (
        f"{boundary['share_of_errors']:.1%} of the wrong pixels lie near boundaries of the truth (within "
        f"{BAND:.0%} of the image's diagonal), where {boundary['share_of_pixels']:.1%} of all pixels are."
    )


def report_panoptic(
    test: Callable[..., Tested], options: ReportOptions, check: Callable[[ImageFiles], None]
) -> Report:
    """As :func:`report_segmentation`, of a panoptic segmentor."""
    hook = CollectPanoptic(check)
    tested = test([hook])
    categories = hook.metric.categories
    averages, classes = {}, []
    for name, is_thing in (("all", None), ("things", True), ("stuff", False)):
        averages[name], each = hook.total.pq_average(categories, isthing=is_thing)
        if name == "all":
            qualities = each
    for id_, category in categories.items():
        counts = hook.total[id_]
        occurs = counts.quality() is not None
        quality = qualities[id_] if occurs else dict.fromkeys(("pq", "sq", "rq"), float("nan"))
        own = {"name": str(category["name"]), "thing": bool(category["isthing"]), **quality}
        classes.append(own | {"matched": counts.tp, "wrong": counts.fp, "missed": counts.fn})
    images = []
    for path, of_image in hook.by_image.items():
        found = of_image.pq_per_cat.values()
        mean, _ = of_image.pq_average(categories, isthing=None)
        wrong, missed = sum(each.fp for each in found), sum(each.fn for each in found)
        images.append({"image": path, "pq": mean["pq"], "wrong": wrong, "missed": missed})
    images.sort(key=lambda each: (-each["wrong"] - each["missed"], nan_last(each["pq"])))
    shown = [each for each in classes if not np.isnan(each["pq"])]
    names = [each["name"] for each in classes]
    series = {key.upper(): np.array([each[key] for each in classes]) for key in ("pq", "sq", "rq")}
    draw_classes(names, series, "PQ", options.out_dir / "classes.png")
    rows = [
        [
            each["name"],
            "thing" if each["thing"] else "stuff",
            *(number_text(each[key]) for key in ("pq", "sq", "rq")),
            *(f"{each[key]:,}" for key in ("matched", "wrong", "missed")),
        ]
        for each in sorted(shown, key=lambda each: each["pq"])
    ]
    head = ", ".join(f"{name} {number_text(mean['pq'])}" for name, mean in averages.items())
    table = Rows(
        f"PQ: {head}; per class, the lowest PQ first{left_out_note(classes, shown)}",
        ("class", "kind", "PQ", "SQ", "RQ", "matched", "wrong", "missed"),
        rows,
    )
    worst = Rows(
        "Images with most wrong and missed segments",
        ("image", "PQ", "wrong", "missed"),
        [
            [each["image"], number_text(each["pq"]), str(each["wrong"]), str(each["missed"])]
            for each in images[: options.worst]
        ],
    )
    parts = [table, PagePicture("classes.png", "PQ, SQ and RQ of each class."), worst]
    text = (
        "PQ = SQ x RQ. SQ is the mean IoU of matched segments; RQ falls with wrong segments, which match "
        "none of the truth, and with missed ones. For pictures: flatten-det test --show-dir."
    )
    content = {"images": len(images), **averages, "per_class": classes, "per_image": images}
    return Report(content, [Section("Classes", text, parts)], [table], tested.unreadable)
