"""Every backbone has a title, a collection and a metafile."""

import pytest

from flatten_det.backbones import BACKBONES
from flatten_det.lab.zoo.configs import collection_of, metafile_of, title_of
from flatten_det.lab.zoo.metafiles import METAFILES


@pytest.mark.parametrize(
    ("backbone", "title", "collection", "folder"),
    [
        ("flatten-pvt-t", "FLatten-PVT-T", "FLatten-PVT", "flatten_pvt"),
        ("pvtv2-b2", "PVTv2-B2", "PVTv2", "flatten_pvt_v2"),
        ("flatten-swin-b-384", "FLatten-Swin-B-384", "FLatten-Swin", "flatten_swin"),
        ("cswin-s", "CSwin-S", "CSwin", "flatten_cswin"),
        ("flatten-deit-t", "FLatten-DeiT-T", "FLatten-DeiT", "flatten_deit"),
    ],
)
def test_names(backbone, title, collection, folder):
    assert title_of(backbone) == title
    assert collection_of(backbone) == collection
    assert metafile_of(backbone) == f"configs/{folder}/metafile.yml"


def test_titles_are_unique_and_metafiles_known():
    assert len({title_of(name) for name in BACKBONES}) == len(BACKBONES)
    assert {metafile_of(name) for name in BACKBONES} == set(METAFILES)
