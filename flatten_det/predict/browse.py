"""Draw samples of a config's data as the model gets them, beside what is on disk."""

import contextlib
import copy
import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmcv.transforms import Normalize
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, TRANSFORMS, VISUALIZERS, init_default_scope
from mmengine.runner import set_random_seed
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from torch import Tensor

from ..cli import progress_bar
from ..config import all_datasets, blame_config, is_segmentor, wrapped_datasets
from ..data.loading import (
    ImageError,
    blame_annotation_files,
    check_images,
    left_out,
    transforms_of,
)
from ..errors import UserError, listed
from ..files.atomic import refuse_overwriting, write_atomically
from ..files.images import pixel_limit
from .contact_sheet import SIDES, BrowsedSample, View, contact_sheet
from .drawing import draw_ground_truth

# Of masks and label maps, under which the pixels must be seen, too.
_ALPHA = 0.5


def browse(
    cfg: Config,
    split: str,
    out_dir: str,
    number: int = 16,
    indices: Sequence[int] = (),
    images: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Write pictures of samples of a data loader's data set, and a page that shows them.

    The same seed gives the same pictures of a sample, whatever others are drawn. Of validation and test
    data, whose annotations stay in the pixels of the file, the pictures show them where the image that
    the model gets has them.

    Args:
        cfg: A complete config.
        split: ``train``, ``val`` or ``test``.
        out_dir: Gets ``index.html`` and the folder ``pictures``.
        number: How many samples, spread over the data set.
        indices: Take these samples instead.
        images: Take the samples of these images instead: file names, or the ends of paths.
        seed: Of all that the pipeline draws at random.

    Returns:
        The page.

    Raises:
        UserError: There is no such data loader or sample, the pipeline packs no image, results would
            overwrite the data; or, after all others are done, some images cannot be read.
    """
    init_default_scope(cfg.get("default_scope", "mmdet"))
    if not cfg.get(f"{split}_dataloader"):
        raise UserError(
            f"config file {cfg.filename} has no {split}_dataloader: try another --split"
        )
    samples, reasons = [], []
    with blame_config(cfg) as stage, blame_annotation_files(cfg):
        browser = _Browser(cfg, split, seed)
        dataset = browser.dataset
        chosen = _choose(dataset, split, number, indices, images)
        page, files = Path(out_dir, "index.html"), _picture_files(out_dir, chosen)
        infos = map(dataset.get_data_info, chosen)
        inputs = [info.get(key) for info in infos for key in ("img_path", "seg_map_path")]
        outputs = [page, *(file for pair in files.values() for file in pair)]
        refuse_overwriting(filter(None, [cfg.filename, *inputs]), outputs, "--out-dir")
        with progress_bar() as progress:
            for index in progress.track(chosen, description="Drawing"):
                try:
                    samples.append(browser.draw(index, *files[index]))
                    stage.has_begun = True
                except ImageError as error:
                    reasons.append(str(error))
    facts = [
        ("config", str(cfg.filename)),
        ("samples", f"{len(samples)} of the {len(dataset)} of {split}"),
        ("seed", str(seed)),
        *_pipelines(dataset),
    ]
    title = f"Samples of {Path(cfg.filename).name}"
    write_atomically(page, contact_sheet(title, facts, samples, reasons).encode(), durable=False)
    print(f"{len(samples)} samples of {split}: {page}")
    if reasons:
        raise left_out(reasons, len(chosen))
    return page


class _Browser:
    """The built data set of a data loader, and what draws its samples."""

    def __init__(self, cfg: Config, split: str, seed: int) -> None:
        self.dataset = _build(cfg, split)
        if split != "train":
            _load_truth_first(self.dataset)
        self._unaugmented = _without_augmentation(self.dataset, is_segmentor(cfg))
        for each in (self.dataset, self._unaugmented):
            check_images(each, pixel_limit(cfg))
        self._to_rgb = _denormalizer(self.dataset)
        self._visualizer = VISUALIZERS.build(
            cfg.visualizer | {"name": f"browse-{id(self)}", "vis_backends": None}
        )
        self._visualizer.alpha = cfg.visualizer.get("alpha", _ALPHA)
        self._seed = seed

    def draw(self, index: int, on_disk: Path, for_model: Path) -> BrowsedSample:
        """Draw both sides of a sample into these files; an ImageError if it cannot be read."""
        original = self._unaugmented[index]
        set_random_seed((self._seed + index) % 2**32)
        packed = self.dataset[index]
        self._visualizer.dataset_meta = original["meta"]
        path = original["data_samples"].img_path
        return BrowsedSample(
            index,
            path,
            _checked(packed).get("img_path", path),  # Pipelines may pack without it.
            _draw(self._visualizer, original, _as_rgb, on_disk),
            _draw(self._visualizer, packed, self._to_rgb, for_model),
            tuple(original["meta"].get("classes") or ()),
        )


def _build(cfg: Config, split: str) -> Any:
    dataset = ()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells of its index.
            dataset = DATASETS.build(cfg[f"{split}_dataloader"].dataset)
            dataset.full_init()
    except ValueError as error:
        # mmengine's, of a data set without samples.
        if "need at least one array" not in str(error):
            raise
    if not len(dataset):
        raise UserError(
            f"there are no samples in the {split} data, or the data set's filters and classes leave none: "
            "flatten-det check says more"
        )
    return dataset


def _checked(packed: dict[str, Any]) -> BaseDataElement:
    """The annotations beside an image that can be drawn; a UserError if there is none."""
    inputs, sample = packed.get("inputs"), packed.get("data_samples")
    is_image = isinstance(inputs, Tensor) and inputs.ndim == 3 and len(inputs) in (1, 3)
    if not (is_image and isinstance(sample, BaseDataElement)):
        raise UserError(
            "the data's pipeline gives no single image of 1 or 3 channels with its annotations: browse takes "
            "pipelines that end in PackDetInputs or PackSegInputs"
        )
    return sample


def _loads(step: Callable) -> bool:
    return "Load" in type(step).__name__


def _load_truth_first(dataset: Any) -> None:
    """Have the steps after the loading move annotations too, which test pipelines load last."""
    for inner in all_datasets(dataset):
        if isinstance(getattr(inner, "pipeline", None), Compose):
            inner.pipeline.transforms.sort(key=lambda step: not _loads(step))


def _pipelines(dataset: Any) -> list[tuple[str, str]]:
    """The names of the steps by data set, the outermost last, as they are run."""
    found = []
    for inner in reversed(list(all_datasets(dataset))):
        if steps := transforms_of(inner):
            names = " → ".join(type(step).__name__ for step in steps)
            found.append((f"pipeline of {type(inner).__name__}", names))
    return list(dict.fromkeys(found))


def _without_augmentation(dataset: Any, of_segmentor: bool) -> Any:
    """A copy of a built data set that shares its content, and packs what is on disk.

    Its samples have the ``metainfo`` of the data set that they are from, as ``meta``.
    """
    plain = copy.copy(dataset)
    inner = [_without_augmentation(each, of_segmentor) for each in wrapped_datasets(dataset)]
    if not inner:
        meta = dict(dataset.metainfo)
        pack = TRANSFORMS.build({"type": "PackSegInputs" if of_segmentor else "PackDetInputs"})
        loading = filter(_loads, transforms_of(dataset))
        plain.pipeline = Compose([*loading, pack, lambda packed: packed | {"meta": meta}])
        return plain
    if hasattr(dataset, "datasets"):
        plain.datasets = inner
    else:
        plain.dataset = inner[0]
    if hasattr(dataset, "pipeline_types"):  # What mixes images.
        plain.pipeline = plain.pipeline_types = []
    return plain


def _choose(
    dataset: Any, split: str, number: int, indices: Sequence[int], images: Sequence[str]
) -> list[int]:
    count = len(dataset)
    if wrong := [index for index in indices if not 0 <= index < count]:
        raise UserError(f"--indices {listed(wrong)}: the {split} data has 0 to {count - 1}")
    if images:
        found: dict[str, int] = {}
        for index in range(count):
            path = Path(dataset.get_data_info(index)["img_path"]).as_posix()
            for name in images:
                if f"/{path}".endswith(f"/{name.lstrip('/')}"):
                    found.setdefault(name, index)
        if missing := [name for name in images if name not in found]:
            raise UserError(
                f"--images {listed(missing)}: not in the {split} data, or left out by its filters: give "
                "file names, or the ends of paths"
            )
        indices = [found[name] for name in images]
    if not indices:
        # One of each part, not the middle: a data set that is repeated would show the same image.
        edges = np.arange(min(number, count) + 1) * count // min(number, count)
        indices = np.random.default_rng(0).integers(edges[:-1], edges[1:]).tolist()
    return list(dict.fromkeys(indices))


def _picture_files(out_dir: str, chosen: Sequence[int]) -> dict[int, tuple[Path, ...]]:
    """Not by the images' names, which may be any, and come again where a data set is repeated."""
    folder = Path(out_dir, "pictures")
    return {index: tuple(folder / f"{index:06d}-{side}.png" for side in SIDES) for index in chosen}


def _as_rgb(image: np.ndarray) -> np.ndarray:
    """A pipeline's image, BGR or of one channel, as RGB of 8 bits."""
    image = np.ascontiguousarray(np.rint(image).clip(0, 255).astype(np.uint8))
    return mmcv.gray2rgb(image) if image.shape[-1] == 1 else mmcv.bgr2rgb(image)


def _denormalizer(dataset: Any) -> Callable[[np.ndarray], np.ndarray]:
    """What turns a pipeline's image to RGB; few pipelines normalize, as mostly models do it."""
    steps = [step for inner in all_datasets(dataset) for step in transforms_of(inner)]
    for step in steps:
        if isinstance(step, Normalize):
            return lambda image: _as_rgb(
                mmcv.imdenormalize(image.astype(np.float32), step.mean, step.std, step.to_rgb)
            )
    return _as_rgb


def _draw(
    visualizer: Visualizer,
    packed: dict[str, Any],
    to_rgb: Callable[[np.ndarray], np.ndarray],
    file: Path,
) -> View:
    sample = _checked(packed)
    image = to_rgb(packed["inputs"].numpy().transpose(1, 2, 0))
    set_random_seed(0)  # The visualizer's, which varies colours: the same on both sides.
    drawn = draw_ground_truth(visualizer, image, sample, file)
    objects, shares = sample.get("gt_instances") or {}, {}
    if "gt_sem_seg" in sample:
        (labels,) = sample.gt_sem_seg.values()
        found = zip(*map(np.ndarray.tolist, np.unique(labels, return_counts=True)), strict=True)
        shares = {label: count / labels.numel() for label, count in found}
    return View(
        file.name if drawn else None,
        image.shape[1::-1],
        Counter(objects["labels"].tolist() if "labels" in objects else ()),
        len(sample.get("ignored_instances") or ()),
        shares,
    )
