"""The scores of the paper's Figure 4, before and after f_3.

The paper prints the scores but not the vectors, so these were found by least squares: they are one of many
sets for which both printed rows hold.
"""

import torch

from flatten_det.attention.reference import focused_map

QUERY = torch.tensor([0.79, 0.62, 2.03], dtype=torch.float64)
KEYS = torch.tensor(
    [[1.08, 1.07, 1.77], [0.90, 1.06, 0.62], [1.06, 1.82, 0.80], [0.79, 1.34, 0.51]],
    dtype=torch.float64,
)


def _scores(focusing_factor: float) -> list[float]:
    products = focused_map(KEYS, focusing_factor) @ focused_map(QUERY, focusing_factor)
    return [round(score, 2) for score in (products / products.sum()).tolist()]


def test_flat_scores_become_sharp():
    assert _scores(1) == [0.37, 0.19, 0.26, 0.18]
    assert _scores(3) == [0.75, 0.11, 0.09, 0.05]
