"""The report on a detector or an instance segmentor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ...errors import UserError, reason_of, warn_once
from .collect import DetectionData
from .detections import (
    SIZES,
    Evaluation,
    Matches,
    best_threshold,
    evaluate_detections,
    mean_of,
)
from .error_kinds import KINDS, RIGHT, UNUSED, Errors, confusion_matrix, find_errors, gains
from .figures import draw_classes, draw_confusion, draw_curves, draw_kinds
from .page import PagePicture, Rows, Section
from .pictures import Shape, box_outline, draw_detections, mask_outline
from .report import (
    Report,
    ReportOptions,
    left_out_note,
    matrix_caption,
    nan_last,
    number_text,
    pairs_table,
    picture_name,
    read_or_warn,
)

_TITLES = {"bbox": "Boxes", "segm": "Masks"}


def report_detection(data: DetectionData, options: ReportOptions) -> Report:
    """Analyse, and draw figures and pictures."""
    names = [str(data.truth.cats[id_]["name"]) for id_ in data.categories]
    content: dict[str, Any] = {
        "images": len(data.image_ids),
        "images_without_predictions_file_entry": data.left_out,
        "score_threshold": options.threshold,
        "classes": names,
    }
    sections, tables = [], []
    for kind, results in data.results.items():
        found = _evaluated(data, results, kind)
        errors = find_errors(found.matches, options.threshold)
        numbers, table = _detection_numbers(found, errors, names, _TITLES[kind])
        confusion = np.array(numbers["confusion"])
        _draw_detection(found, errors, numbers, confusion, names, kind, options)
        tables.append(table)
        sections.append(_detection_section(kind, numbers, confusion, names, table, options))
        content[kind] = numbers
    # Pictures are of the last kind: of masks, if there are any.
    worst = _worst_images(found.matches, errors, options.worst)
    pictures = _draw_worst(data, found.matches, errors, worst, kind, results, names, options)
    content["worst"] = [entry for entry, _ in pictures]
    sections.append(
        Section(
            "Images with most errors",
            f"{_TITLES[kind]}, errors with a score of at least {options.threshold:g}. Beside what is "
            "wrong stand the class, the score and the kind of the error.",
            [picture for _, picture in pictures],
        )
    )
    if data.left_out:
        warn_once(
            f"{data.left_out} images have no entry in the file of predictions: they are left out"
        )
    return Report(content, sections, tables, data.unreadable)


def _evaluated(data: DetectionData, results: Sequence[dict[str, Any]], kind: str) -> Evaluation:
    about = data.categories, data.image_ids, data.ious, data.max_detections
    try:
        return evaluate_detections(data.truth, results, kind, *about)
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"the annotations, or the masks of the predictions, cannot be compared ({reason_of(error)}): "
            "flatten-det check CONFIG lists what is wrong with the annotations"
        ) from error


def _detection_numbers(
    found: Evaluation, errors: Errors, names: Sequence[str], title: str
) -> tuple[dict[str, Any], Rows]:
    """What the JSON says of one kind of IoU, and the table of the classes, the lowest AP first."""
    matches = found.matches
    base, gained = gains(matches)
    objects = matches.counts()
    every = find_errors(matches)
    classes = []
    for label, name in enumerate(names):
        own = (matches.labels == label) & ~matches.ignored
        best = best_threshold(matches.scores[own], matches.matched[own] >= 0, objects[label])
        wrong = errors.kinds[matches.labels == label]
        counts = {kind: int((wrong == number).sum()) for number, kind in enumerate(KINDS[:-1])}
        counts[KINDS[-1]] = int(errors.missed[matches.object_labels == label].sum())
        classes.append(
            {
                "name": name,
                "objects": int(objects[label]),
                "ap": float(found.ap[label]),
                "ap50": float(found.ap50[label]),
                "ap75": float(found.ap75[label]),
                **{
                    f"ap_{size}": float(value)
                    for size, value in zip(SIZES, found.by_size[label], strict=True)
                },
                "ar": float(found.ar[label]),
                "best_f1": best,
                "errors": counts,
                "precision_at_iou50": found.curves[0, label].tolist(),
                "precision_mean": found.curves[1, label].tolist(),
            }
        )
    numbers = {
        "ap": mean_of(found.ap),
        "ap50": mean_of(found.ap50),
        "ap75": mean_of(found.ap75),
        **{f"ap_{s}": mean_of(v) for s, v in zip(SIZES, found.by_size.T, strict=True)},
        "ar": mean_of(found.ar),
        "objects": int(objects.sum()),
        "errors": errors.counts(),
        "errors_at_any_score": every.counts(),
        "gain_in_ap50": gained,
        "confusion": confusion_matrix(matches, errors).tolist(),
        "recalls": found.recalls.tolist(),
        "per_class": classes,
    }
    columns = ("class", "objects", "AP", "AP50", "AP75", "small", "medium", "large", "AR")
    columns += ("best score", "F1 there", "errors", "mostly")
    shown = [entry for entry in classes if entry["objects"] or any(entry["errors"].values())]
    rows = [_class_row(entry) for entry in sorted(shown, key=lambda e: nan_last(e["ap"]))]
    ap, ap50 = number_text(numbers["ap"]), number_text(base)
    caption = f"{title}: AP {ap}, AP50 {ap50}; per class, the lowest AP first"
    return numbers, Rows(caption + left_out_note(classes, shown), columns, rows)


def _class_row(entry: dict[str, Any]) -> list[str]:
    best, errors = entry["best_f1"] or {}, entry["errors"]
    kind = max(errors, key=errors.get)
    keys = ("ap", "ap50", "ap75", *(f"ap_{size}" for size in SIZES), "ar")
    return [
        entry["name"],
        f"{entry['objects']:,}",
        *(number_text(entry[key]) for key in keys),
        number_text(best.get("threshold")),
        number_text(best.get("f1")),
        f"{sum(errors.values()):,}",
        kind if errors[kind] else "",
    ]


def _draw_detection(
    found: Evaluation,
    errors: Errors,
    numbers: dict[str, Any],
    confusion: np.ndarray,
    names: Sequence[str],
    kind: str,
    options: ReportOptions,
) -> None:
    def place(figure: str) -> Path:
        return options.out_dir / f"{kind}_{figure}.png"

    title = _TITLES[kind]
    draw_classes(names, {"AP": found.ap, "AP50": found.ap50}, f"{title}: AP", place("classes"))
    head = f"{title}: precision over recall; beside the name, AP50"
    draw_curves(names, found.recalls, found.curves, head, place("curves"))
    head = f"{title}: objects by class, at IoU 0.5 and a score of at least {options.threshold:g}"
    draw_confusion([*names, "background"], confusion, len(names), head, place("confusion"))
    draw_kinds(
        numbers["gain_in_ap50"],
        numbers["errors"],
        f"{title}: kinds of errors; AP50 is {100 * numbers['ap50']:.1f}",
        f"errors with a score of at least {options.threshold:g}",
        place("kinds"),
    )


def _detection_section(
    kind: str,
    numbers: dict[str, Any],
    confusion: np.ndarray,
    names: Sequence[str],
    table: Rows,
    options: ReportOptions,
) -> Section:
    every = numbers["errors_at_any_score"]
    gained, counts = numbers["gain_in_ap50"], numbers["errors"]
    kinds = [
        [each, number_text(gained[each]), f"{counts[each]:,}", f"{every[each]:,}"] for each in KINDS
    ]
    means = {"AP": "ap", "AP50": "ap50", **{size: f"ap_{size}" for size in SIZES}, "AR": "ar"}
    measured = [
        f"{name} {text}" for name, key in means.items() if (text := number_text(numbers[key]))
    ]
    return Section(
        _TITLES[kind],
        f"{numbers['objects']:,} objects. {', '.join(measured)}.",
        [
            Rows(
                "Kinds of errors (TIDE), and what mending one kind alone would gain",
                ("kind", "gain in AP50", f"from score {options.threshold:g}", "at any score"),
                kinds,
            ),
            PagePicture(
                f"{kind}_kinds.png",
                "classification: right place, wrong class; localisation: right class, IoU from 0.1 to "
                "0.5; both: wrong class and IoU from 0.1 to 0.5; duplicate: the object is found "
                "already; background: no object there; missed: not found, nor nearly.",
            ),
            table,
            PagePicture(f"{kind}_classes.png", "AP and AP50 of each class."),
            pairs_table(confusion, names, "objects"),
            PagePicture(
                f"{kind}_confusion.png",
                matrix_caption(
                    len(names), "objects that nothing found, and detections that found nothing"
                ),
            ),
            PagePicture(
                f"{kind}_curves.png", "Precision over recall of each class that has objects."
            ),
        ],
    )


def _worst_images(matches: Matches, errors: Errors, most: int) -> list[tuple[int, int, float]]:
    """The number of an image, its errors and its F1, for those with most errors."""
    images = len(matches.images)

    def per_image(places: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return np.bincount(places[chosen], minlength=images)

    right = per_image(matches.places, errors.kinds == RIGHT)
    wrong = per_image(matches.places, errors.kinds >= 0)
    missed = per_image(matches.object_places, errors.missed)
    unfound = per_image(matches.object_places, ~errors.found)
    f1 = 2 * right / np.maximum(2 * right + wrong + unfound, 1)
    counts = wrong + missed
    order = np.lexsort((f1, -counts))[:most]
    return [(int(n), int(counts[n]), float(f1[n])) for n in order if counts[n]]


def _draw_worst(
    data: DetectionData,
    matches: Matches,
    errors: Errors,
    worst: Sequence[tuple[int, int, float]],
    kind: str,
    results: Sequence[dict[str, Any]],
    names: Sequence[str],
    options: ReportOptions,
) -> list[tuple[dict[str, Any], PagePicture]]:
    drawn = []
    kind_of_object = _kinds_of_objects(errors)
    for place, count, f1 in worst:
        id_ = matches.images[place]
        path = data.images.paths.get(id_)
        entry = {
            "image": path or str(data.truth.imgs[id_].get("file_name")),
            "errors": count,
            "f1": f1,
        }
        caption = f"{entry['image']}: {count} errors, F1 {f1:.2f}"
        image = read_or_warn(data.images, path)
        if image is None:
            drawn.append((entry, PagePicture(None, caption)))
            continue

        def outline(annotation: dict[str, Any], shape: tuple = image.shape[:2]) -> list[np.ndarray]:
            if kind == "bbox":
                return box_outline(annotation["bbox"])
            mask = annotation["segmentation"]
            return mask_outline(coco_mask.decode(mask)) if tuple(mask["size"]) == shape else []

        objects = [
            Shape(
                outline(data.truth.anns[matches.object_ids[number]]),
                names[matches.object_labels[number]],
                int(kind_of_object[number]),
            )
            for number in np.flatnonzero(matches.object_places == place)
        ]
        detections = [
            Shape(
                outline(results[matches.ids[number]]),
                f"{names[matches.labels[number]]} {matches.scores[number]:.2f}",
                int(errors.kinds[number]),
            )
            for number in np.flatnonzero((matches.places == place) & (errors.kinds != UNUSED))
        ]
        name = picture_name(len(drawn) + 1)
        draw_detections(image, objects, detections, options.out_dir / name)
        drawn.append((entry | {"picture": name}, PagePicture(name, caption)))
    return drawn


def _kinds_of_objects(errors: Errors) -> np.ndarray:
    """Of each object: RIGHT, missed, or the kind of the error of what was nearly it."""
    kinds = np.full(len(errors.found), len(KINDS) - 1)
    for number in (1, 0):
        kinds[errors.targets[errors.kinds == number]] = number
    kinds[errors.found] = RIGHT
    return kinds
