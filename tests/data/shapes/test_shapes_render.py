import cv2
import numpy as np
import pytest

from flatten_det.data.shapes import render as render_module
from flatten_det.data.shapes.options import CLASSES, ShapesOptions
from flatten_det.data.shapes.render import FIELDS, blend, random_field, random_outline, render

SMALL = {"image_size": (96, 128), "object_size": (8, 64)}
LEGEND = dict(image_size=(128, 64), object_size=(10, 15), legend=(2, 6), legend_distance=72)


def _boxes(drawn):
    """Boxes of the visible masks as (x, y, width, height)."""
    return np.array(
        [cv2.boundingRect(np.uint8(drawn.owner == i)) for i in range(len(drawn.labels))]
    )


@pytest.mark.parametrize("values", [SMALL, LEGEND])
def test_an_image_depends_on_seed_split_and_index_alone(values):
    options = ShapesOptions(**values)
    first = render(options, "train", 3)
    others = [render(options, "train", 4), render(options, "val", 3)]
    others.append(render(ShapesOptions(**values, seed=1), "train", 3))
    more = ShapesOptions(**values, num_images={"train": 7})
    for again in (render(options, "train", 3), render(more, "train", 3)):
        for array, repeated in zip(first, again, strict=True):
            np.testing.assert_array_equal(array, repeated)
    assert all((other.image != first.image).mean() > 0.5 for other in others)


def test_arrays_are_as_documented():
    drawn = render(ShapesOptions(**SMALL), "train", 0)
    assert drawn.image.shape == (96, 128, 3)
    assert drawn.image.dtype == np.uint8
    assert drawn.owner.shape == (96, 128)
    assert drawn.owner.dtype == np.int16
    assert drawn.labels.dtype == np.int64
    assert set(np.unique(drawn.owner)) == {-1, *range(len(drawn.labels))}


def test_images_differ_in_size_within_the_range():
    options = ShapesOptions(image_size=((32, 48), (96, 64)), object_size=(8, 32))
    drawn = [render(options, "val", i) for i in range(200)]
    sizes = np.array([d.owner.shape for d in drawn])
    assert all(d.image.shape == (*d.owner.shape, 3) for d in drawn)
    for side, low, high in ((sizes[:, 0], 32, 96), (sizes[:, 1], 48, 64)):
        assert (side.min(), side.max()) == (low, high)
        assert side.mean() == pytest.approx((low + high) / 2, rel=0.06)
    assert abs(np.corrcoef(sizes.T)[0, 1]) < 0.2
    # A range of one size is that size.
    one = ShapesOptions(image_size=((96, 128), (96, 128)), object_size=(8, 64))
    drawn = [render(options, "val", 0).image for options in (one, ShapesOptions(**SMALL))]
    np.testing.assert_array_equal(*drawn)


def test_sizes_are_log_uniform_within_the_range():
    options = ShapesOptions(image_size=128, object_size=(16, 100), objects_per_image=(1, 1))
    sizes = np.array([_boxes(render(options, "train", i))[0, 2:].max() for i in range(300)])
    # Rasterisation moves a side by less than a pixel at either end.
    assert sizes.min() >= 15
    assert sizes.max() <= 101
    quartiles = np.quantile(sizes, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quartiles, 16 * (100 / 16) ** np.array([0.25, 0.5, 0.75]), rtol=0.15)


def test_an_object_may_fill_the_image():
    options = ShapesOptions(image_size=64, object_size=(64, 64), objects_per_image=(1, 1))
    assert _boxes(render(options, "val", 0))[0, 2:].max() >= 63


def test_number_of_objects_stays_in_its_range():
    options = ShapesOptions(image_size=128, object_size=(8, 24), objects_per_image=(0, 3))
    counts = np.bincount([len(render(options, "train", i).labels) for i in range(200)])
    assert len(counts) == 4
    assert counts.min() > 25


def test_classes_are_balanced_and_independent_of_colour():
    options = ShapesOptions(image_size=96, object_size=(16, 40), objects_per_image=(2, 4))
    colours = [[] for _ in CLASSES]
    for index in range(250):
        drawn = render(options, "train", index)
        for i, label in enumerate(drawn.labels):
            colours[label].append(drawn.image[drawn.owner == i].mean(axis=0))
    counts = np.array([len(of_class) for of_class in colours])
    expected = counts.mean()
    assert ((counts - expected) ** 2 / expected).sum() < 20.5  # Chi-square, 5 degrees, p = 0.001.
    means = np.array([np.mean(of_class, axis=0) for of_class in colours])
    deviations = np.array([np.std(of_class, axis=0) for of_class in colours])
    assert deviations.min() > 35
    standard_error = deviations / np.sqrt(counts)[:, None]
    assert (np.abs(means - means.mean(axis=0)) < 4 * standard_error).all()


@pytest.mark.parametrize("min_visible", [0.3, 0.7, 1.0])
def test_every_painted_object_is_labelled_and_visible_enough(monkeypatch, min_visible):
    painted = []
    paint = render_module._paint

    def recording_paint(rng, canvas, window, alpha, contrast):
        painted.append(alpha)
        paint(rng, canvas, window, alpha, contrast)

    monkeypatch.setattr(render_module, "_paint", recording_paint)
    options = ShapesOptions(
        image_size=96, object_size=(10, 60), objects_per_image=(6, 8), min_visible=min_visible
    )
    shares, some_edge_is_soft = [], False
    for index in range(40):
        painted.clear()
        drawn = render(options, "train", index)
        assert len(painted) == len(drawn.labels)
        for i, alpha in enumerate(painted):
            shares.append((drawn.owner == i).sum() / (alpha >= 0.5).sum())
            some_edge_is_soft |= bool(((alpha > 0.1) & (alpha < 0.9)).any())
    assert min(shares) >= min_visible
    assert max(shares) == 1
    # Objects do hide each other as far as allowed.
    assert min(shares) < min_visible + 0.1
    assert some_edge_is_soft


def test_objects_stand_out_from_their_surroundings():
    options = ShapesOptions(image_size=96, object_size=(12, 40), objects_per_image=(3, 6))
    contrasts = []
    for index in range(150):
        drawn = render(options, "train", index)
        lab = cv2.cvtColor(drawn.image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        for i in range(len(drawn.labels)):
            inside = np.uint8(drawn.owner == i)
            outside = cv2.dilate(inside, np.ones((5, 5), np.uint8)) > inside
            contrasts.append(np.linalg.norm(lab[inside > 0].mean(0) - lab[outside].mean(0)))
    # Under 25 only where others were painted around it later; 8 % of random colours fall under it.
    assert np.mean(np.array(contrasts) < 25) < 0.02
    assert min(contrasts) > 5  # About 2 is just noticeable.


def _classify(mask):
    """Name the class of a whole object by textbook shape measures of its mask."""
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if (hierarchy[0, :, 3] >= 0).any():
        return "ring"
    hull = cv2.convexHull(contours[0])
    solidity = mask.sum() / cv2.contourArea(hull)
    if solidity < 0.9:
        corners = cv2.approxPolyDP(hull, 0.06 * cv2.arcLength(hull, True), True)
        return "star" if len(corners) == 5 else "cross"
    if cv2.contourArea(hull) / cv2.minEnclosingTriangle(hull)[0] > 0.85:
        return "triangle"
    width, height = cv2.minAreaRect(hull)[1]
    return "square" if cv2.contourArea(hull) / (width * height) > 0.9 else "circle"


def test_texture_contrast_scales_the_variation_of_the_background():
    def variation(contrast: float) -> float:
        options = ShapesOptions(object_size=(8, 16), texture_contrast=contrast)
        images = [render(options, "train", index) for index in range(20)]
        return np.mean([i.image[i.owner < 0].std(axis=0).mean() for i in images])

    plain, weak, strong = (variation(contrast) for contrast in (0, 0.4, 1))
    assert plain < 7  # the grain alone
    assert plain + 1 < weak < strong - 1


def test_masks_have_the_shape_that_their_label_says():
    options = ShapesOptions(image_size=128, object_size=(80, 120), objects_per_image=(1, 1))
    for index in range(120):
        drawn = render(options, "val", index)
        assert _classify(np.uint8(drawn.owner == 0)) == CLASSES[drawn.labels[0]], index


@pytest.mark.parametrize("label", range(len(CLASSES)), ids=CLASSES)
def test_size_is_the_longer_side_of_a_box_that_varies(label):
    boxes = []
    for seed in range(20):
        corners = np.concatenate(random_outline(np.random.default_rng(seed), label, 37.5))
        np.testing.assert_allclose(corners.min(axis=0), 0, atol=1e-9)
        assert corners.max() == pytest.approx(37.5)
        assert corners.max(axis=0).min() > 37.5 / 2
        boxes.append(corners.max(axis=0))
    ratios = np.divide(*np.transpose(boxes))
    assert ratios.min() < 0.95
    assert ratios.max() > 1.05


def test_classes_cover_different_shares_of_their_hull():
    def share(name):
        outline = random_outline(np.random.default_rng(0), CLASSES.index(name), 100)
        area, *holes = (cv2.contourArea(contour.astype(np.float32)) for contour in outline)
        return (area - sum(holes)) / cv2.contourArea(cv2.convexHull(np.float32(outline[0])))

    for convex in ("circle", "triangle", "square"):
        assert share(convex) == pytest.approx(1, abs=1e-4)
    assert 0.55 < share("ring") < 0.76  # A hole of 0.5 to 0.65 of the radius.
    assert 0.4 < share("star") < 0.65
    assert 0.55 < share("cross") < 0.85


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("size", [(97, 61), (64, 1), (1, 9), (1, 1), (3, 700)])
def test_fields_stay_between_zero_and_one(kind, size):
    for seed in range(5):
        field = kind(np.random.default_rng(seed), *size)
        assert field.shape == size
        assert np.isfinite(field).all()
        assert field.min() >= 0
        assert field.max() <= 1
        if size == (97, 61):
            assert np.ptp(field) > 0.4


def test_every_kind_is_drawn():
    kinds = dict.fromkeys(FIELDS, 0)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        field = random_field(rng, 32, 32)
        for kind in kinds:
            again = np.random.default_rng(seed)
            again.integers(len(kinds))
            kinds[kind] += np.array_equal(kind(again, 32, 32).astype(np.float32), field)
    assert sum(kinds.values()) >= 60
    assert min(kinds.values()) > 0


def test_blend_goes_from_one_colour_to_the_other():
    image = blend(np.float32([[0, 0.5, 1]]), (0, 10, 20), (100, 10, 0))
    np.testing.assert_allclose(image, [[[0, 10, 20], [50, 10, 10], [100, 10, 0]]])
