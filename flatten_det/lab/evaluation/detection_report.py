"""The report on a detector or an instance segmentor."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ...errors import UserError, reason_of, warn_once
from .collect import DetectionData
from .detections import MEASURES, Evaluation, Matches, best_threshold, evaluate_detections, mean_of
from .error_kinds import KINDS, RIGHT, UNUSED, Errors, confusion_matrix, find_errors, gains
from .figures import draw_classes, draw_confusion, draw_curves, draw_kinds
from .pictures import Shape, box_outline, draw_detections, mask_outline
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

_TITLES = {"bbox": "Boxes", "segm": "Masks"}
_HEADS = ("AP", "AP50", "AP75", "small", "medium", "large", "AR")  # of MEASURES


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
        content[kind], table = _detection_numbers(found, errors, names, _TITLES[kind])
        tables.append(table)
        sections.append(_detection_section(kind, found, content[kind], names, table, options))
    # Pictures are of the last kind: of masks, if there are any.
    worst = _worst_images(data, found.matches, errors, kind, results, names, options.worst)
    text = (
        f"{_TITLES[kind]}, errors with a score of at least {options.threshold:g}. Beside what is wrong stand "
        "the class, the score and the kind of the error."
    )
    content["worst"], section = worst_section(
        "Images with most errors", text, worst, data.images, options.out_dir
    )
    if data.left_out:
        warn_once(
            f"{data.left_out} images have no entry in the file of predictions: they are left out"
        )
    return Report(content, [*sections, section], tables, data.unreadable)


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
    classes = []
    for label, name in enumerate(names):
        own = (matches.labels == label) & ~matches.ignored
        wrong = errors.kinds[matches.labels == label]
        counts = {kind: int((wrong == number).sum()) for number, kind in enumerate(KINDS[:-1])}
        counts[KINDS[-1]] = int(errors.missed[matches.object_labels == label].sum())
        classes.append(
            {
                "name": name,
                "objects": int(objects[label]),
                **{key: float(values[label]) for key, values in found.measures.items()},
                "best_f1": best_threshold(
                    matches.scores[own], matches.matched[own] >= 0, objects[label]
                ),
                "errors": counts,
                "precision_at_iou50": found.curves[0, label].tolist(),
                "precision_mean": found.curves[1, label].tolist(),
            }
        )
    numbers = {
        **{key: mean_of(values) for key, values in found.measures.items()},
        "objects": int(objects.sum()),
        "errors": errors.counts(),
        "errors_at_any_score": find_errors(matches).counts(),
        "gain_in_ap50": gained,
        "confusion": confusion_matrix(matches, errors).tolist(),
        "recalls": found.recalls.tolist(),
        "per_class": classes,
    }
    columns = ("class", "objects", *_HEADS, "best score", "F1 there", "errors", "mostly")
    shown = [entry for entry in classes if entry["objects"] or any(entry["errors"].values())]
    rows = [_class_row(entry) for entry in sorted(shown, key=lambda e: nan_last(e["ap"]))]
    ap, ap50 = number_text(numbers["ap"]), number_text(base)
    caption = f"{title}: AP {ap}, AP50 {ap50}; per class, the lowest AP first"
    return numbers, Rows(caption + left_out_note(classes, shown), columns, rows)


def _class_row(entry: dict[str, Any]) -> list[str]:
    best, errors = entry["best_f1"] or {}, entry["errors"]
    kind = max(errors, key=errors.get)
    return [
        entry["name"],
        f"{entry['objects']:,}",
        *(number_text(entry[key]) for key in MEASURES),
        number_text(best.get("threshold")),
        number_text(best.get("f1")),
        f"{sum(errors.values()):,}",
        kind if errors[kind] else "",
    ]


def _detection_section(
    kind: str,
    found: Evaluation,
    numbers: dict[str, Any],
    names: Sequence[str],
    table: Rows,
    options: ReportOptions,
) -> Section:
    """Draw the figures of one kind of IoU, and put them together with its tables."""
    title, least = _TITLES[kind], f"{options.threshold:g}"
    gained, counts, every = (
        numbers[key] for key in ("gain_in_ap50", "errors", "errors_at_any_score")
    )
    confusion = np.array(numbers["confusion"])

    def place(figure: str) -> Path:
        return options.out_dir / f"{kind}_{figure}.png"

    aps = {"AP": found.measures["ap"], "AP50": found.measures["ap50"]}
    draw_classes(names, aps, f"{title}: AP", place("classes"))
    head = f"{title}: precision over recall; beside the name, AP50"
    draw_curves(names, found.recalls, found.curves, head, place("curves"))
    head = f"{title}: objects by class, at IoU 0.5 and a score of at least {least}"
    draw_confusion([*names, "background"], confusion, len(names), head, place("confusion"))
    head = f"{title}: kinds of errors; AP50 is {100 * numbers['ap50']:.1f}"
    counted = f"errors with a score of at least {least}"
    draw_kinds(gained, counts, head, counted, place("kinds"))
    kinds = Rows(
        "Kinds of errors (TIDE), and what mending one kind alone would gain",
        ("kind", "gain in AP50", f"from score {least}", "at any score"),
        [[k, number_text(gained[k]), f"{counts[k]:,}", f"{every[k]:,}"] for k in KINDS],
    )
    about_kinds = (
        "classification: right place, wrong class; localisation: right class, IoU from 0.1 to 0.5; both: "
        "wrong class and IoU from 0.1 to 0.5; duplicate: the object is found already; background: no object "
        "there; missed: not found, nor nearly."
    )
    background = "objects that nothing found, and detections that found nothing"
    measured = [
        f"{name} {text}"
        for name, key in zip(_HEADS, MEASURES, strict=True)
        if key != "ap75" and (text := number_text(numbers[key]))
    ]
    parts = [
        kinds,
        PagePicture(f"{kind}_kinds.png", about_kinds),
        table,
        PagePicture(f"{kind}_classes.png", "AP and AP50 of each class."),
        pairs_table(confusion, names, "objects"),
        PagePicture(f"{kind}_confusion.png", matrix_caption(len(names), background)),
        PagePicture(f"{kind}_curves.png", "Precision over recall of each class that has objects."),
    ]
    return Section(title, f"{numbers['objects']:,} objects. {', '.join(measured)}.", parts)


def _worst_images(
    data: DetectionData,
    matches: Matches,
    errors: Errors,
    kind: str,
    results: Sequence[dict[str, Any]],
    names: Sequence[str],
    most: int,
) -> Iterator[WorstImage]:
    """Those with most errors, by what is drawn of them."""
    kind_of_object = _kinds_of_objects(errors)
    for place, count, f1 in _most_errors(matches, errors, most):
        id_ = matches.images[place]
        path = data.images.paths.get(id_)
        name = path or str(data.truth.imgs[id_].get("file_name"))
        objects = [
            (
                data.truth.anns[matches.object_ids[number]],
                names[matches.object_labels[number]],
                int(kind_of_object[number]),
            )
            for number in np.flatnonzero(matches.object_places == place)
        ]
        detections = [
            (
                results[matches.ids[number]],
                f"{names[matches.labels[number]]} {matches.scores[number]:.2f}",
                int(errors.kinds[number]),
            )
            for number in np.flatnonzero((matches.places == place) & (errors.kinds != UNUSED))
        ]
        yield WorstImage(
            {"image": name, "errors": count, "f1": f1},
            path,
            f"{name}: {count} errors, F1 {f1:.2f}",
            partial(_draw, kind, objects, detections),
        )


def _most_errors(matches: Matches, errors: Errors, most: int) -> list[tuple[int, int, float]]:
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


_Drawn = tuple[dict[str, Any], str, int]  # an annotation or a result, its name, its kind of error


def _draw(
    kind: str,
    objects: Sequence[_Drawn],
    detections: Sequence[_Drawn],
    image: np.ndarray,
    path: Path,
) -> None:
    def outline(shape: dict[str, Any]) -> list[np.ndarray]:
        if kind == "bbox":
            return box_outline(shape["bbox"])
        mask = shape["segmentation"]
        fits = tuple(mask["size"]) == image.shape[:2]
        return mask_outline(coco_mask.decode(mask)) if fits else []

    shapes = [[Shape(outline(x), *rest) for x, *rest in each] for each in (objects, detections)]
    draw_detections(image, *shapes, path)


def _kinds_of_objects(errors: Errors) -> np.ndarray:
    """Of each object: RIGHT, missed, or the kind of the error of what was nearly it."""
    kinds = np.full(len(errors.found), len(KINDS) - 1)
    for number in (1, 0):
        kinds[errors.targets[errors.kinds == number]] = number
    kinds[errors.found] = RIGHT
    return kinds
