"""Estimates of the zoo's trainings on GPUs, hours and memory: a model of what was measured elsewhere.

Of one H200 there are times of backbones and of small trainings, of a CPU the memory and the operators of each
config's step. A step waits for the device or for the host, and for the reduction of its gradients.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import UserError
from ..benchmark.scaling import ring_seconds, step_seconds
from ..output import markdown_table

PAGE = "docs/scaling.md"
GPUS = (1, 8, 64)
_PER_MACHINE = 8
_COCO_IMAGES = 117_266  # of train2017, those with objects
_GENERATED = re.compile(
    r"(<!-- Estimates, written by tools/update_zoo.py. -->\n).*(<!-- End of estimates. -->)",
    re.DOTALL,
)


@dataclass(frozen=True)
class StepCost:
    """Of a config's training step on random images of its size, on a CPU, under bf16 autocast."""

    batch: int  # of a GPU, as the config has it
    calls: (
        int  # of operators, forward and backward; of images of two sizes where the data have such
    )
    activations: float  # GB of an image: peak memory beyond weights and gradients


@dataclass(frozen=True)
class Speed:
    """Of GPUs, their host and their network."""

    macs_per_second: float
    seconds_per_call: float  # of an operator, by the host
    network: float  # bytes per second between machines
    nvlink: float = 450e9  # and between the GPUs of one: the nominal value for an H200, each way
    latency: float = 10e-6  # of a piece in a ring, assumed


# On one H200, on 2026-11-29, with an earlier version of the code, under bf16 autocast: inference of
# FLatten-Swin-T (1,508 G multiply-adds in 57.8 ms) and FLatten-PVT-T (681 G in 33.4 ms) at 4096x4096, and
# iterations that wait for the host, of the nano Mask R-CNN (11,646 calls in 0.27 s) and Semantic FPN (3,158
# in 0.13 s). Networks of 400 and 100 Gb/s for each machine are assumed.
FAST = Speed(1508e9 / 57.8e-3, 0.27 / 11_646, 50e9)
SLOW = Speed(681e9 / 33.4e-3, 0.13 / 3_158, 12.5e9)
STEPS = {
    "retinanet_flatten-pvt-t_fpn_1x_coco": StepCost(2, 4_136, 1.81),
    "mask-rcnn_flatten-pvt-t_fpn_1x_coco": StepCost(2, 4_970, 1.52),
    "mask-rcnn_flatten-pvt-s_fpn_1x_coco": StepCost(2, 7_338, 2.28),
    "mask-rcnn_flatten-swin-t_fpn_3x_coco": StepCost(2, 7_312, 1.95),
    "cascade-mask-rcnn_flatten-swin-t_fpn_3x_coco": StepCost(2, 9_550, 2.26),
    "flatten-pvt-t_semantic-fpn_4xb4-80k_ade20k-512x512": StepCost(4, 1_666, 0.81),
    "flatten-swin-t_upernet_8xb2-160k_ade20k-512x512": StepCost(2, 2_947, 1.20),
}


def step_time(metadata: Mapping[str, Any], step: StepCost, gpus: int, speed: Speed) -> float:
    """Seconds of a step; ``metadata`` are those of the config's entry in a metafile."""
    # The backward pass has twice the multiply-adds of the forward pass.
    device = 3 * metadata["FLOPs"] * step.batch / speed.macs_per_second
    size = 4 * metadata["Parameters"]
    bandwidth = speed.nvlink if gpus <= _PER_MACHINE else speed.network
    reduction = ring_seconds(size, gpus, bandwidth, speed.latency)
    return step_seconds(max(device, step.calls * speed.seconds_per_call), reduction, size)


def hours(metadata: Mapping[str, Any], step: StepCost, gpus: int, speed: Speed) -> float:
    """Of the whole training, whose number of images stays the same, without validations."""
    if "Epochs" in metadata:
        images = metadata["Epochs"] * _COCO_IMAGES
    else:
        images = metadata["Iterations"] * metadata["Batch Size"]
    return images / (gpus * step.batch) * step_time(metadata, step, gpus, speed) / 3600


def memory(parameters: int, step: StepCost, gpus: int) -> float:
    """Bytes of a GPU: weights, gradients, AdamW's two states, DDP's buckets of gradients, activations."""
    return (16 if gpus == 1 else 20) * parameters + step.batch * step.activations * 1e9


def with_estimates(page: str, metafiles: Mapping[str, dict[str, Any]]) -> str:
    """The page's text with the table that comes of the metafiles; UserError if it has no place for it."""
    entries = {
        entry["Name"]: entry["Metadata"] for c in metafiles.values() for entry in c["Models"]
    }
    head = ["batch", *[f"hours, {gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS]]
    head += ["GB of 1 GPU", "GB of each of several"]
    rows = []
    for name, step in STEPS.items():
        metadata = entries[name]
        ranges = [
            " to ".join(_short(hours(metadata, step, gpus, speed)) for speed in (FAST, SLOW))
            for gpus in GPUS
        ]
        sizes = [_short(memory(metadata["Parameters"], step, gpus) / 1e9) for gpus in (1, 8)]
        rows.append([name, str(step.batch), *ranges, *sizes])
    table = markdown_table({"estimates": "left", **dict.fromkeys(head, "right")}, rows)
    text, count = _GENERATED.subn(rf"\1\n{table}\n\2", page)
    if not count:
        raise UserError(
            f"{PAGE}: the comments between which the table of estimates belongs are missing"
        )
    return text


def _short(value: float) -> str:
    return f"{value:.{0 if value >= 10 else 1 if value >= 1 else 2}f}"
