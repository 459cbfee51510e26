import json
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from flatten_det.errors import UserError
from flatten_det.results import Prediction, Segment, rle

NAMES = ("disk", "box")
GREY = np.full((100, 160, 3), 128, np.uint8)


def _masks():
    masks = np.zeros((2, 100, 160), bool)
    masks[0, 10:50, 20:80] = masks[1, 60:90, 100:150] = True
    return masks


def _instances(**changes):
    fields = dict(
        boxes=np.array([[20, 10, 80, 50], [100, 60, 150, 90]], np.float32),
        scores=np.array([0.9, 0.2], np.float32),
        labels=np.array([1, 0]),
        masks=[rle.encode(mask) for mask in _masks()],
        pixels=GREY,
    )
    return Prediction("", (100, 160), NAMES, **fields | changes)


def _semantic():
    label_map = np.full((100, 160), 255, np.uint8)
    label_map[:40], label_map[60:] = 0, 1
    return Prediction("", (100, 160), NAMES, label_map=label_map, pixels=GREY)


def _panoptic():
    first, second = _masks()
    ids = (1001 * first + 2 * second).astype(np.int32)
    segments = [Segment(2, 0, 1500), Segment(1001, 1, 2400)]
    return Prediction("", (100, 160), NAMES, segment_ids=ids, segments=segments, pixels=GREY)


def test_above_leaves_out_all_of_a_detection():
    kept = _instances().above(0.5)
    assert len(kept) == len(kept.masks) == len(kept.labels) == 1
    np.testing.assert_array_equal(kept.bitmaps(), _masks()[:1])


def test_pycocotools_evaluates_the_entries(tmp_path):
    found = _instances()
    truth = {
        "images": [{"id": 7, "width": 160, "height": 100}],
        "categories": [{"id": 5, "name": "disk"}, {"id": 9, "name": "box"}],
        "annotations": [
            dict(id=1, image_id=7, category_id=9, bbox=[20, 10, 60, 40], area=2400, iscrowd=0)
            | {"segmentation": found.masks[0]}
        ],
    }
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(truth))
    coco = COCO(str(file))
    for kind in ("bbox", "segm"):
        evaluation = COCOeval(coco, coco.loadRes(found.to_coco(7, [5, 9])), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1)


def test_label_maps_are_no_coco_results():
    with pytest.raises(UserError, match="segmentor's label map"):
        _semantic().to_coco(1)


def test_supervision_gets_objects_classes_and_segments():
    objects = _instances().to_supervision()
    np.testing.assert_array_equal(objects.mask, _masks())
    assert objects["class_name"].tolist() == ["box", "disk"]
    classes = _semantic().to_supervision()
    np.testing.assert_array_equal(classes.xyxy, [[0, 0, 160, 40], [0, 60, 160, 100]])
    assert _panoptic().to_supervision().class_id.tolist() == [0, 1]
    nothing = _instances().above(1).to_supervision()
    assert len(nothing) == 0


def test_supervision_missing_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match=r"pip install 'flatten-det\[supervision\]'"):
        _instances().to_supervision()


def test_pictures_show_masks_transparent_and_leave_the_rest():
    drawn = np.asarray(_instances().draw(0.5, factor=1)).astype(int)
    inside, outside = drawn[30, 50], drawn[75, 125]
    np.testing.assert_array_equal(outside, 128)  # Its score is lower.
    assert abs(inside - 128).max() > 10
    doubled = np.full_like(GREY, 255)
    brighter = np.asarray(_instances(pixels=doubled).draw(0.5, factor=1)).astype(int)[30, 50]
    assert (brighter - inside).min() > 60  # The image is seen through it.


def test_small_images_are_enlarged_and_large_ones_reduced():
    assert _instances().draw().size == (640, 400)
    large = _semantic()
    large = Prediction(
        "", (6000, 6000), NAMES, pixels=np.zeros((6000, 6000, 3), np.uint8),
        label_map=np.zeros((6000, 6000), np.uint8),
    )  # fmt: skip
    assert large.draw().size == (2048, 2048)


@pytest.mark.parametrize("make", [_semantic, _panoptic])
def test_regions_are_coloured_and_others_are_not(make):
    drawn = np.asarray(make().draw(factor=1))
    np.testing.assert_array_equal(drawn[55, 5], 128)
    assert (drawn[88, 102] != 128).any()


def test_texts_of_a_crowd_do_not_overlap():
    count = 60
    boxes = np.tile(np.array([[40, 40, 90, 80]], np.float32), (count, 1))
    boxes += np.random.default_rng(0).uniform(-20, 20, (count, 1)).astype(np.float32)
    crowd = _instances(boxes=boxes, scores=np.ones(count), labels=np.zeros(count, int), masks=None)
    places = _places_of_texts(crowd)
    assert 5 < len(places) < count  # There is no room for all.
    for index, (left, top, right, bottom) in enumerate(places):
        assert left >= 0
        assert top >= 0
        for other in places[:index]:
            assert left >= other[2] or right <= other[0] or top >= other[3] or bottom <= other[1]


def _places_of_texts(prediction):
    """Where the filled rectangles behind texts are."""
    from flatten_det.results import picture

    places = []
    draw = picture.ImageDraw.Draw

    class Canvas:
        def __init__(self, image):
            self._canvas = draw(image)

        def rectangle(self, corners, fill=None, **options):
            if fill is not None:
                places.append(corners)

        def text(self, *args, **options):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture.ImageDraw, "Draw", Canvas)
        prediction.draw(0, factor=1)
    return places


def test_saves_pictures_and_data(tmp_path):
    _instances().save(tmp_path / "a.b.jpg")
    assert Image.open(tmp_path / "a.b.jpg").size == (640, 400)
    _panoptic().save(tmp_path / "c.d.json")
    content = json.loads((tmp_path / "c.d.json").read_text())
    assert content["panoptic_map"] == "c.d.png"
    assert content["segments"][1] == {"id": 1001, "label": 1, "area": 2400, "class_name": "box"}
    pixels = np.asarray(Image.open(tmp_path / "c.d.png")).astype(int)
    np.testing.assert_array_equal(pixels @ [1, 256, 65536], _panoptic().segment_ids)
    with pytest.raises(UserError, match=r"\.jpg, .*\.json"):
        _instances().save(tmp_path / "a.txt")


def test_an_image_that_changed_is_not_drawn_into(tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (10, 10)).save(file)
    with pytest.raises(UserError, match="another one"):
        Prediction(str(file), (100, 160), NAMES).draw()
    file.write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be read"):
        Prediction(str(file), (100, 160), NAMES).draw()
