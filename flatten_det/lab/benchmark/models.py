"""Backbones, detectors and segmentors as candidates: as they are, compiled, or replayed from CUDA graphs."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from ...backbones.cuda import replay_forward
from ...errors import OUT_OF_MEMORY, UserError, describe_failure
from ..complexity import SAMPLING, count_backbone, count_model
from ..output import number
from .figures import draw_curves
from .growth import COMPILED, GRAPHS, Growth
from .machine import device_name
from .memory import Peak
from .report import milliseconds, time_cells
from .run import Benchmark, BenchmarkPlan, Cost, Result, Setting, Work
from .sources import Size, find_source, loss_call, network_call, short_name

MODES = ("inference", "training")
FORMAT = "flatten_det benchmark of models, 1"
_TOO_SLOW = "too slow"
_SEED = 0


@dataclass(frozen=True)
class Candidate:
    """One curve."""

    model: str  # see :func:`~.sources.find_source`
    compiled: bool = False  # by torch.compile, for each size anew, so that it is at its best
    fused: bool = True  # at inference, fold what `fuse_for_inference` of a backbone folds
    graphs: bool = False  # replayed from CUDA graphs; of a whole model, its backbone

    def __str__(self) -> str:
        """In tables and files; a config goes by its file name."""
        return f"{short_name(self.model)}{COMPILED * self.compiled}{GRAPHS * self.graphs}"


def make_candidates(
    models: Iterable[str], compile: bool, fuse: bool, graphs: bool = False
) -> list[Candidate]:
    """Each model once, in the order given; once more for each of ``compile`` and ``graphs``."""
    variants = [(False, False), *[(True, False)] * compile, *[(False, True)] * graphs]
    return [
        Candidate(model, compiled, fuse, from_graphs)
        for model in dict.fromkeys(models)
        for compiled, from_graphs in variants
    ]


@cache
def count_cost(model: str, size: Size) -> Cost:
    """Count a model, which needs no run; see :func:`~.sources.find_source` for its name."""
    source = find_source(model)
    count: Callable = count_model if source.whole else count_backbone
    try:
        # MMDetection's backbones cannot be built on the meta device.
        counted = count(source.build(size).to("meta"), size.hw)
    except Exception as error:
        return Cost(None, None, f"not counted: {describe_failure(error)}")
    missing = ", ".join(sorted(set(counted.uncounted) - SAMPLING))
    note = f"multiply-adds lack those of {missing}" if missing else None
    return Cost(counted.macs, counted.parameters, note)


def build_work(setting: Setting, candidate: Candidate) -> Work:
    """A model with random weights and images of its own, ready to be called.

    Both are the same for the same setting and candidate. The backward pass starts from the sum of the
    outputs times random numbers, or from the loss of a whole model. Raises UserError for an unknown model.
    """
    source, size = find_source(candidate.model), setting.case
    device, dtype = torch.device(setting.device), setting.parameter_dtype
    torch.manual_seed(_SEED)
    model = source.build(size).to(device, dtype)
    model.train(setting.training)
    if candidate.fused and not setting.training:
        for module in (model, getattr(model, "backbone", None)):
            if hasattr(module, "fuse_for_inference"):
                module.fuse_for_inference()
    images = torch.randn(setting.batch, 3, *size.hw).to(device, dtype)
    if candidate.compiled:
        # Not the heads: what they do depends on values and annotations.
        parts = (model.backbone, getattr(model, "neck", None)) if source.whole else (model,)
        for part in filter(None, parts):
            part.compile(dynamic=False)
    if candidate.graphs:
        replay_forward(model.backbone if source.whole else model, strict=True)
    if source.whole:
        forward = (loss_call if setting.training else network_call)(model, images)
    else:
        forward = partial(model, images)
    return Work(setting, forward, [p for p in model.parameters() if p.requires_grad])


def _pixels(result: Result) -> int:
    return result.setting.case.pixels


class ModelBenchmark(Benchmark):
    """Models over sizes of the image; its comparisons are :class:`~.growth.Growth`."""

    explanation = (
        "Size: height x width. Times: median and quartiles of a call on the whole batch; of detectors and "
        "segmentors without post-processing. Host: until all is launched on a GPU. Speed-up: median of the "
        "ratios of pairs in one round. Peak memory: what a call takes beyond weights and images. GMACs: "
        "multiply-adds for one image, attention included."
    )
    times_host = True
    draw = staticmethod(draw_curves)

    def builder(self, setting: Setting) -> Callable[[Candidate], Work]:
        return partial(build_work, setting)

    def start(self, setting: Setting, candidate: Candidate) -> Result:
        """Its multiply-adds and parameters."""
        return Result(setting, str(candidate), count_cost(candidate.model, setting.case))

    def reason_to_skip(
        self, result: Result, earlier: Iterable[Result], max_seconds: float | None
    ) -> str | None:
        """Why a model is left out, told from what smaller images took.

        The time is estimated from the next smaller size of the same model that has one, by the
        multiply-adds, or by the pixels where those are unknown.
        """
        smaller = [
            other
            for other in sorted(earlier, key=_pixels)
            if other.name == result.name
            and other.setting.kind == result.setting.kind
            and _pixels(other) < _pixels(result)
        ]
        for other in smaller:
            for hopeless in (OUT_OF_MEMORY, _TOO_SLOW):
                if other.failure is not None and other.failure.startswith(hopeless):
                    return f"{hopeless}: so it was at {other.setting.case} already"
        timed = [other for other in smaller if other.times is not None]
        if not timed or max_seconds is None:
            return None
        last = timed[-1]
        if result.cost.macs and last.cost.macs:
            ratio = result.cost.macs / last.cost.macs
        else:
            ratio = _pixels(result) / _pixels(last)
        seconds = last.seconds * ratio
        if seconds <= max_seconds:
            return None
        return (
            f"{_TOO_SLOW}: about {seconds:.0f} s per call, more than --max-seconds {max_seconds:g}"
        )

    def measures_memory(self, candidate: Candidate) -> bool:
        """A graph has had its memory since its capture."""
        return not candidate.graphs

    def cells(self, comparison: Growth, result: Result) -> dict[str, str]:
        figures = self.row(comparison, result)
        peak, macs, parameters = result.peak_bytes, result.cost.macs, result.cost.parameters
        return {
            "size": str(result.setting.case),
            "model": result.name,
            **time_cells(result),
            "host ms": milliseconds(result.host_seconds),
            "speed-up": number(figures["speedup"], ".2f", "x"),
            "images/s": number(figures["images_per_second"], ".3g"),
            "Mpx/s": number(figures["megapixels_per_second"], ".3g"),
            "peak MiB": number(peak and peak / 2**20, ".1f"),
            "GMACs": number(macs and macs / 1e9, ".4g"),
            "params M": number(parameters and parameters / 1e6, ".1f"),
            "note": result.note,
        }

    def row(self, comparison: Growth, result: Result) -> dict[str, object]:
        setting, size = result.setting, result.setting.case
        first, third = result.quartiles
        per_second = setting.batch / result.seconds if result.times else None
        return {
            **{key: getattr(size, key) for key in ("height", "width", "pixels")},
            **{key: getattr(setting, key) for key in ("mode", "dtype", "amp", "batch")},
            "model": result.name,
            "median_s": result.seconds,
            "first_quartile_s": first,
            "third_quartile_s": third,
            "host_s": result.host_seconds,
            "speedup": comparison.speedup(result),
            "images_per_second": per_second,
            "megapixels_per_second": per_second and per_second * size.pixels / 1e6,
            "peak_bytes": result.peak_bytes,
            "multiply_adds": result.cost.macs,
            "parameters": result.cost.parameters,
            "note": result.note,
        }

    def content(self, comparison: Growth, how: Mapping[str, object]) -> dict[str, object]:
        """Results, exponents and crossovers; ``how`` is that of :func:`load_results`."""
        return {
            "format": FORMAT,
            "how": how,
            "baseline": comparison.baseline,
            "exponents": comparison.exponents_record(),
            "crossovers": comparison.crossovers_record(),
            "cells": [
                {**to_record(result), "figures": self.row(comparison, result)}
                for result in comparison.results
            ],
        }


def describe(plan: BenchmarkPlan, device: torch.device) -> dict[str, object]:
    """How models are measured, for a JSON file, under the names of the tool's options."""
    candidates: Sequence[Candidate] = plan.candidates
    return {
        "models": list(dict.fromkeys(candidate.model for candidate in candidates)),
        "compile": any(candidate.compiled for candidate in candidates),
        "cuda-graphs": any(candidate.graphs for candidate in candidates),
        "fuse": all(candidate.fused for candidate in candidates),
        "rounds": plan.rounds,
        "warmup": plan.warmup,
        "memory": plan.memory,
        "max-seconds": plan.max_seconds,
        "max-memory": plan.max_memory,
        "device": device_name(device),
        "torch": torch.__version__,
    }


def load_results(path: Path, how: Mapping[str, object]) -> list[Result]:
    """The results of an earlier run's ``results.json``; none if there is no such file.

    UserError if the file is none of this tool's, or was measured otherwise than ``how``, and what differs.
    """
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(content["format"])
        # What files lack that were written before it could be measured.
        before = {"cuda-graphs": False, **content["how"]}
        results = [_from_record(cell) for cell in content["cells"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not of this tool, or of another version of it: give another --out, or --fresh "
            "to write over it"
        ) from error
    # As JSON has it: tuples are lists there.
    now = json.loads(json.dumps(how))

    def text(value: object) -> str:
        return " ".join(map(str, value)) if isinstance(value, list) else str(value)

    was = "; ".join(
        f"{key}: {text(before.get(key))}, now {text(value)}"
        for key, value in now.items()
        if value != before.get(key)
    )
    if was:
        raise UserError(
            f"{path} was measured otherwise ({was}): give the same options to go on, another --out, or "
            "--fresh to measure all anew"
        )
    return results


def to_record(result: Result) -> dict[str, object]:
    """Everything, for a JSON file."""
    setting = vars(result.setting) | {"size": result.setting.case.hw}
    del setting["case"]
    return {
        "setting": setting,
        "name": result.name,
        "cost": asdict(result.cost),
        "seconds": result.times,
        "peak": asdict(result.peak) if result.peak else None,
        "failure": result.failure,
        "host_seconds": result.host_seconds,
    }


def _from_record(record: Mapping[str, Any]) -> Result:
    setting, peak = dict(record["setting"]), record["peak"]
    return Result(
        Setting(Size(*setting.pop("size")), **setting),
        record["name"],
        Cost(**record["cost"]),
        tuple(record["seconds"]) if record["seconds"] else None,
        Peak(**peak) if peak else None,
        record["failure"],
        record.get("host_seconds"),
    )
