"""The folder of the Shapes data set: written once, checked fast, replaced as a whole.

The layout is that of COCO, with semantic and panoptic masks beside the images::

    data/shapes/
      annotations/{instances,panoptic}_{train,val}.json
      train/images/000000.jpg ...   train/{semantic,panoptic}/000000.png ...
      val/images/000000.jpg ...     val/{semantic,panoptic}/000000.png ...
      shapes.json                   options, and size and digest of every file

A folder is rendered beside its place and renamed into it when it is complete. It replaces nothing but what
was rendered: files of somebody else, or changed ones, are left alone.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.logging import print_log
from PIL import Image
from rich.progress import track

from ...compat.panoptic_api import id2rgb
from ...files.user_files import why_not_read
from ..coco import mask_fields
from .options import CLASSES, PALETTE, SPLITS, ShapesOptions
from .render import ShapesImage, render

try:
    import fcntl
except ImportError:  # Windows: two processes must not render into the same place at once there.
    fcntl = None

MANIFEST = "shapes.json"
# Raise it whenever the same options give other files.
_FORMAT = {"name": "flatten_det shapes", "version": 2}
_OURS = re.compile(
    r"shapes\.json|annotations/(instances|panoptic)_(train|val)\.json"
    r"|(train|val)/(images/\d{6,}\.jpg|(semantic|panoptic)/\d{6,}\.png)"
)
_JPEG_QUALITY = 92

# Folders that this process reads, held open so that no other process replaces them meanwhile.
_in_use = {}


class SplitPaths(NamedTuple):
    """Where the files of a split are, relative to the data root: folders, and COCO's annotations."""

    images: str
    semantic: str
    panoptic: str
    instances_file: str
    panoptic_file: str


def split_paths(split: str) -> SplitPaths:
    """Those of ``'train'`` or ``'val'``."""
    folders = (f"{split}/{kind}" for kind in ("images", "semantic", "panoptic"))
    files = (f"annotations/{kind}_{split}.json" for kind in ("instances", "panoptic"))
    return SplitPaths(*folders, *files)


def prepare_shapes(
    data_root: str | os.PathLike, options: ShapesOptions, workers: int | None = None
) -> None:
    """Make sure that ``data_root`` holds the Shapes data set with these options.

    A complete folder is reused; a damaged one, or one of ours with other options, is rendered anew,
    unless it holds files that would be lost. Of several processes one renders and the others wait for
    it. The folder stays reserved until the process ends: no other process can replace it by one with
    other options.

    Args:
        data_root: The folder, such as ``data/shapes``.
        options: What it shall contain.
        workers: Threads that render, by default one per CPU. The files do not depend on it.

    Raises:
        FileExistsError: ``data_root`` holds files that are not ours, or were changed.
        RuntimeError: The folder must be rendered anew, but is in use with its present options.
        OSError: The folder cannot be written.
    """
    root = Path(data_root).resolve()
    with _render_lock(root):
        found = _read_manifest(root)
        if found is None or found["options"] != options.as_dict() or not _is_complete(root, found):
            reason = _why_replaced(root, found, options)
            _render_folder(root, options, workers or os.cpu_count() or 1)
            if reason:
                print_log(f"Shapes in '{root}' {reason}: rendered anew", "current")
        _reserve(root)


@contextlib.contextmanager
def _render_lock(root: Path) -> Iterator[None]:
    """Hold the right to render ``root``, waiting while another process has it."""
    with contextlib.ExitStack() as stack:
        # Where no lock file can be made, nothing can be rendered either, but a complete folder
        # can still be read.
        with contextlib.suppress(OSError):
            root.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(root.parent / f".{root.name}.lock", "a"))
            _flock(lock, "LOCK_EX")
        yield


def _flock(file, *flags: str) -> None:
    if fcntl is not None:
        fcntl.flock(file, sum(getattr(fcntl, flag) for flag in flags))


def _reserve(root: Path) -> None:
    """Mark the folder as read by this process until it ends."""
    if root in _in_use:
        _in_use.pop(root).close()
    manifest = open(root / MANIFEST)  # noqa: SIM115
    with contextlib.suppress(OSError):  # A file system without locks.
        _flock(manifest, "LOCK_SH", "LOCK_NB")
    _in_use[root] = manifest


def _read_manifest(root: Path) -> dict | None:
    """The manifest of a folder, or None where there is none that this version understands."""
    manifest = _any_manifest(root)
    is_from_known_library = manifest.get("format") == _FORMAT
    return manifest if is_from_known_library and manifest.keys() >= {"options", "files"} else None


def _any_manifest(root: Path) -> dict:
    """The manifest of any version; empty where there is none."""
    try:
        manifest = json.loads(_read(root / MANIFEST))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _read(path: Path) -> bytes:
    if reason := why_not_read(path):
        raise FileNotFoundError(f"{path} {reason}")
    return path.read_bytes()


def _is_complete(root: Path, manifest: dict) -> bool:
    sizes = dict(_files(root))
    return all(sizes.get(name) == size for name, size in manifest["files"].items())


def _files(root: Path) -> Iterator[tuple[str, int]]:
    """Relative paths and sizes in bytes of all files in a folder."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            yield Path(os.path.relpath(path, root)).as_posix(), os.lstat(path).st_size


def _why_replaced(root: Path, found: dict | None, options: ShapesOptions) -> str | None:
    """Say why a folder is rendered anew, or raise if that could lose or break something."""
    if root.exists() and not root.is_dir():
        raise FileExistsError(f"data_root '{root}' is a file; name a folder for Shapes instead")
    names = [name for name, _ in _files(root)]
    if not names:
        return None
    foreign = [name for name in names if not _OURS.fullmatch(name)]
    if MANIFEST not in names or foreign:
        raise FileExistsError(
            f"data_root '{root}' holds files that flatten_det did not render, such as "
            f"'{(foreign or names)[0]}', and is left alone: name another folder for Shapes, or "
            "empty this one"
        )
    if found is None:
        reason = "is damaged or of another version"
    elif found["options"] == options.as_dict():
        return "is damaged"  # Whoever reads the folder meanwhile gets the same files back.
    else:
        changes = [
            f"{name} {found['options'].get(name)} instead of {value}"
            for name, value in options.as_dict().items()
            if found["options"].get(name) != value
        ]
        reason = f"has other options ({', '.join(changes)})"
    if _is_in_use(root):
        raise RuntimeError(
            f"Shapes in '{root}' {reason}, but is in use by a running process: give all data sets "
            "on this folder the same options, or name another data_root"
        )
    return reason


def _check_nothing_is_lost(root: Path, new: Path) -> None:
    """Raise if a folder holds anything but what was rendered into it, or a beginning of what will be.

    Files that a full disk or a power cut has cut are worth nothing.
    """
    manifest = _any_manifest(root)
    recorded = manifest.get("sha256") or manifest.get("files")  # Old ones have sizes only.
    recorded = recorded if isinstance(recorded, dict) else {}
    changed = [
        name
        for name, size in sorted(_files(root))
        if name != MANIFEST
        and not _is_as_rendered(root / name, size, recorded.get(name), new / name)
    ]
    if changed:
        raise FileExistsError(
            f"data_root '{root}' would be rendered anew, but {len(changed)} of its files were changed or "
            f"added since it was rendered, such as '{changed[0]}', and it is left alone: name another "
            "folder for Shapes, or move or delete these files"
        )


def _is_as_rendered(path: Path, size: int, recorded: str | int | None, new: Path) -> bool:
    try:
        content = _read(path)
        return recorded in (size, _digest(content)) or _read(new).startswith(content)
    except OSError:
        return False


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _is_in_use(root: Path) -> bool:
    with open(root / MANIFEST, "r+") as manifest:
        try:
            _flock(manifest, "LOCK_EX", "LOCK_NB")
        except BlockingIOError:
            return True
        except OSError:  # A file system without locks.
            pass
    return False


def _render_folder(root: Path, options: ShapesOptions, workers: int) -> None:
    prefix = f".{root.name}.rendering-"
    try:
        for leftover in root.parent.glob(prefix + "*"):  # Of a process that was killed.
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=root.parent) as scratch:
            new, old = Path(scratch, "new"), Path(scratch, "old")
            _write_files(new, options, workers)
            _check_nothing_is_lost(root, new)
            if root.exists():
                os.replace(root, old)
            os.replace(new, root)
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(
            error.errno, f"cannot render Shapes into '{root}': {error.strerror or error}"
        ) from error


def _write_files(root: Path, options: ShapesOptions, workers: int) -> None:
    for paths in map(split_paths, SPLITS):
        for folder in (paths.images, paths.semantic, paths.panoptic):
            (root / folder).mkdir(parents=True)
    (root / "annotations").mkdir()
    jobs = [(split, i) for split in SPLITS for i in range(options.num_images[split])]
    annotations = {split: [] for split in SPLITS}
    # Threads, since drawing and encoding release the GIL; processes would each have to import
    # this package, which takes longer than the rendering.
    with ThreadPoolExecutor(workers) as pool:
        try:
            results = pool.map(lambda job: _write_image(root, options, *job), jobs)
            results = track(results, "Rendering Shapes", total=len(jobs))
            for (split, _), image_annotations in zip(jobs, results, strict=True):
                annotations[split].append(image_annotations)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C need not wait for the remaining images.
            raise
    for split in SPLITS:
        of_instances, of_segments, sizes = zip(*annotations[split], strict=True)
        paths = split_paths(split)
        content = _instances_json(of_instances, sizes)
        (root / paths.instances_file).write_text(json.dumps(content))
        content = _panoptic_json(of_segments, sizes)
        (root / paths.panoptic_file).write_text(json.dumps(content))
    sizes = dict(_files(root))
    manifest = {
        "format": _FORMAT,
        "options": options.as_dict(),
        "files": sizes,
        "sha256": {name: _digest(_read(root / name)) for name in sizes},
    }
    (root / MANIFEST).write_text(json.dumps(manifest))


def _write_image(
    root: Path, options: ShapesOptions, split: str, index: int
) -> tuple[list[dict], list[dict], tuple[int, int]]:
    """Write one image and its masks, and return its instances, segments and ``(height, width)``."""
    drawn, paths = render(options, split, index), split_paths(split)
    # Colours at full resolution, since halving it smears objects of 8 px.
    Image.fromarray(drawn.image).save(
        root / paths.images / f"{index:06}.jpg", quality=_JPEG_QUALITY, subsampling=0
    )
    semantic = Image.fromarray(semantic_map(drawn))
    semantic.putpalette(np.array([(0, 0, 0), *PALETTE], np.uint8).tobytes())
    semantic.save(root / paths.semantic / f"{index:06}.png")
    panoptic = Image.fromarray(id2rgb(panoptic_map(drawn)))
    panoptic.save(root / paths.panoptic / f"{index:06}.png")
    return instances(drawn), segments(drawn), drawn.owner.shape


# In COCO's files the classes count from 1; the background is the stuff category after them.
BACKGROUND_ID = len(CLASSES) + 1


def semantic_map(drawn: ShapesImage) -> np.ndarray:
    """Class of every pixel, 0 for the background, uint8 (H, W)."""
    classes = np.concatenate([drawn.labels + 1, [0]]).astype(np.uint8)  # Owner -1 is the last.
    return classes[drawn.owner]


def instances(drawn: ShapesImage) -> list[dict]:
    """Annotations of one image without their ids, with run lengths as masks."""
    return [
        {"category_id": label + 1, **mask_fields(drawn.owner == i)}
        for i, label in enumerate(drawn.labels.tolist())
    ]


def panoptic_map(drawn: ShapesImage) -> np.ndarray:
    """Segment of every pixel, int (H, W): objects from 1 on, then the background. No pixel is void."""
    return np.where(drawn.owner < 0, len(drawn.labels), drawn.owner) + 1


def segments(drawn: ShapesImage) -> list[dict]:
    """``segments_info`` of one image: the segments of :func:`panoptic_map`."""
    segment_of, found = panoptic_map(drawn), []
    for id_, category in enumerate([*(drawn.labels + 1).tolist(), BACKGROUND_ID], start=1):
        fields = mask_fields(segment_of == id_)
        del fields["segmentation"]
        found.append({"id": id_, "category_id": category, **fields})
    return [segment for segment in found if segment["area"]]


def _instances_json(of_images: Sequence[list[dict]], sizes: Sequence[tuple[int, int]]) -> dict:
    flat = [{"image_id": i, **one} for i, of_image in enumerate(of_images) for one in of_image]
    # pycocotools takes a match with annotation 0 for no match, so ids start at 1.
    annotations = [{"id": i, **annotation} for i, annotation in enumerate(flat, start=1)]
    return _coco_json(sizes, annotations, _categories())


def _panoptic_json(of_images: Sequence[list[dict]], sizes: Sequence[tuple[int, int]]) -> dict:
    annotations = [
        {"image_id": i, "file_name": f"{i:06}.png", "segments_info": of_image}
        for i, of_image in enumerate(of_images)
    ]
    background = {"id": BACKGROUND_ID, "name": "background", "supercategory": "background"}
    things = [{**category, "isthing": 1} for category in _categories()]
    return _coco_json(sizes, annotations, [*things, {**background, "isthing": 0}])


def _categories() -> list[dict]:
    return [
        {"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES, start=1)
    ]


def _coco_json(
    sizes: Sequence[tuple[int, int]], annotations: list[dict], categories: list[dict]
) -> dict:
    return {
        "info": {"description": "Shapes, rendered by flatten_det"},
        "licenses": [],
        "images": [
            {"id": i, "file_name": f"{i:06}.jpg", "height": height, "width": width}
            for i, (height, width) in enumerate(sizes)
        ],
        "annotations": annotations,
        "categories": categories,
    }
