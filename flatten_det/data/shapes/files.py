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
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mmengine.logging import print_log
from PIL import Image

from ...compat.panoptic_api import id2rgb
from ...files.atomic import lock
from ...files.user_files import why_not_read
from ..coco import in_threads, mask_fields
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
# In COCO's files the classes count from 1; the background is the stuff category after them.
BACKGROUND_ID = len(CLASSES) + 1

# Folders that this process reads, held open so that no other process replaces them meanwhile.
_in_use = {}


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
        manifest = _manifest(root)
        is_known = manifest.get("format") == _FORMAT and manifest.keys() >= {"options", "files"}
        stored = manifest["options"] if is_known else None
        if stored != options.as_dict() or not _is_complete(root, manifest):
            reason = _why_replaced(root, stored, options)
            _render_folder(root, options, manifest, workers)
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
            file = stack.enter_context(open(root.parent / f".{root.name}.lock", "a"))
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _reserve(root: Path) -> None:
    """Mark the folder as read by this process until it ends."""
    if root in _in_use:
        _in_use.pop(root).close()
    manifest = open(root / MANIFEST)  # noqa: SIM115
    with contextlib.suppress(OSError):  # A file system without locks.
        if fcntl is not None:
            fcntl.flock(manifest, fcntl.LOCK_SH | fcntl.LOCK_NB)
    _in_use[root] = manifest


def _is_in_use(root: Path) -> bool:
    with open(root / MANIFEST, "r+") as manifest, contextlib.suppress(OSError):
        return not lock(manifest)
    return False  # A file system without locks.


def _manifest(root: Path) -> dict:
    """The manifest of a folder, of any version; empty where there is none."""
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
    sizes = _sizes(root)
    return all(sizes.get(name) == size for name, size in manifest["files"].items())


def _sizes(root: Path) -> dict[str, int]:
    """The size in bytes of every file in a folder, by its path in there."""
    paths = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    return {path.relative_to(root).as_posix(): path.lstat().st_size for path in paths}


def _why_replaced(root: Path, stored: dict | None, options: ShapesOptions) -> str | None:
    """Say why a folder with these stored options is rendered anew; raise if that could break something."""
    if root.exists() and not root.is_dir():
        raise FileExistsError(f"data_root '{root}' is a file; name a folder for Shapes instead")
    names = list(_sizes(root))
    if not names:
        return None
    foreign = [name for name in names if not _OURS.fullmatch(name)]
    if MANIFEST not in names or foreign:
        raise FileExistsError(
            f"data_root '{root}' holds files that flatten_det did not render, such as "
            f"'{(foreign or names)[0]}', and is left alone: name another folder for Shapes, or "
            "empty this one"
        )
    if stored is None:
        reason = "is damaged or of another version"
    elif stored == options.as_dict():
        return "is damaged"  # Whoever reads the folder meanwhile gets the same files back.
    else:
        changes = [
            f"{name} {stored.get(name)} instead of {value}"
            for name, value in options.as_dict().items()
            if stored.get(name) != value
        ]
        reason = f"has other options ({', '.join(changes)})"
    if _is_in_use(root):
        raise RuntimeError(
            f"Shapes in '{root}' {reason}, but is in use by a running process: give all data sets "
            "on this folder the same options, or name another data_root"
        )
    return reason


def _check_nothing_is_lost(root: Path, manifest: dict, new: Path) -> None:
    """Raise if a folder holds anything but what was rendered into it, or a beginning of what will be.

    Files that a full disk or a power cut has cut are worth nothing.
    """
    recorded = manifest.get("sha256") or manifest.get("files")  # Old ones have sizes only.
    recorded = recorded if isinstance(recorded, dict) else {}

    def is_as_rendered(name: str, size: int) -> bool:
        try:
            content = _read(root / name)
            is_recorded = recorded.get(name) in (size, _digest(content))
            return is_recorded or _read(new / name).startswith(content)
        except OSError:
            return False

    sizes = sorted(_sizes(root).items())
    changed = [name for name, size in sizes if name != MANIFEST and not is_as_rendered(name, size)]
    if changed:
        raise FileExistsError(
            f"data_root '{root}' would be rendered anew, but {len(changed)} of its files were changed or "
            f"added since it was rendered, such as '{changed[0]}', and it is left alone: name another "
            "folder for Shapes, or move or delete these files"
        )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _render_folder(root: Path, options: ShapesOptions, manifest: dict, workers: int | None) -> None:
    prefix = f".{root.name}.rendering-"
    try:
        for leftover in root.parent.glob(prefix + "*"):  # Of a process that was killed.
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=root.parent) as scratch:
            new, old = Path(scratch, "new"), Path(scratch, "old")
            _write_files(new, options, workers)
            _check_nothing_is_lost(root, manifest, new)
            if root.exists():
                os.replace(root, old)
            os.replace(new, root)
    except FileExistsError:
        raise
    except OSError as error:
        what = f"cannot render Shapes into '{root}': {error.strerror or error}"
        raise OSError(error.errno, what) from error


def _write_files(root: Path, options: ShapesOptions, workers: int | None) -> None:
    (root / "annotations").mkdir(parents=True)
    for split in SPLITS:
        for kind in ("images", "semantic", "panoptic"):
            (root / split / kind).mkdir(parents=True)
    jobs = [(split, i) for split in SPLITS for i in range(options.num_images[split])]
    images = in_threads(
        lambda job: _write_image(root, options, *job), jobs, "Rendering Shapes", workers
    )
    of_split = {split: [] for split in SPLITS}
    for (split, _), image in zip(jobs, images, strict=True):
        of_split[split].append(image)
    for split in SPLITS:
        _write_annotations(root / "annotations", split, *zip(*of_split[split], strict=True))
    sizes = _sizes(root)
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
    drawn, folder = render(options, split, index), root / split
    # Colours at full resolution, since halving it smears objects of 8 px.
    Image.fromarray(drawn.image).save(
        folder / f"images/{index:06}.jpg", quality=_JPEG_QUALITY, subsampling=0
    )
    classes = np.append(drawn.labels + 1, 0).astype(np.uint8)  # Owner -1 is the last.
    semantic = Image.fromarray(classes[drawn.owner])
    semantic.putpalette(np.array([(0, 0, 0), *PALETTE], np.uint8).tobytes())
    semantic.save(folder / f"semantic/{index:06}.png")
    # Objects from 1 on, then the background; no pixel is void.
    segment_of = np.where(drawn.owner < 0, len(drawn.labels), drawn.owner) + 1
    Image.fromarray(id2rgb(segment_of)).save(folder / f"panoptic/{index:06}.png")
    return _instances(drawn), _segments(drawn, segment_of), drawn.owner.shape


def _instances(drawn: ShapesImage) -> list[dict]:
    """Annotations of one image without their ids, with run lengths as masks."""
    return [
        {"category_id": label + 1, **mask_fields(drawn.owner == i)}
        for i, label in enumerate(drawn.labels.tolist())
    ]


def _segments(drawn: ShapesImage, segment_of: np.ndarray) -> list[dict]:
    """``segments_info`` of one image, whose pixels belong to these segments, int (H, W)."""
    found = []
    for id_, category in enumerate([*(drawn.labels + 1).tolist(), BACKGROUND_ID], start=1):
        fields = mask_fields(segment_of == id_)
        del fields["segmentation"]
        found.append({"id": id_, "category_id": category, **fields})
    return [segment for segment in found if segment["area"]]


def _write_annotations(
    folder: Path,
    split: str,
    instances: list[list[dict]],
    segments: list[list[dict]],
    sizes: list[tuple[int, int]],
) -> None:
    """Write COCO's two files for images with these instances, segments and ``(height, width)``."""
    flat = [{"image_id": i, **one} for i, of_image in enumerate(instances) for one in of_image]
    things = [
        {"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES, start=1)
    ]
    background = {"id": BACKGROUND_ID, "name": "background", "supercategory": "background"}
    of_kind = {
        # pycocotools takes a match with annotation 0 for no match, so ids start at 1.
        "instances": ([{"id": i, **one} for i, one in enumerate(flat, start=1)], things),
        "panoptic": (
            [
                {"image_id": i, "file_name": f"{i:06}.png", "segments_info": of_image}
                for i, of_image in enumerate(segments)
            ],
            [*({**thing, "isthing": 1} for thing in things), {**background, "isthing": 0}],
        ),
    }
    images = [
        {"id": i, "file_name": f"{i:06}.jpg", "height": height, "width": width}
        for i, (height, width) in enumerate(sizes)
    ]
    for kind, (annotations, categories) in of_kind.items():
        content = {
            "info": {"description": "Shapes, rendered by flatten_det"},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
        (folder / f"{kind}_{split}.json").write_text(json.dumps(content))
