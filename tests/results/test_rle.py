import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from flatten_det.results.rle import decode, encode, encode_labels

BLOB = np.zeros((300, 400), bool)
BLOB[37:211, 20:333] = np.random.default_rng(0).random((174, 313)) < 0.9


@pytest.mark.parametrize("mask", [BLOB, ~BLOB, BLOB[:0], np.ones((1, 7)), np.zeros((9, 1))])
def test_writes_what_pycocotools_writes(mask):
    expected = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    assert encode(mask) == {
        "size": list(mask.shape),
        "counts": expected["counts"].decode(),
    }


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.booleans()))
def test_reads_what_it_and_pycocotools_write(mask):
    np.testing.assert_array_equal(decode(encode(mask)), mask)
    np.testing.assert_array_equal(decode(coco_mask.encode(np.asfortranarray(mask, np.uint8))), mask)


@pytest.mark.parametrize("counts", ["", "0", "X", "`1", encode(np.ones((5, 5)))["counts"]])
def test_refuses_run_lengths_of_another_mask(counts):
    with pytest.raises(ValueError, match="do not fill its 6 x 5 pixels"):
        decode({"size": [6, 5], "counts": counts})


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)))
def test_encodes_all_labels_of_a_map_at_once(label_map):
    masks = encode_labels(label_map)
    assert masks == {label: encode(label_map == label) for label in np.unique(label_map).tolist()}
