"""What an exported file says of itself, so that its reader prepares images as the test pipeline does."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from mmengine.config import Config
from torch import nn

from ..config import datasets_under_test, find_field, loads_annotations, type_name
from ..errors import UserError

BACKBONE, SEGMENTATION = "backbone", "semantic-segmentation"
DETECTION, INSTANCES = "detection", "instance-segmentation"
# Steps of a test pipeline that leave pixels alone.
_KEEPING = ("LoadImageFromFile", "PackDetInputs", "PackSegInputs")


def describe(
    name: str, graph: nn.Module, task: str, cfg: Config | None, dataset_meta: Mapping[str, Any]
) -> dict[str, Any]:
    """The metadata of a file, for :class:`flatten_det.onnx_runner.OnnxRunner` and other readers.

    Args:
        name: of the config or backbone.
        graph: what is exported.
        task: one of those above.
        cfg: of the whole model; None: a backbone alone.
        dataset_meta: ``classes`` and maybe ``palette``.

    Raises:
        UserError: the test pipeline does something to images that the file's readers would not.
    """
    found: dict[str, Any] = {"flatten_det": version("flatten-det"), "model": name, "task": task}
    if task == BACKBONE:
        return found
    normalised = graph.normalised
    found |= {
        "names": [str(name) for name in dataset_meta["classes"]],
        "palette": _palette(dataset_meta),
        "channel_order": "rgb",
        # Inside the file; for who wants to know.
        "mean": normalised.mean.flatten().tolist(),
        "std": normalised.std.flatten().tolist(),
        "resize": _resize_rule(cfg),
    }
    if task == SEGMENTATION:
        head = graph.head
        return found | {
            "output": graph.output,
            "align_corners": bool(head.align_corners),
            "threshold": head.threshold,
        }
    size_divisor = cfg.model.data_preprocessor.get("pad_size_divisor", 1)
    found["size_divisor"] = size_divisor
    if task == INSTANCES:
        found["mask_threshold"] = find_field(cfg.model.test_cfg, "mask_thr_binary")
    return found


def _palette(dataset_meta: Mapping[str, Any]) -> list[list[int]] | None:
    palette = dataset_meta.get("palette")
    # Other than colours, MMDetection has names of palettes there.
    if palette is None or isinstance(palette, str):
        return None
    return [[int(part) for part in colour] for colour in palette]


def _resize_rule(cfg: Config) -> dict[str, Any] | None:
    rule = None
    for step in datasets_under_test(cfg)[0].pipeline:
        kind = type_name(step)
        if kind in _KEEPING or loads_annotations(step):
            continue
        if kind != "Resize" or rule is not None:
            raise UserError(
                f"config file {cfg.filename}: exported files prepare images by one Resize, and the test "
                f"pipeline has {kind}, too: leave it out, or export the --backbone alone"
            )
        rule = {"keep_ratio": bool(step.get("keep_ratio", False))}
        scale = step.get("scale")
        if scale is not None:
            both = [scale, scale] if isinstance(scale, int) else scale
            rule["scale"] = [int(side) for side in both]
        else:
            rule["scale_factor"] = float(step["scale_factor"])
    return rule
