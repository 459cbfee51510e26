"""From a model and images to figures and numbers."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ...data.loading import ImageError, left_out
from ...errors import UserError
from ...files.atomic import refuse_overwriting
from ...files.images import output_names
from ..output import write_json
from .figures import draw_maps, draw_spectra, draw_statistics
from .layers import AttentionLayer, LayerCall, capture
from .matrices import LayerWeights, WeightMap, query_token
from .measure import LayerResult, LayerSummary, Measures, measure_layer, summarise
from .model import AnalysedModel

JSON, STATISTICS_FIGURE, SPECTRA_FIGURE = "analysis.json", "statistics.png", "spectra.png"


@dataclass(frozen=True)
class Analysis:
    """All results."""

    results: list[list[LayerResult]]  # of each layer, for each image that can be read
    summaries: list[LayerSummary]  # of each layer over these images
    unreadable: list[str]  # one line for each other image


def layers_with_heads(
    layers: Sequence[AttentionLayer], heads: Sequence[int] | None
) -> list[AttentionLayer]:
    """The layers that have at least one of the heads; None: all. UserError for a head that no layer has."""
    counts = {layer.name: layer.heads for layer in layers}
    for head in heads or ():
        if not 0 <= head < max(counts.values()):
            there = ", ".join(f"{count} in {name}" for name, count in counts.items())
            raise UserError(f"no chosen layer has a head {head}: heads count from 0; {there}")
    return [layer for layer in layers if heads is None or min(heads) < counts[layer.name]]


def analyse(
    model: AnalysedModel,
    layers: Sequence[AttentionLayer],
    images: Sequence[str],
    measures: Measures,
    out_dir: Path,
    about: dict[str, Any],
    advance: Callable[[str], None] = lambda what: None,
) -> Analysis:
    """Measure, draw and write all into ``out_dir``, where each image drawn has a folder of its name.

    ``about`` says in the JSON what was analysed. ``advance`` is told what is done, for each layer of each
    image once. UserError if no image can be read, or a result would overwrite one.
    """
    names = output_names(images, reserved=(JSON, STATISTICS_FIGURE))
    drawn = [out_dir / names[image] / figure for image in images for figure in _figures(measures)]
    refuse_overwriting(images, [out_dir / JSON, out_dir / STATISTICS_FIGURE, *drawn], "--out-dir")
    read, results, unreadable = [], [], []
    for image in images:
        try:
            grey, pixels = model.read(image)
        except ImageError as error:
            unreadable.append(str(error))
            continue
        is_drawn = len(read) < measures.drawn
        read.append(image)
        own = measures if is_drawn else replace(measures, spectra=False)
        calls = capture(model.backbone, layers, pixels)
        of_image = []
        for call in calls:
            of_image.append(measure_layer(call, own))
            advance(f"{names[image]}, layer {call.layer.name}")
        results.append(of_image)
        if is_drawn:
            _draw_image(grey, calls, of_image, measures, out_dir / names[image])
    if not read:
        raise left_out(unreadable, len(images))
    summaries = summarise(result for of_image in results for result in of_image)
    draw_statistics(summaries, out_dir / STATISTICS_FIGURE)
    record = dict(
        summary=[asdict(summary) for summary in summaries],
        images=[
            dict(image=image, layers=[result.record() for result in of_image])
            for image, of_image in zip(read, results, strict=True)
        ],
        unreadable=unreadable,
    )
    write_json(about | record, out_dir / JSON)
    return Analysis(results, summaries, unreadable)


def _figures(measures: Measures) -> list[str]:
    points = range(1, len(measures.points) + 1)
    return [SPECTRA_FIGURE, *(_map_figure(h, n) for h in measures.heads or (0,) for n in points)]


def _map_figure(head: int, point: int) -> str:
    return f"maps_head{head}_point{point}.png"


def _draw_image(
    grey: np.ndarray,
    calls: Sequence[LayerCall],
    results: Sequence[LayerResult],
    measures: Measures,
    folder: Path,
) -> None:
    if measures.spectra:
        draw_spectra(results, folder / SPECTRA_FIGURE)
    maps: dict[tuple[int, int], dict[str, list[WeightMap]]] = defaultdict(dict)
    for call in calls:
        weights = LayerWeights(call)
        for head, number in product(measures.heads or (0,), range(len(measures.points))):
            if head < call.layer.heads:
                token = query_token(measures.points[number], call.hw_shape)
                maps[head, number][call.layer.name] = weights.maps(head, token)
    for (head, number), rows in maps.items():
        path = folder / _map_figure(head, number + 1)
        draw_maps(grey, rows, measures.points[number], path)
