"""Photographs cut into tiles: pixels, boxes, masks, and what a border cuts."""

import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from flatten_det.data.preparation.coco_file import CocoFile
from flatten_det.data.preparation.cut import cut_into_tiles
from flatten_det.data.tiling import Tiling
from flatten_det.errors import UserError

HEIGHT, WIDTH = 70, 110


def annotation(number: int, box: list[float], **more) -> dict:
    entry = {"id": number, "image_id": 7, "category_id": 1, "bbox": box}
    return {**entry, "area": box[2] * box[3], "iscrowd": 0, **more}


@pytest.fixture
def cut(tmp_path):
    """Cuts one image with the given annotations; returns the tiles' file and their pixels by name."""

    def cut(annotations: list[dict], tiling: Tiling):
        pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "photo.png"), pixels)
        image = {"id": 7, "file_name": "photo.png", "height": HEIGHT, "width": WIDTH}
        content = {"images": [image], "annotations": annotations, "categories": []}
        file = CocoFile(tmp_path / "photo.json", content, images=tmp_path)
        tiles = cut_into_tiles(file, tmp_path / "tiles", tiling)
        json.dumps(tiles)
        return tiles, pixels

    return cut


def test_tiles_show_the_photograph(cut, tmp_path):
    tiles, pixels = cut([], Tiling(40, 0.25))
    seen = np.zeros((HEIGHT, WIDTH), bool)
    for image in tiles["images"]:
        tile = cv2.imread(str(tmp_path / "tiles" / image["file_name"]))
        assert tile.shape == (image["height"], image["width"], 3) == (40, 40, 3)
        left, top = (int(part[1:]) for part in image["file_name"][:-4].split("_")[-2:])
        np.testing.assert_array_equal(tile, pixels[top : top + 40, left : left + 40])
        seen[top : top + 40, left : left + 40] = True
    assert seen.all()
    assert len({image["id"] for image in tiles["images"]}) == len(tiles["images"]) == 8


def test_boxes(cut):
    """Of two tiles side by side, a border at 60 cuts one box 30 : 10, and one in two halves."""
    boxes = [[5, 5, 20, 20], [30, 30, 40, 10], [50, 50, 20, 12], [70, 0, 30.5, 9]]
    tiles, _ = cut([annotation(n, box) for n, box in enumerate(boxes, 1)], Tiling(60, 0))
    of_tile = {1: [], 2: []}
    for each in tiles["annotations"]:
        of_tile.setdefault(each["image_id"], []).append((each["bbox"], each["iscrowd"]))
    names = [image["file_name"] for image in tiles["images"][:2]]
    assert names == ["photo_x0_y0.png", "photo_x50_y0.png"]
    assert of_tile[1] == [([5, 5, 20, 20], 0), ([30, 30, 30, 10], 0), ([50, 50, 10, 10], 1)]
    # The last tile begins at 50, so that it is whole.
    assert of_tile[2] == [([0, 30, 20, 10], 0), ([0, 50, 20, 10], 0), ([20, 0, 30.5, 9], 0)]
    assert len({each["id"] for each in tiles["annotations"]}) == len(tiles["annotations"])


@pytest.mark.parametrize("form", ["polygon", "counts", "compressed"])
def test_masks(cut, form):
    """Each tile has its part of the pixels, in the box that they fill."""
    polygon = [[20.0, 10.0, 100.0, 30.0, 30.0, 60.0]]
    rle = coco_mask.merge(coco_mask.frPyObjects(polygon, HEIGHT, WIDTH))
    mask = coco_mask.decode(rle)
    runs = np.flatnonzero(np.diff(mask.ravel("F"), prepend=0, append=0))
    counts = np.diff(runs, prepend=0, append=mask.size).tolist()
    segmentation = {
        "polygon": polygon,
        "counts": {"size": [HEIGHT, WIDTH], "counts": counts},
        "compressed": {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()},
    }[form]
    tiles, _ = cut([annotation(1, [20, 10, 80, 50], segmentation=segmentation)], Tiling(40, 0))
    together = np.zeros_like(mask)
    names = {image["id"]: image["file_name"] for image in tiles["images"]}
    for each in tiles["annotations"]:
        left, top = (int(part[1:]) for part in names[each["image_id"]][:-4].split("_")[-2:])
        part = coco_mask.decode(each["segmentation"])
        together[top : top + 40, left : left + 40] |= part
        rows, columns = np.nonzero(part)
        assert each["area"] == len(rows) > 0
        x, y = columns.min(), rows.min()
        assert each["bbox"] == [x, y, np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert each["iscrowd"] == (len(rows) < 0.5 * mask.sum())
    np.testing.assert_array_equal(together, mask)


@pytest.mark.parametrize(
    "segmentation",
    [[[1, 1, 5, 5]], {"size": [HEIGHT, WIDTH]}, {"size": [HEIGHT, WIDTH], "counts": "oo"}]
    + [{"size": [HEIGHT, 5], "counts": [0, 5 * HEIGHT]}, {"size": [HEIGHT, WIDTH], "counts": [-1]}],
)
def test_a_broken_mask_is_an_error(cut, segmentation):
    with pytest.raises(
        UserError, match=r"photo\.json: annotation 1 has a mask .*: export it again"
    ):
        cut([annotation(1, [20, 10, 80, 50], segmentation=segmentation)], Tiling(40))


def test_a_broken_photograph_is_an_error(cut, tmp_path):
    file = CocoFile(
        tmp_path / "photo.json",
        {"images": [{"id": 1, "file_name": "broken.jpg"}], "annotations": []},
        images=tmp_path,
    )
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"broken\.jpg.*photo\.json"):
        cut_into_tiles(file, tmp_path / "tiles", Tiling(40))
