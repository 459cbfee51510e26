"""The manual's table of estimates: current, and of a model without contradictions."""

from dataclasses import replace
from pathlib import Path

import pytest

from flatten_det.config import load_config
from flatten_det.errors import UserError
from flatten_det.lab.zoo.estimates import (
    FAST,
    GPUS,
    PAGE,
    SLOW,
    STEPS,
    hours,
    memory,
    step_time,
    with_estimates,
)
from flatten_det.lab.zoo.metafiles import METAFILES, read_metafile

ROOT = Path(__file__).parents[3]
METADATA = {
    entry["Name"]: entry["Metadata"]
    for path in METAFILES
    for entry in read_metafile(ROOT, path)["Models"]
}


def test_the_page_is_current():
    page = (ROOT / PAGE).read_text()
    metafiles = {path: read_metafile(ROOT, path) for path in METAFILES}
    assert with_estimates(page, metafiles) == page
    assert with_estimates(page.replace("| mask-rcnn", "| gone", 1), metafiles) == page
    with pytest.raises(UserError, match="the comments between which"):
        with_estimates("# A page\n", metafiles)


@pytest.mark.parametrize("name", STEPS)
def test_more_gpus(name):
    metadata, step = METADATA[name], STEPS[name]
    for speed in (FAST, SLOW, replace(SLOW, latency=0.0)):
        steps = [step_time(metadata, step, gpus, speed) for gpus in GPUS]
        assert steps == sorted(steps)
        times = [hours(metadata, step, gpus, speed) for gpus in GPUS]
        assert times == sorted(times, reverse=True)
        for gpus, time in zip(GPUS, times, strict=True):
            assert times[0] / (gpus * time) <= 1
    assert hours(metadata, step, 8, FAST) < hours(metadata, step, 8, SLOW)
    # A network that is never waited for.
    ideal = replace(SLOW, latency=0.0, network=1e18, nvlink=1e18)
    assert hours(metadata, step, 64, ideal) == pytest.approx(hours(metadata, step, 1, SLOW) / 64)
    assert memory(metadata["Parameters"], step, 1) < memory(metadata["Parameters"], step, 8)


@pytest.mark.parametrize("name", ["mask-rcnn_flatten-pvt-t_fpn_1x_coco", *list(STEPS)[:1]])
def test_batches_are_those_of_the_configs(name):
    assert load_config(name).train_dataloader.batch_size == STEPS[name].batch
