"""How the zoo calls backbones, methods and data sets."""

# Order of the families, methods and data sets here is their order on the zoo page.
FAMILIES = {
    "pvt": ("flatten_pvt", "PVT"),
    "pvtv2": ("flatten_pvt_v2", "PVTv2"),
    "swin": ("flatten_swin", "Swin"),
    "cswin": ("flatten_cswin", "CSwin"),
    "deit": ("flatten_deit", "DeiT"),
}
METHODS = {
    "retinanet": "RetinaNet",
    "mask_rcnn": "Mask R-CNN",
    "cascade_mask_rcnn": "Cascade Mask R-CNN",
    "deformable_detr": "Deformable DETR",
    "dino": "DINO",
    "semantic_fpn": "Semantic FPN",
    "upernet": "UperNet",
    "segformer": "SegFormer",
    "mask2former": "Mask2Former",
}
DATASETS = {
    "CocoDataset": "COCO",
    "CocoPanopticDataset": "COCO panoptic",
    "ADE20KDataset": "ADE20K",
    "CityscapesDataset": "Cityscapes",
}


def family_of(backbone: str) -> str:
    """``flatten-swin-b-384`` -> ``swin``."""
    return backbone.removeprefix("flatten-").split("-")[0]


def metafile_of(backbone: str) -> str:
    """Path of the metafile that lists the configs of a backbone, relative to the checkout."""
    return f"configs/{FAMILIES[family_of(backbone)][0]}/metafile.yml"


def collection_of(backbone: str) -> str:
    """``flatten-swin-b-384`` -> ``FLatten-Swin``."""
    return _prefix(backbone) + FAMILIES[family_of(backbone)][1]


def title_of(backbone: str) -> str:
    """``flatten-swin-b-384`` -> ``FLatten-Swin-B-384``."""
    size = backbone.removeprefix("flatten-").partition("-")[2]
    return f"{collection_of(backbone)}-{size.upper()}"


def _prefix(backbone: str) -> str:
    return "FLatten-" if backbone.startswith("flatten-") else ""
