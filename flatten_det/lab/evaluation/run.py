"""From predictions and truth to numbers, figures, pictures and the page."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from pycocotools import mask as coco_mask

from ...data.loading import ImageError
from ...errors import UserError, warn_once
from ...files.atomic import refuse_overwriting
from ...predict.drawing import SCORE_THRESHOLD
from ...predict.evaluate import run_test
from ..benchmark.report import write_json
from .collect import (
    DETECTION,
    PANOPTIC,
    CollectPanoptic,
    CollectPixels,
    DetectionData,
    ImageFiles,
    find_task,
    predict_detections,
    read_predictions,
)
from .detections import KEYS, SIZES, Evaluation, best_threshold, evaluate_detections, mean_of
from .error_kinds import KINDS, RIGHT, UNUSED, Errors, confusion_matrix, find_errors, gains
from .figures import LARGEST_MATRIX, confused_pairs, draw_classes, draw_confusion, draw_curves
from .figures import PAIRS as MOST_PAIRS
from .figures import draw_kinds as draw_error_kinds
from .page import Picture, Rows, Section, write_page
from .pictures import Shape, box_outline, class_colours, draw_detections, draw_labels, mask_outline
from .pixels import BAND, class_measures

JSON, PAGE, WORST = "report.json", "index.html", "worst"
_FIGURES = ("classes", "curves", "confusion", "kinds")
_TITLES = {"bbox": "Boxes", "segm": "Masks"}


@dataclass(frozen=True)
class Options:
    """What to write, and where."""

    out_dir: Path
    threshold: float = SCORE_THRESHOLD  # detections below do not count as errors, but for AP
    worst: int = 12  # pictures

    def check(self, inputs: Sequence[str | Path | None]) -> Callable[[ImageFiles], None]:
        """What refuses to write over one of these files, or over an image."""

        def refuse(images: ImageFiles) -> None:
            kinds = ("", *(f"{kind}_" for kind in KEYS))
            figures = [f"{kind}{figure}.png" for kind in kinds for figure in _FIGURES]
            pictures = [picture_name(number) for number in range(1, self.worst + 1)]
            outputs = [self.out_dir / name for name in (JSON, PAGE, *figures, *pictures)]
            refuse_overwriting([*filter(None, inputs), *images.paths.values()], outputs, "--out-dir")

        return refuse


def picture_name(number: int) -> str:
    """The file of a worst image's picture, below the page's folder."""
    return f"{WORST}/{number:02d}.png"


@dataclass(frozen=True)
class Report:
    """What was found."""

    content: dict[str, Any]  # of report.json
    sections: list[Section]  # of the page
    tables: list[Rows]  # of the console
    unreadable: UserError | None = None  # names the images that were left out


def evaluate_model(
    cfg: Config,
    checkpoint: str | None,
    predictions: Path | None,
    options: Options,
    about: dict[str, Any],
) -> Report:
    """Analyse a checkpoint on a config's test data, or the predictions of a file, and write all.

    Args:
        cfg: a complete config.
        checkpoint: weights to test; None if there are predictions.
        predictions: of detection, see :func:`.collect.read_predictions`.
        options: what to write.
        about: what ``report.json`` says first.

    Raises:
        UserError: Something does not fit, or nothing can be read or analysed.
    """
    task = find_task(cfg)
    check = options.check([cfg.filename, checkpoint, predictions])
    if predictions is not None and task != DETECTION:
        raise UserError(
            f"--predictions is for detection, and config file {cfg.filename} is for {task}: give its checkpoint"
        )
    with warnings.catch_warnings():
        # Names in scripts that matplotlib's font does not have; the page has them.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        if task == DETECTION:
            data = (
                predict_detections(cfg, checkpoint, check)
                if predictions is None
                else read_predictions(cfg, predictions, check)
            )
            report = _of_detection(data, options)
        elif task == PANOPTIC:
            report = _of_panoptic(cfg, checkpoint, options, check)
        else:
            report = _of_segmentation(cfg, checkpoint, options, check)
        write_json(about | {"task": task} | report.content, options.out_dir / JSON)
        text = "; ".join(f"{key}: {value}" for key, value in about.items() if value is not None)
        write_page(options.out_dir / PAGE, "Where the model errs", text, report.sections)
    return report


def _of_detection(data: DetectionData, options: Options) -> Report:
    names = [str(data.truth.cats[id_]["name"]) for id_ in data.categories]
    content: dict[str, Any] = {
        "images": len(data.image_ids),
        "images_without_predictions_file_entry": data.left_out,
        "score_threshold": options.threshold,
        "classes": names,
    }
    sections, tables = [], []
    for kind, results in data.results.items():
        found = evaluate_detections(
            data.truth,
            results,
            kind,
            data.categories,
            data.image_ids,
            data.ious,
            data.max_detections,
        )
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
            f"{_TITLES[kind]}, errors with a score of at least {options.threshold:g}. Beside each outline that is "
            "no success stands the class and the kind of the error.",
            [picture for _, picture in pictures],
        )
    )
    if data.left_out:
        warn_once(f"{data.left_out} images have no entry in the file of predictions: they are left out")
    return Report(content, sections, tables, data.unreadable)


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
    rows = [_class_row(entry) for entry in sorted(classes, key=lambda e: _nan_last(e["ap"]))]
    caption = f"{title}: AP {_number(numbers['ap'])}, AP50 {_number(base)}, per class, the lowest AP first"
    return numbers, Rows(caption, columns, rows)


def _class_row(entry: dict[str, Any]) -> list[str]:
    best, errors = entry["best_f1"] or {}, entry["errors"]
    kind = max(errors, key=errors.get)
    keys = ("ap", "ap50", "ap75", *(f"ap_{size}" for size in SIZES), "ar")
    return [
        entry["name"],
        f"{entry['objects']:,}",
        *(_number(entry[key]) for key in keys),
        _number(best.get("threshold")),
        _number(best.get("f1")),
        f"{sum(errors.values()):,}",
        kind if errors[kind] else "",
    ]


def _number(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.3f}"


def _nan_last(value: float) -> float:
    return np.inf if np.isnan(value) else value


def _draw_detection(
    found: Evaluation,
    errors: Errors,
    numbers: dict[str, Any],
    confusion: np.ndarray,
    names: Sequence[str],
    kind: str,
    options: Options,
) -> None:
    def place(figure: str) -> Path:
        return options.out_dir / f"{kind}_{figure}.png"

    title = _TITLES[kind]
    draw_classes(names, {"AP": found.ap, "AP50": found.ap50}, f"{title}: AP", place("classes"))
    head = f"{title}: precision over recall; beside the name, AP50"
    draw_curves(names, found.recalls, found.curves, head, place("curves"))
    head = f"{title}: objects by class, at IoU 0.5 and a score of at least {options.threshold:g}"
    draw_confusion([*names, "background"], confusion, len(names), head, place("confusion"))
    draw_error_kinds(
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
    options: Options,
) -> Section:
    every = numbers["errors_at_any_score"]
    kinds = [
        [each, _number(100 * numbers["gain_in_ap50"][each]), f"{numbers['errors'][each]:,}", f"{every[each]:,}"]
        for each in KINDS
    ]  # fmt: skip
    return Section(
        _TITLES[kind],
        f"{numbers['objects']:,} objects; AP {_number(numbers['ap'])}, AP50 {_number(numbers['ap50'])}, small "
        f"{_number(numbers['ap_small'])}, medium {_number(numbers['ap_medium'])}, large "
        f"{_number(numbers['ap_large'])}, AR {_number(numbers['ar'])}.",
        [
            Rows(
                "Kinds of errors (TIDE), and what mending one kind alone would gain",
                ("kind", "AP50 points", f"errors from score {options.threshold:g}", "at any score"),
                kinds,
            ),
            Picture(
                f"{kind}_kinds.png",
                "classification: right place, wrong class; localisation: right class, IoU from 0.1 to 0.5; both: "
                "wrong class and IoU from 0.1 to 0.5; duplicate: the object is found already; background: no "
                "object there; missed: not found, nor nearly.",
            ),
            table,
            Picture(f"{kind}_classes.png", "AP and AP50 of each class."),
            _pairs_table(confusion, names, "objects"),
            Picture(
                f"{kind}_confusion.png",
                _matrix_caption(len(names), "objects that no detection found, and detections on none"),
            ),
            Picture(f"{kind}_curves.png", "Precision over recall of each class that has objects."),
        ],
    )


def _matrix_caption(classes: int, background: str) -> str:
    if classes > LARGEST_MATRIX:
        return f"The most confused pairs of {classes} classes; the whole matrix is in {JSON}."
    row = f" The background stands for {background}." if background else ""
    return f"Truth by row, prediction by column, in % of the row.{row}"


def _pairs_table(confusion: np.ndarray, names: Sequence[str], what: str) -> Rows:
    pairs = confused_pairs(confusion, len(names))
    rows = [
        [f"{names[row]} → {names[column]}", f"{count:,}", f"{share:.1%}"]
        for row, column, count, share in pairs[:MOST_PAIRS]
    ]
    return Rows(
        "Most confused classes, truth → prediction", ("pair", what, "of the true class"), rows
    )


def _worst_images(matches: Any, errors: Errors, most: int) -> list[tuple[int, int, float]]:
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
    matches: Any,
    errors: Errors,
    worst: Sequence[tuple[int, int, float]],
    kind: str,
    results: Sequence[dict[str, Any]],
    names: Sequence[str],
    options: Options,
) -> list[tuple[dict[str, Any], Picture]]:
    drawn = []
    kind_of_object = _kinds_of_objects(errors)
    for place, count, f1 in worst:
        path = data.images.paths.get(matches.images[place])
        image = _read(data.images, path)
        if image is None:
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
        entry = {"image": path, "errors": count, "f1": f1, "picture": name}
        drawn.append((entry, Picture(name, f"{path}: {count} errors, F1 {f1:.2f}")))
    return drawn


def _kinds_of_objects(errors: Errors) -> np.ndarray:
    """Of each object: RIGHT, missed, or the kind of the error of what was nearly it."""
    kinds = np.full(len(errors.found), len(KINDS) - 1)
    for number in (1, 0):
        kinds[errors.targets[errors.kinds == number]] = number
    kinds[errors.found] = RIGHT
    return kinds


def _read(images: ImageFiles, path: str | None) -> np.ndarray | None:
    if path is None:
        return None
    try:
        return images.read(path)
    except ImageError as error:
        warn_once(f"no picture: {error}")
        return None


def _of_segmentation(
    cfg: Config, checkpoint: str, options: Options, check: Callable[[ImageFiles], None]
) -> Report:
    hook = CollectPixels(options.worst, check)
    tested = run_test(cfg, checkpoint, [hook])
    counts, names = hook.counts, [str(name) for name in hook.classes]
    measures = class_measures(counts.confusion)
    total = counts.confusion.sum()
    accuracy = float(np.trace(counts.confusion[:-1, :-1])) / max(int(counts.confusion[:-1].sum()), 1)
    classes = [
        {
            "name": name,
            **{key: float(values[label]) for key, values in measures.items()},
            "recall": float(measures["accuracy"][label]),
        }
        for label, name in enumerate(names)
    ]
    boundary = counts.boundary()
    means = {f"mean_{key}": mean_of(measures[key]) for key in ("iou", "accuracy", "precision")}
    has_others = bool(counts.confusion[-1].sum() + counts.confusion[:, -1].sum())
    drawn_names = [*names, "other labels"] if has_others else names
    title = "Pixels by class"
    series = {"IoU": measures["iou"], "recall": measures["accuracy"], "precision": measures["precision"]}
    draw_classes(names, series, "IoU", options.out_dir / "classes.png")
    path = options.out_dir / "confusion.png"
    draw_confusion(drawn_names, counts.confusion, len(names), title, path)
    colours = class_colours(hook.palette, len(names))
    worst = []
    for found in hook.worst():
        image = _read(hook.images, found.path)
        if image is None or image.shape[:2] != found.truth.shape:
            continue
        name = picture_name(len(worst) + 1)
        labels = found.truth, found.predicted
        draw_labels(image, *labels, counts.ignored, names, colours, options.out_dir / name)
        entry = {"image": found.path, "wrong": found.wrong, "mean_iou": found.iou, "picture": name}
        caption = f"{found.path}: {found.wrong:.1%} of the pixels wrong, mean IoU {found.iou:.2f}"
        worst.append((entry, Picture(name, caption)))
    rows = [
        [
            entry["name"],
            f"{entry['pixels'] / max(total, 1):.2%}",
            *(_number(entry[key]) for key in ("iou", "accuracy", "precision")),
        ]
        for entry in sorted(classes, key=lambda entry: _nan_last(entry["iou"]))
    ]
    table = Rows(
        f"Mean IoU {_number(means['mean_iou'])}, accuracy {_number(accuracy)}; per class, the lowest IoU first",
        ("class", "of all pixels", "IoU", "accuracy (recall)", "precision"),
        rows,
    )
    content = {
        "images": len(hook.scores),
        "classes": names,
        "accuracy": accuracy,
        **means,
        "boundary": boundary | {"reach": f"{BAND:g} of an image's diagonal"},
        "per_class": classes,
        "confusion": counts.confusion.tolist(),
        "per_image": [
            {"image": path, "wrong": wrong, "mean_iou": iou}
            for path, (wrong, iou) in hook.scores.items()
        ],
        "worst": [entry for entry, _ in worst],
    }
    sections = [
        Section(
            "Classes",
            _boundary_text(boundary),
            [
                table,
                Picture("classes.png", "IoU, recall and precision of each class."),
                _pairs_table(counts.confusion, names, "pixels"),
                Picture("confusion.png", _matrix_caption(len(names), "")),
            ],
        ),
        Section(
            "Images with most wrong pixels",
            "By the share of the pixels that count. Classes of more than 1 % of the image are named in it.",
            [picture for _, picture in worst],
        ),
    ]
    return Report(content, sections, [table], tested.unreadable)


def _boundary_text(boundary: dict[str, float | None]) -> str:
    if boundary["share_of_errors"] is None:
        return "No pixel is wrong."
    return (
        f"{boundary['share_of_errors']:.1%} of the wrong pixels lie near boundaries of the truth (within "
        f"{BAND:.0%} of the image's diagonal), where {boundary['share_of_pixels']:.1%} of all pixels are."
    )


def _of_panoptic(
    cfg: Config, checkpoint: str, options: Options, check: Callable[[ImageFiles], None]
) -> Report:
    hook = CollectPanoptic(check)
    tested = run_test(cfg, checkpoint, [hook])
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
    images.sort(key=lambda each: (-each["wrong"] - each["missed"], _nan_last(each["pq"])))
    names = [each["name"] for each in classes]
    series = {key.upper(): np.array([each[key] for each in classes]) for key in ("pq", "sq", "rq")}
    draw_classes(names, series, "PQ", options.out_dir / "classes.png")
    rows = [
        [
            each["name"],
            "thing" if each["thing"] else "stuff",
            *(_number(each[key]) for key in ("pq", "sq", "rq")),
            *(f"{each[key]:,}" for key in ("matched", "wrong", "missed")),
        ]
        for each in sorted(classes, key=lambda each: _nan_last(each["pq"]))
    ]
    head = ", ".join(f"{name} {_number(mean['pq'])}" for name, mean in averages.items())
    table = Rows(
        f"PQ: {head}; per class, the lowest PQ first",
        ("class", "kind", "PQ", "SQ", "RQ", "matched", "wrong", "missed"),
        rows,
    )
    worst = Rows(
        "Images with most wrong and missed segments",
        ("image", "PQ", "wrong", "missed"),
        [
            [each["image"], _number(each["pq"]), str(each["wrong"]), str(each["missed"])]
            for each in images[: options.worst]
        ],
    )
    parts = [table, Picture("classes.png", "PQ, SQ and RQ of each class."), worst]
    text = (
        "PQ = SQ x RQ. SQ is the mean IoU of matched segments; RQ falls with wrong segments, which match none of "
        "the truth, and with missed ones. For pictures: flatten-det test --show-dir."
    )
    content = {"images": len(images), **averages, "per_class": classes, "per_image": images}
    return Report(content, [Section("Classes", text, parts)], [table], tested.unreadable)
