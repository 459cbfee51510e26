import pytest
from mmengine.config import ConfigDict

from flatten_det.data.shapes.options import ShapesOptions

LEGEND = dict(image_size=(128, 64), object_size=(10, 15), legend=(2, 6), legend_distance=72)


def test_equal_options_in_any_spelling_compare_equal():
    counts = ConfigDict(train=1500, val=200)
    spelled = ShapesOptions(160, counts, object_size=[8, 128], objects_per_image=[1, 6])
    assert spelled == ShapesOptions()
    assert spelled.image_size == (160, 160)
    assert ShapesOptions(num_images={"val": 7}).num_images == {"train": 1500, "val": 7}


def test_ranges_of_image_sizes_in_any_spelling():
    for spelled in ([96, [128, 192]], ((96, 96), ConfigDict(size=(128, 192)).size)):
        options = ShapesOptions(image_size=spelled, object_size=(8, 96))
        assert options.image_size == options.image_size_range == ((96, 96), (128, 192))
        # What JSON gives back, so that a rendered folder is known again.
        assert options.as_dict()["image_size"] == [[96, 96], [128, 192]]
    assert ShapesOptions().image_size_range == ((160, 160), (160, 160))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": ((128, 200), (200, 128))}, r"image_size is \(smallest, largest\), but"),
        ({"image_size": ((96, 96), 192, 256)}, "image_size must be the smallest and the largest"),
        ({"image_size": ((96, 96), (192, 19.5))}, "image_size must be two integers"),
        ({"image_size": "ab"}, "image_size must be two integers"),
        (
            {"image_size": ((96, 128), (192, 192)), "object_size": (8, 100)},
            r"images of \(96, 128\) .* at most 96 px",
        ),
        ({"image_size": 0}, "image_size must be at least 16"),
        ({"image_size": 96.5}, "image_size must be two integers"),
        ({"image_size": (96, 96, 3)}, "image_size must be two integers"),
        ({"image_size": (128, 100)}, r"object_size goes up to 128.* hold at most 100 px"),
        ({"object_size": (64, 32)}, r"object_size is \(smallest, largest\), but 64 > 32"),
        ({"object_size": (0, 32)}, "object_size must be at least 4"),
        ({"object_size": (8, float("nan"))}, "object_size must be two numbers"),
        ({"object_size": 32}, "object_size must be two numbers"),
        ({"objects_per_image": (3, 2)}, "objects_per_image is .* 3 > 2"),
        ({"objects_per_image": (-1, 2)}, "objects_per_image must be at least 0"),
        ({"objects_per_image": (0, 0)}, "allows no objects at all"),
        ({"objects_per_image": (1, 2.5)}, "objects_per_image must be two integers"),
        ({"num_images": {"train": 0}}, r"num_images\['train'\] must be a positive integer"),
        ({"num_images": {"test": 5}}, "splits train, val, not 'test'"),
        ({"num_images": 100}, "num_images must be a dict"),
        ({"seed": -1}, "seed must be a non-negative integer"),
        ({"seed": True}, "seed must be a non-negative integer"),
        ({"min_visible": 0}, "min_visible must lie in"),
        ({"min_visible": 1.1}, "min_visible must lie in"),
        ({"texture_contrast": -0.1}, "texture_contrast must lie in"),
        ({"texture_contrast": "strong"}, "texture_contrast must lie in"),
        ({**LEGEND, "legend": 4}, "legend must be two integers"),
        ({**LEGEND, "legend": (1, 2)}, "legend must be at least 2"),
        ({**LEGEND, "legend": (4, 2)}, "legend is \\(smallest, largest\\), but 4 > 2"),
        (
            {**LEGEND, "legend": (2, 17)},
            "17 cells of the legend need 68 px, but images are 64 px wide",
        ),
        ({**LEGEND, "legend_classes": 7}, "legend_classes must be from 2 to 6, got 7"),
        ({**LEGEND, "legend_classes": 2.0}, "legend_classes must be from 2 to 6, got 2.0"),
        ({**LEGEND, "legend_distance": -1}, "legend_distance must be a number of pixels"),
        (
            {**LEGEND, "legend_distance": 100},
            "need 131 px one below the other, but images are 128 px",
        ),
        ({**LEGEND, "legend": None}, "legend_distance without a legend"),
    ],
)
def test_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        ShapesOptions(**options)
