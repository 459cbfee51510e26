"""Counting as the published numbers do (arXiv 2308.00442, Tables 1 and 2).

The tables come from mmcv's old counter, which follows modules: it sees ``nn.Linear`` and ``nn.Conv2d``
with their biases, norms, ReLUs and poolings, but no product of two activations. What is missing, scripts
add by a formula for every block of the backbone: PVT's does (``detection/get_flops.py``), and so does
that of the authors' next paper, Agent Attention. The baselines' figures have the two products of softmax
attention in them: without, PVT-T with Mask R-CNN would be 208 instead of 240 G, Swin-T 263 instead of
267 G. That is the *paper style* here: what mmcv's counter finds, plus the products of the softmax
baseline's attention. All baselines come out within 0.5 %.

The linear models come out within 1 % too, if they keep the products of a softmax attention that they do
not have. That they were counted so is our inference; no script of this paper is public. The exception is
Semantic FPN with FLatten-PVT-T, for which 9 of 169 G remain. Half of them would be zeros: every map
padded to whole windows of the pretraining's 56, 28, 14 and 7 tokens a side, which positional encodings of
a fixed size need (Mask R-CNN: 2 G more). Not the cause are

- spatially reduced keys in the linear stages: 1.4 G less, and 17 M parameters where the table has 16 M;
- softmax attention in some of the stages: its products are in already, and its modules cost less;
- linear attention's own products: 2 G, or 5 G over all channels instead of within heads. They grow with
  the number of tokens, which is 2 % larger here than in Mask R-CNN, while the rest is four times larger.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

from mmcv.cnn.utils.flops_counter import get_modules_mapping
from mmengine.config import Config
from torch import nn

from .counter import Complexity
from .models import build_without_values, count_backbone, count_model

_PRODUCTS = ("aten.bmm", "aten.baddbmm")


@dataclass(frozen=True)
class PaperCount:
    """One model, counted in both styles.

    Attributes:
        size: ``(H, W)`` of the image in pixels.
        complete: everything that runs.
        modules: what mmcv's counter, which follows modules, finds.
        softmax: the two products of the softmax baseline's attention in the backbone.
    """

    size: tuple[int, int]
    complete: Complexity
    modules: int
    softmax: int

    @property
    def paper_style(self) -> int:
        return self.modules + self.softmax


def count_as_published(cfg: Config, size: tuple[int, int], **backbone: Any) -> PaperCount:
    """Count a model completely, and as the paper did.

    Args:
        cfg: of MMDetection or MMSegmentation.
        size: ``(H, W)`` of the image in pixels.
        backbone: arguments that replace or extend those of the config's backbone.

    Raises:
        ValueError: for a model that cannot be counted.
    """
    model = build_without_values(cfg, **backbone)
    with _modules_counted(model) as counts:
        complete = count_model(model, size)
    if "attn_types" in signature(type(model.backbone)).parameters:
        backbone["attn_types"] = "S" * len(model.backbone.stage_strides)
    baseline = build_without_values(cfg, **backbone).backbone
    softmax = count_backbone(baseline, size).macs_by_operator
    return PaperCount(
        size,
        complete,
        modules=sum(counts.values()),
        softmax=sum(softmax.get(name, 0) for name in _PRODUCTS),
    )


@contextmanager
def _modules_counted(model: nn.Module) -> Iterator[dict[str, int]]:
    """Yields a dict that mmcv's rules fill, by the module's name, while the model runs."""
    counts: dict[str, int] = {}
    rules = get_modules_mapping()
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        rule = rules[type(module)]

        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            module.__flops__ = 0  # Where mmcv's rules leave their result.
            rule(module, inputs, output)
            counts[name] = counts.get(name, 0) + module.__flops__
            del module.__flops__

        handles.append(module.register_forward_hook(hook))

    for name, module in model.named_modules():
        if type(module) in rules:
            watch(name, module)
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
