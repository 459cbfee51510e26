"""A small checkout of the zoo: two configs with their entries, and an up-to-date page."""

import shutil
from pathlib import Path

import yaml

from flatten_det.lab.zoo import inspect_zoo
from flatten_det.lab.zoo.metafiles import METAFILES

ROOT = Path(__file__).parents[2]
FLATTEN = "configs/mask_rcnn/mask-rcnn_flatten-swin-t_fpn_1x_coco.py"
BASELINE = "configs/mask_rcnn/mask-rcnn_swin-t_fpn_1x_coco.py"
METAFILE = "configs/flatten_swin/metafile.yml"


def make_small_zoo(root: Path) -> Path:
    """Copy what belongs to :data:`FLATTEN` and :data:`BASELINE` out of this checkout."""
    shutil.copytree(ROOT / "configs" / "_base_", root / "configs" / "_base_")
    for name in ("quickstart", "ablation"):  # The page links to them.
        (root / "configs" / name).mkdir()
    for path in (FLATTEN, BASELINE, *METAFILES):
        (root / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, root / path)
    for path in METAFILES:
        content = yaml.safe_load((root / path).read_text())
        content["Models"] = [e for e in content["Models"] if e["Config"] in (FLATTEN, BASELINE)]
        (root / path).write_text(yaml.safe_dump(content))
    (root / "README.md").write_text("[zoo](configs/README.md)\n")
    inspect_zoo(root, count=False).write(root)
    return root
