"""Figures with few and many classes, pictures, and the page."""

from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from coco_cases import random_case

from flatten_det.lab.evaluation.detections import evaluate_detections
from flatten_det.lab.evaluation.error_kinds import KINDS, RIGHT
from flatten_det.lab.evaluation.figures import (
    confused_pairs,
    draw_classes,
    draw_confusion,
    draw_curves,
    draw_kinds,
    shown,
)
from flatten_det.lab.evaluation.pictures import (
    Shape,
    box_outline,
    class_colours,
    draw_detections,
    draw_labels,
    mask_outline,
)
from flatten_det.lab.evaluation.report import PagePicture, Rows, Section, write_page

HOSTILE = '<script>"$x$"\n\x1b[2J'


def drawn(path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    return image


@pytest.mark.parametrize("classes", [1, 9])
def test_figures(tmp_path, classes):
    """Names are hostile; the last class has no object."""
    found = evaluate_detections(*random_case(0, 6, classes), "bbox")
    names = [HOSTILE] * classes
    values = found.measures["ap"].copy()
    if classes > 1:
        values[-1] = np.nan
    draw_classes(
        names, {"AP": values, "AP50": found.measures["ap50"]}, "AP", tmp_path / "classes.png"
    )
    draw_curves(names, found.recalls, found.curves, "PR", tmp_path / "curves.png")
    matrix = np.arange((classes + 1) ** 2).reshape(classes + 1, -1)
    draw_confusion([*names, "background"], matrix, classes, "matrix", tmp_path / "confusion.png")
    for name in ("classes", "curves", "confusion"):
        assert drawn(tmp_path / f"{name}.png").std() > 10


def test_nothing_to_draw(tmp_path):
    none = np.full(2, np.nan)
    draw_classes(["a", "b"], {"AP": none}, "AP", tmp_path / "classes.png")
    draw_curves(["a", "b"], np.zeros(101), np.full((2, 2, 101), np.nan), "PR", tmp_path / "c.png")
    nothing = dict.fromkeys(KINDS, float("nan"))
    draw_kinds(nothing, dict.fromkeys(KINDS, 0), "kinds", "errors", tmp_path / "kinds.png")
    assert all(drawn(path).size for path in tmp_path.iterdir())


def test_many_classes_are_drawn_as_pairs(tmp_path):
    """The figure does not grow with the classes."""
    sizes = []
    for classes in (40, 150):
        matrix = np.eye(classes, dtype=int) * 9
        matrix[1, 2], matrix[3, 4] = 3, 1
        draw_confusion(["n"] * classes, matrix, classes, "matrix", tmp_path / "confusion.png")
        sizes.append(drawn(tmp_path / "confusion.png").shape)
    assert sizes[0] == sizes[1]
    assert confused_pairs(matrix, 150) == [(1, 2, 3, 0.25), (3, 4, 1, 0.1)]


def test_the_background_is_no_confused_class():
    assert confused_pairs(np.array([[0, 0, 5], [1, 0, 3], [7, 7, 0]]), 2) == [(1, 0, 1, 0.25)]


def test_names_are_shown_without_control_characters_and_formulas():
    assert shown(HOSTILE) == r'<script>"\$x\$"\n\x1b[2J'
    assert shown("n" * 30) == "n" * 23 + "…"


def test_picture_of_detections(tmp_path):
    image = np.full((60, 90, 3), 128, np.uint8)
    mask = np.zeros((60, 90), np.uint8)
    mask[30:50, 30:50] = 1
    (outline,) = mask_outline(mask)
    assert (outline.min(0).tolist(), outline.max(0).tolist()) == ([30, 30], [49, 49])
    shapes = [Shape(box_outline((5, 5, 20, 10)), HOSTILE, kind) for kind in range(len(KINDS) - 1)]
    objects = [Shape([outline], "a", RIGHT), Shape([], "b", len(KINDS) - 1)]
    draw_detections(image, objects, shapes, tmp_path / "some.png")
    draw_detections(image[:2], [], [], tmp_path / "none.png")
    assert drawn(tmp_path / "some.png").std() > drawn(tmp_path / "none.png").std() * 0.5


def test_picture_of_labels(tmp_path):
    truth = np.zeros((30, 150), np.int16)
    truth[:, 70:] = 1
    truth[:5] = 255
    predicted = np.full_like(truth, 1)
    image = np.zeros((300, 1500, 3), np.uint8)
    colours = class_colours(None, 2)
    draw_labels(image, truth, predicted, 255, ["a", HOSTILE], colours, tmp_path / "labels.png")
    picture = drawn(tmp_path / "labels.png")
    # Of the last panel, the left half is wrong, and its top is grey.
    panel = picture[picture.shape[0] // 2 :, picture.shape[1] // 2 :]
    assert (panel < 20).mean() > 0.15
    assert ((panel > 120) & (panel < 160)).mean() > 0.03


def test_colours_of_classes():
    assert class_colours([[1, 2, 3], [4, 5, 6]], 2).tolist() == [[1, 2, 3], [4, 5, 6]]
    for palette in (None, [], [[1, 2, 3]], [["a", "b", "c"]] * 150):
        colours = class_colours(palette, 150)
        assert len(np.unique(colours, axis=0)) > 100


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.sources, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)


def test_page_escapes_names(tmp_path):
    rows = Rows(HOSTILE, ("class", "AP"), [[HOSTILE, "0.5"]])
    picture = PagePicture("worst/a b<'\".png", HOSTILE)
    write_page(
        tmp_path / "index.html", HOSTILE, HOSTILE, [Section(HOSTILE, HOSTILE, [rows, picture])]
    )
    tags = Tags()
    tags.feed((tmp_path / "index.html").read_text())
    assert "script" not in tags.tags
    assert tags.sources == ["worst/a%20b%3C%27%22.png"] * 2
    assert tags.texts.count(r'<script>"$x$"\n\x1b[2J') == 8
