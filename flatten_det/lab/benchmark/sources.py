"""Where models come from: flatten_det's names, MMDetection, timm, torchvision, and config files."""

import contextlib
import inspect
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mmcv.cnn
import numpy as np
import timm
import torch
import torchvision
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmseg.models import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from ...backbones import BACKBONES, build_backbone
from ...config import load_config, our_configs, parse_cfg_options, split_outside
from ...errors import UserError, did_you_mean
from .run import Setting

# MMDetection's own configs of these backbones: their arguments are read from there.
MMDET = {
    "pvt-t": "pvt/retinanet_pvt-t_fpn_1x_coco.py",
    "pvt-s": "pvt/retinanet_pvt-s_fpn_1x_coco.py",
    "pvt-m": "pvt/retinanet_pvt-m_fpn_1x_coco.py",
    "pvt-l": "pvt/retinanet_pvt-l_fpn_1x_coco.py",
    **{f"pvtv2-b{i}": f"pvt/retinanet_pvtv2-b{i}_fpn_1x_coco.py" for i in range(6)},
    "swin-t": "swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py",
    "swin-s": "swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py",
    "resnet-50": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "resnet-101": "mask_rcnn/mask-rcnn_r101_fpn_1x_coco.py",
}
_OBJECTS = 8  # in each image
_SEGMENTS = 8  # a side: the label map is a grid of squares
_SEED = 0


@dataclass(frozen=True, order=True)
class Size:
    """Of an image, in pixels."""

    height: int
    width: int

    @property
    def hw(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    def kind_of(self, setting: Setting, words: str) -> str:
        """See :attr:`~.run.Setting.kind`."""
        return words if setting.batch == 1 else f"{words}, batch {setting.batch}"


def find_size(text: str) -> Size:
    """The size of ``512`` (a square) or ``800x1280`` (height x width); UserError if the text is neither."""
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not found or 0 in (size := Size(int(found[1]), int(found[2] or found[1]))).hw:
        raise UserError(f"--sizes {text}: give pixels, such as 512, or height x width: 800x1280")
    return size


def short_name(model: str) -> str:
    """Of a model: a config's file name without folders and ending, and the ends of its options' keys."""
    config = as_config(model)
    if config is None:
        return model
    path, options = config
    # What follows the last dot of a key, and all of its value.
    return " ".join([Path(path).stem, *(re.sub(r"^[^=]*\.", "", option) for option in options)])


def as_config(model: str) -> tuple[str, list[str]] | None:
    """Path and ``KEY=VALUE`` options of a model that is a config; None for others.

    UserError if brackets or quotes of the options are not closed.
    """
    parts = re.fullmatch(r"[\"']?(.+?\.py)[\"']?(?:\s+(.*))?", model.strip(), re.DOTALL)
    if parts is not None:
        path, options = parts.groups(default="")
    else:
        path, _, options = model.strip().partition(" ")
        if path not in our_configs():
            return None
    try:
        pairs = split_outside(options, " ")
    except ValueError as error:
        raise UserError(f"--models {model}: {error}") from error
    # Quotes around a whole pair are those of a shell.
    return path, [pair[1:-1] if pair[0] in "\"'" else pair for pair in pairs if pair]


@dataclass(frozen=True)
class Source:
    """A model that can be built."""

    build: Callable[[Size], nn.Module]  # for a size, with random weights, on torch's default device
    whole: bool = False  # a detector or segmentor rather than a backbone


def find_source(name: str) -> Source:
    """The model of a name; nothing is built yet, and a UserError says that there is no such model.

    - ``flatten-pvt-t`` and all other :data:`~flatten_det.backbones.BACKBONES`;
    - ``mmdet:swin-t`` and all of :data:`MMDET`;
    - ``timm:NAME`` of a model with features;
    - ``torchvision:NAME`` of a classification model, whose head is left out;
    - the path of a config file (``.py``), and after it, by spaces, fields to override as ``KEY=VALUE``.

    Drop path is off everywhere: else training would differ by luck and by configuration.
    """
    config = as_config(name)
    if config is not None:
        path, options = config
        cfg = load_config(path, parse_cfg_options(options))
        return Source(lambda size: _without_drop_path(build_whole(cfg)), whole=True)
    library, separator, model = name.partition(":")
    if not separator:
        _require(name, name, BACKBONES, "give one of flatten_det's, LIBRARY:NAME, or a config file")
        return Source(lambda size: build_backbone(name))
    if library == "mmdet":
        known, hint, build = MMDET, f"of mmdet there are {', '.join(MMDET)}", _build_mmdet
    elif library == "timm":
        known, hint, build = timm.list_models(), "see timm.list_models()", _build_timm
    elif library == "torchvision":
        known = torchvision.models.list_models(module=torchvision.models)
        hint, build = "see torchvision.models.list_models()", _build_torchvision
    else:
        raise UserError(
            f"--models {name}: models come from mmdet, timm, torchvision, not {library}"
        )
    # What follows a dot in timm's names is the tag of weights.
    _require(name, model.partition(".")[0] if library == "timm" else model, known, hint)
    return Source(lambda size: _without_drop_path(build(model, size)))


def _build_mmdet(model: str, size: Size) -> nn.Module:
    backbone = get_config(f"mmdet::{MMDET[model]}").model.backbone
    config = ConfigDict(backbone, out_indices=(0, 1, 2, 3), init_cfg=None)
    if "frozen_stages" in config:
        config.frozen_stages = -1
    # Whatever was built before may have left another scope.
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(config)


def _build_timm(model: str, size: Size) -> nn.Module:
    create = partial(timm.create_model, model, features_only=True)
    # Windows, grids of positions and checks of the input are made for a size, in models that have one.
    try:
        return create(img_size=size.hw)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return create()


def _build_torchvision(model: str, size: Size) -> nn.Module:
    classifier = torchvision.models.get_model(model, weights=None)
    if hasattr(classifier, "features"):
        return classifier.features
    stages = [f"layer{number}" for number in range(1, 5)]
    if all(hasattr(classifier, stage) for stage in stages):
        return create_feature_extractor(classifier, stages)
    raise ValueError(f"torchvision's {model} has no part that gives feature maps of any image size")


def _without_drop_path(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, torchvision.ops.StochasticDepth):
            module.p = 0.0
        elif isinstance(module, mmcv.cnn.bricks.DropPath | timm.layers.DropPath):
            module.drop_prob = 0.0
    return model


def _require(name: str, model: str, known: Iterable[str], hint: str) -> None:
    if model in known:
        return
    meant = did_you_mean(model, known, most=3, cutoff=0.5)
    raise UserError(f"--models {name}: no such model; {hint}; {meant}".rstrip("; "))


def build_whole(cfg: Config) -> nn.Module:
    """The detector or segmentor of a config with random weights; no checkpoint is loaded."""
    model_cfg = ConfigDict(cfg.model.to_dict())
    model_cfg.pop("pretrained", None)
    for part in (model_cfg, model_cfg.backbone):
        part.init_cfg = None
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmdet")):
        model = MODELS.build(model_cfg)
        with quiet_logs():  # How each of hundreds of parameters was initialised.
            model.init_weights()
    return model


@contextlib.contextmanager
def quiet_logs() -> Iterator[None]:
    """No log of any logger below warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def network_call(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """What is measured at inference on ``(B, 3, H, W)``: the network without post-processing, as counted.

    Two-stage detectors run their box heads on the proposals that come out (1000 at most) and their mask
    heads on the first 100 of them.
    """
    samples = synthetic_batch(model, images)
    head = getattr(model, "decode_head", None)
    if head is not None and "batch_data_samples" in inspect.signature(head.forward).parameters:
        # MMSegmentation's own mode "tensor" forgets the samples.
        return lambda: head(model.extract_feat(images), samples)
    return lambda: model(images, samples, mode="tensor")


def loss_call(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """What is differentiated in training on ``(B, 3, H, W)``: the sum of all losses."""
    samples = synthetic_batch(model, images)

    def call() -> Tensor:
        # Assigners change what they get.
        losses = model(images, [sample.clone() for sample in samples], mode="loss")
        return model.parse_losses(losses)[0]

    return call


def synthetic_batch(model: nn.Module, images: Tensor) -> list[BaseDataElement]:
    """Made-up annotations for a batch, the same for the same model and size.

    For segmentors a label map; for detectors 8 boxes with masks, and a label map where there is stuff.
    """
    generator = np.random.default_rng(_SEED)
    size = tuple(images.shape[-2:])
    sizes = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), size)
    meta = dict(**sizes, scale_factor=(1.0, 1.0), flip=False)
    make = _segmented if isinstance(model, BaseSegmentor) else _detected
    return [make(model, meta, generator).to(images.device) for _ in images]


def _segmented(model: nn.Module, meta: dict, generator: np.random.Generator) -> SegDataSample:
    labels = _label_map(meta["img_shape"], 0, model.decode_head.num_classes, generator)
    return SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=labels))


def _detected(model: nn.Module, meta: dict, generator: np.random.Generator) -> DetDataSample:
    height, width = meta["img_shape"]
    centres = generator.uniform(0.2, 0.8, (_OBJECTS, 2))
    # Areas from small to large, as in COCO.
    sides = np.geomspace(0.05, 0.4, _OBJECTS)[:, None] / 2
    corners = np.concatenate([centres - sides, centres + sides], axis=1)
    boxes = np.clip(corners, 0, 1) * (width, height, width, height)
    masks = np.zeros((_OBJECTS, height, width), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int), strict=True):
        mask[top : bottom + 1, left : right + 1] = 1
    things, stuff = _classes(model)
    sample = DetDataSample(metainfo=meta)
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32),
        labels=torch.from_numpy(generator.integers(0, things, _OBJECTS)),
        masks=BitmapMasks(masks, height, width),
    )
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
    )
    if stuff:
        labels = _label_map((height, width), things, things + stuff, generator)
        sample.gt_sem_seg = PixelData(sem_seg=labels)
    return sample


def _classes(model: nn.Module) -> tuple[int, int]:
    """Numbers of classes of things and of stuff."""
    panoptic = getattr(model, "panoptic_head", None)
    if panoptic is not None:
        return panoptic.num_things_classes, panoptic.num_stuff_classes
    head = getattr(model, "roi_head", model).bbox_head
    return (head[0] if isinstance(head, nn.ModuleList) else head).num_classes, 0


def _label_map(
    size: tuple[int, int], first: int, end: int, generator: np.random.Generator
) -> Tensor:
    coarse = torch.from_numpy(generator.integers(first, end, (1, 1, _SEGMENTS, _SEGMENTS)))
    fine = nn.functional.interpolate(coarse.to(torch.uint8), size=size, mode="nearest")
    return fine[0].long()
