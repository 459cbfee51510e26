import numpy as np
import pytest

from flatten_det.data.shapes import render


@pytest.mark.parametrize("kind", render._FIELDS, ids=lambda kind: kind.__name__)
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
    kinds = dict.fromkeys(render._FIELDS, 0)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        field = render.random_field(rng, 32, 32)
        for kind in kinds:
            again = np.random.default_rng(seed)
            again.integers(len(kinds))
            kinds[kind] += np.array_equal(kind(again, 32, 32).astype(np.float32), field)
    assert sum(kinds.values()) >= 60
    assert min(kinds.values()) > 0


def test_blend_goes_from_one_colour_to_the_other():
    image = render.blend(np.float32([[0, 0.5, 1]]), (0, 10, 20), (100, 10, 0))
    np.testing.assert_allclose(image, [[[0, 10, 20], [50, 10, 10], [100, 10, 0]]])
