"""Where the ImageNet weights of a config come from."""

from ...backbones import BACKBONES
from ...backbones.weights import OFFICIAL_CHECKPOINTS

NOT_RELEASED = "not released"

# ImageNet-1K top-1 accuracy in percent of the softmax baselines, as arXiv 2308.00442, Fig. 6, reports it.
BASELINE_TOP1 = {
    "pvt-t": 75.1,
    "pvt-s": 79.8,
    "pvtv2-b1": 78.7,
    "pvtv2-b2": 82.0,
    "swin-t": 81.3,
    "swin-s": 83.0,
    "swin-b": 83.5,
    "cswin-t": 82.7,
    "cswin-s": 83.6,
    "cswin-b": 84.2,
    "deit-t": 72.2,
}


def describe_pretraining(backbone: str, checkpoint: str) -> dict[str, str | int | float]:
    """The metadata of a config's ImageNet weights.

    Args:
        backbone: short name.
        checkpoint: file or URL of the config's ``init_cfg``.

    Returns:
        ``Pretraining Weights``: ``checkpoint``. ``Pretraining Source``: where to get it, or
        :data:`NOT_RELEASED`. ``Pretraining Resolution`` in pixels. ``Pretraining Top 1 Accuracy`` in
        percent, as reported, where it is.
    """
    official = OFFICIAL_CHECKPOINTS.get(backbone.replace("-", "_"))
    if checkpoint.startswith("https://"):
        source, top1 = checkpoint, BASELINE_TOP1.get(backbone)
    elif official is not None:
        source, top1 = official.page, official.top1
    else:
        source, top1 = NOT_RELEASED, None
    described = {
        "Pretraining Weights": checkpoint,
        "Pretraining Source": source,
        "Pretraining Data": "ImageNet-1K",
        "Pretraining Resolution": BACKBONES[backbone].get("pretrain_img_size", 224),
    }
    return described if top1 is None else described | {"Pretraining Top 1 Accuracy": top1}
