"""Own data as labelling programs write it, made into COCO files: YOLO, Pascal VOC and labelme.

A reader finds the images and objects of each split and gives them to :class:`_Objects`; all that follows is
the same for every format. CVAT, Label Studio and Roboflow export these formats, or COCO.
"""

import base64
import io
import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any
from xml.etree import ElementTree

import mmengine
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ...errors import UserError, in_one_line, listed, printable
from ...files.images import IMAGE_SUFFIXES, images_below, seen_size
from ...files.user_files import files_below, read_lines, read_text
from ..coco import is_coco, is_number, mask_fields, repeated
from .coco_file import (
    SPLITS,
    CocoFile,
    check_content,
    read_json,
    split_of_folder,
)

# A coordinate may leave the image by this part of its side, or a pixel: it is rounding, and cut off.
_ROUNDING = 0.01
_POINTS_OF_CIRCLE = 32
# What in files of VOC's form tells of programs that count from 0: Label Studio, and Datumaro (CVAT's).
_FROM_0 = (("owner/name", "Label Studio"), ("source/image", "Unknown"))
_LISTS = ("ImageSets", "Main")  # folders of Pascal VOC's lists of splits
_COCO = "COCO annotations"  # that were not there
_DIFFICULT = "difficult objects that count neither as found nor as missed (iscrowd)"


class _Objects:
    """The images and objects of one split, as a COCO file has them, and what was changed or left out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: list[dict[str, Any]] = []
        self.objects: list[dict[str, Any]] = []  # with names of classes in place of their ids
        self.notes: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()  # of shapes that labelme names

    def add_image(self, path: Path, size: Any = (0, 0)) -> dict[str, Any]:
        """Add an image, of which the labels say its ``size``, (width, height), or zeros."""
        path = Path(os.path.normpath(path))
        if not path.is_relative_to(self.folder):  # Links may lead wherever their maker wants.
            raise UserError(f"image {path} lies outside {self.folder}: put it there")
        width, height = seen_size(path)
        if all(size) and tuple(size) != (width, height):
            raise UserError(
                f"image {path} has {width} x {height} pixels, after EXIF turns it, but its labels are for "
                f"{size[0]} x {size[1]}: export them for the images as they are seen"
            )
        name = path.relative_to(self.folder).as_posix()
        image = {"id": len(self.images) + 1, "file_name": name, "width": width, "height": height}
        self.images.append(image)
        return image

    def add(
        self,
        image: dict[str, Any],
        label: str,
        where: str,
        points: np.ndarray | None = None,
        parts: Sequence[np.ndarray] = (),
        crowd: bool = False,
    ) -> None:
        """Add a box, of its corners ``points (2, 2)``, or one of polygons, ``parts`` of ``(n, 2)`` each.

        All are in pixels; ``where`` it stands is for messages.
        """
        size = np.array([image["width"], image["height"]])
        if not parts and (points[1] < points[0]).any():
            raise UserError(f"{where}: the box of {label} ends before it begins: correct it")
        outlines = [self._inside(p, size, where) for p in (parts or [points])]
        every = np.concatenate(outlines)
        low, high = every.min(axis=0), every.max(axis=0)
        extent = high - low
        if min(extent) <= 0:
            self.notes["objects without area left out"] += 1
            return
        fields = {"bbox": [*low.tolist(), *extent.tolist()], "area": float(math.prod(extent))}
        if parts:
            polygons = [outline.flatten().tolist() for outline in outlines]
            lengths = coco_mask.frPyObjects(polygons, image["height"], image["width"])
            fields["segmentation"] = polygons
            fields["area"] = float(coco_mask.area(coco_mask.merge(lengths)))
        self._append(image, label, {**fields, "iscrowd": int(crowd)})

    def add_mask(
        self, image: dict[str, Any], label: str, where: str, mask: np.ndarray, offset: np.ndarray
    ) -> None:
        """Add a mask ``(h, w)`` whose first pixel lies at ``offset`` (x, y)."""
        width, height = image["width"], image["height"]
        whole = np.zeros((height, width), np.uint8)
        (x, y), (rows, columns) = offset.tolist(), mask.shape
        if min(x, y) < 0 or x + columns > width or y + rows > height:
            raise UserError(f"{where}: its mask leaves its image of {width} x {height}")
        whole[y : y + rows, x : x + columns] = mask
        if whole.any():
            self._append(image, label, mask_fields(whole))
        else:
            self.notes["objects without area left out"] += 1

    def _append(self, image: dict[str, Any], label: str, fields: dict[str, Any]) -> None:
        number = len(self.objects) + 1
        self.objects.append({"id": number, "image_id": image["id"], "category_id": label, **fields})

    def _inside(self, points: np.ndarray, size: np.ndarray, where: str) -> np.ndarray:
        beyond = np.maximum(-points, points - size) / size
        if not (beyond <= np.maximum(_ROUNDING, 1 / size)).all():
            shown = ", ".join(f"{value:g}" for value in points.flatten()[:4])
            raise UserError(
                f"{where}: an object ({shown}) leaves its image of {size[0]} x {size[1]} pixels: correct it"
            )
        if beyond.max() > 1e-6:
            self.notes["objects cut off at the edge of their image"] += 1
        return points.clip(0, size)

    def as_coco(self, classes: Sequence[str]) -> CocoFile:
        """The file that is to be written; a UserError if nothing can be learned of it."""
        ids = {name: number for number, name in enumerate(classes, start=1)}
        content = {
            "images": self.images,
            "annotations": [{**a, "category_id": ids[a["category_id"]]} for a in self.objects],
            "categories": [{"id": number, "name": name} for name, number in ids.items()],
        }
        check_content(self.folder, content)
        return CocoFile(self.folder, content, (_COCO,), self.folder)

    def describe(self) -> str:
        """How much there is, and what was changed or left out."""
        empty = len(self.images) - len({each["image_id"] for each in self.objects})
        told = [f"{len(self.images)} images", f"{len(self.objects)} objects"]
        told += [f"{count} {note}" for note, count in self.notes.items()]
        return "; ".join([*told, *([f"{empty} images without objects"] if empty else [])])


def _split_by_path(folder: Path, paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Files by the split that their names or folders name; those without are for training."""
    by_split: dict[str, list[Path]] = {}
    for path in paths:
        by_split.setdefault(split_of_folder(path.parent, folder) or "train", []).append(path)
    return by_split


def _yolo_files(folder: Path) -> list[Path]:
    """What names the classes: data.yaml, or the list that CVAT, Label Studio and labelImg write."""
    files = []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in (".yaml", ".yml")):
        content = _load_yaml(path)
        if isinstance(content, dict) and "names" in content:
            files.append(path)
    named = files_below(folder, ".names", ".txt")
    return files or [path for path in named if path.name.lower() in ("obj.names", "classes.txt")]


def _load_yaml(path: Path) -> Any:
    try:
        return mmengine.load(path, file_format="yaml")  # Read as data, see flatten_det.compat.
    except Exception as error:
        raise UserError(f"{path} cannot be read: {in_one_line(error)}") from error


def _read_yolo(folder: Path) -> tuple[dict[str, _Objects], list[str] | None]:
    files = _yolo_files(folder)
    if len(files) != 1:
        found = listed(files) if files else "none"
        raise UserError(
            f"{folder}: YOLO's labels are numbers; the names of its classes must be in one data.yaml, "
            f"obj.names or classes.txt, and there is {found}: add or remove one"
        )
    if files[0].suffix.lower() in (".yaml", ".yml"):
        content = _load_yaml(files[0])
        names = content["names"]
        if not isinstance(names, dict | list):
            raise UserError(f"{files[0]}: names is no list of classes: correct it")
        names = names if isinstance(names, dict) else dict(enumerate(names))
        images = _yolo_splits(folder, files[0], content)
    else:
        names = dict(enumerate(read_lines(files[0])))
        images = _split_by_path(folder, images_below(folder))
    names = {number: str(name).strip() for number, name in names.items()}
    stems = {path.stem for path in images_below(folder)}
    splits = {}
    for split, paths in images.items():
        objects = splits[split] = _Objects(folder)
        if not paths:
            raise UserError(f"{folder}: there are no images for {split}")
        labels = {path: _yolo_labels(path) for path in paths}
        missing = sum(not file.is_file() for file in labels.values())
        if missing == len(labels):
            raise UserError(
                f"{folder}: no image for {split} has labels; looked for {labels[paths[0]]} and the like"
            )
        if missing:
            objects.notes["images without a label file"] = missing
        owners = {file: path for path, file in labels.items()}
        for path, file in labels.items():
            if owners[file] != path:
                raise UserError(
                    f"{path} and {owners[file].name} share their labels: rename or remove one"
                )
        places = {file.parent for path, file in labels.items() if file.parent != path.parent}
        orphans = [f for place in places for f in place.glob("*.txt") if f.stem not in stems]
        if orphans:
            objects.notes["label files without an image left out"] = len(orphans)
        for path, file in labels.items():
            _add_yolo_objects(objects, path, file, names, files[0])
    return splits, list(names.values())


def _yolo_splits(folder: Path, file: Path, content: dict[str, Any]) -> dict[str, list[Path]]:
    splits = {}
    for split, keys in {"train": ("train",), "val": ("val", "valid")}.items():
        entries = next((content[key] for key in keys if content.get(key)), None)
        if entries is None:
            continue
        paths = []
        for entry in entries if isinstance(entries, list) else [entries]:
            place = _found(folder, content.get("path"), str(entry))
            if place is None:
                raise UserError(f"{file}: {split}: {entry} is nowhere in {folder}: correct it")
            if place.is_dir():
                paths += images_below(place)
                continue
            for line in read_lines(place):
                image = _found(folder, content.get("path"), line)
                if image is None:
                    raise UserError(f"{place}: image {line} is nowhere in {folder}: correct it")
                paths.append(image)
        splits[split] = paths
    if "train" not in splits:
        raise UserError(
            f"{file}: it does not say where the images for training are (train): add it"
        )
    return splits


def _found(folder: Path, root: Any, entry: str) -> Path | None:
    """Where a path of data.yaml leads; it may be another machine's, if its end is in the folder."""
    parts = [part for part in PureWindowsPath(entry).parts if part not in ("..", ".")]
    bases = [folder / str(root), folder] if root else [folder]
    for base in bases:
        for start in range(len(parts)):
            path = Path(os.path.normpath(base.joinpath(*parts[start:])))
            if path.exists() and path.is_relative_to(folder):
                return path
    return None


def _yolo_labels(image: Path) -> Path:
    parts, lower = image.parts, [part.lower() for part in image.parts]
    if "images" in lower:
        at = len(lower) - 1 - lower[::-1].index("images")
        for name in ("labels", "Labels", "LABELS"):
            beside = Path(*parts[:at], name, *parts[at + 1 :]).with_suffix(".txt")
            if beside.parent.is_dir():
                return beside
    return image.with_suffix(".txt")


def _add_yolo_objects(
    objects: _Objects, path: Path, labels: Path, names: dict[int, str], file: Path
) -> None:
    image = objects.add_image(path)
    size = np.array([image["width"], image["height"]])
    seen = set()
    lines = read_text(labels).splitlines() if labels.is_file() else []
    for number, line in enumerate(lines, start=1):
        where = f"{labels}, line {number}"
        if not line.strip():
            continue
        if line.strip() in seen:
            objects.notes["repeated lines left out"] += 1
            continue
        seen.add(line.strip())
        try:
            label, *values = map(float, line.split())
        except ValueError as error:
            raise UserError(f"{where}: {error}: write numbers") from error
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise UserError(
                f"{where}: after the class, {len(values)} numbers: 4 are a box, and x and y of 3 points "
                "or more a polygon"
            )
        if label not in names:
            raise UserError(
                f"{where}: class {label:g} is none of the {len(names)} in {file}: add it there"
            )
        points = np.array(values).reshape(-1, 2)
        if len(values) == 4:
            centre, extent = points
            corners = np.stack([centre - extent / 2, centre + extent / 2])
            objects.add(image, names[int(label)], where, points=corners * size)
        else:
            objects.add(image, names[int(label)], where, parts=[points * size])


def _voc_files(folder: Path) -> Iterator[tuple[Path, ElementTree.Element]]:
    for path in files_below(folder, ".xml"):
        root = _parse_xml(path)
        if root.tag == "annotation":
            yield path, root


def _parse_xml(path: Path) -> ElementTree.Element:
    text = read_text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{path} defines entities, which annotations do not need: remove them")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f"{path} is no XML: {error}: export it again") from error


def _read_voc(folder: Path) -> tuple[dict[str, _Objects], list[str] | None]:
    files = dict(_voc_files(folder))
    splits = {split: _Objects(folder) for split in SPLITS}
    for split, paths in _voc_splits(folder, list(files)).items():
        if split not in splits:
            continue
        for path in paths:
            _add_voc_objects(splits[split], path, files[path])
    return {split: objects for split, objects in splits.items() if objects.images}, None


def _voc_splits(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    listing = files_below(folder, ".txt")
    lists = {s: [p for p in listing if p.parts[-3:] == (*_LISTS, f"{s}.txt")] for s in SPLITS}
    if not lists["train"]:
        return _split_by_path(folder, files)
    by_stem = {path.stem: path for path in files}
    splits = {}
    for split, (path, *more) in ((s, found) for s, found in lists.items() if found):
        if more:
            raise UserError(
                f"{folder}: several lists for {split}: {listed([path, *more])}: leave one"
            )
        stems = [line.split()[0] for line in read_lines(path)]
        if missing := [stem for stem in stems if stem not in by_stem]:
            raise UserError(
                f"{path}: no annotations (*.xml) of {listed(missing)}: add or remove them"
            )
        splits[split] = [by_stem[stem] for stem in stems]
    return splits


def _add_voc_objects(objects: _Objects, path: Path, root: ElementTree.Element) -> None:
    beside = [path.parent, *(path.parent.parent / name for name in ("JPEGImages", "images", "."))]
    named = PureWindowsPath(root.findtext("filename") or "").name
    names = [named, *(path.stem + suffix for suffix in IMAGE_SUFFIXES)]
    found = [place / name for name in filter(None, names) for place in beside]
    file = next((place for place in found if place.is_file()), None)
    if file is None:
        raise UserError(f"{path}: its image {named or path.stem} is not there: put it beside")
    try:
        size = [int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height")]
        image = objects.add_image(file, size)
        # Pixels are counted from 1, and the last one belongs to the object; not by these programs.
        first = 0 if any(root.findtext(place) == text for place, text in _FROM_0) else 1
        for node in root.iter("object"):
            label = (node.findtext("name") or "").strip()
            sides = ("xmin", "ymin", "xmax", "ymax")
            box = [float(node.findtext(f"bndbox/{side}") or "nan") for side in sides]
            corners = np.array(box).reshape(2, 2) - [[first], [0]]
            if not label or not np.isfinite(corners).all():
                raise ValueError("an object has no name, or no bndbox of four numbers")
            difficult = (node.findtext("difficult") or "0").strip() == "1"
            if difficult:
                objects.notes[_DIFFICULT] += 1
            objects.add(image, label, str(path), points=corners, crowd=difficult)
    except ValueError as error:
        raise UserError(f"{path}: {error}: correct it") from error


def _is_labelme(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and isinstance(content.get("shapes"), list)
        and "imagePath" in content
    )


def _read_labelme(folder: Path) -> tuple[dict[str, _Objects], list[str] | None]:
    splits: dict[str, _Objects] = {}
    for path in files_below(folder, ".json"):
        content = read_json(path)[0]  # One at a time: they hold their images.
        split = split_of_folder(path.parent, folder) or "train"
        if _is_labelme(content) and split in SPLITS:
            _add_labelme_objects(splits.setdefault(split, _Objects(folder)), path, content)
    # Who draws nothing but rectangles means boxes; beside polygons, they are outlines too.
    are_boxes = set().union(*(objects.kinds for objects in splits.values())) == {"rectangle"}
    for objects in splits.values():
        if are_boxes:
            for each in objects.objects:
                del each["segmentation"]
        elif count := objects.kinds["rectangle"]:
            objects.notes["rectangles that are masks too, as there are other shapes"] = count
    return {split: splits[split] for split in SPLITS if split in splits}, None


def _add_labelme_objects(objects: _Objects, path: Path, content: dict[str, Any]) -> None:
    file = path.parent / str(content["imagePath"]).replace("\\", "/")
    if not file.is_file():
        raise UserError(f"{path}: its image {content['imagePath']} is not there: put it beside")
    image = objects.add_image(
        file, (content.get("imageWidth") or 0, content.get("imageHeight") or 0)
    )
    groups: dict[Any, tuple[str, list[np.ndarray]]] = {}
    for number, shape in enumerate(content["shapes"], start=1):
        where = f"{path}, shape {number}"
        shape = shape if isinstance(shape, dict) else {}
        kind, label, points = (
            shape.get("shape_type", "polygon"),
            shape.get("label"),
            shape.get("points"),
        )
        if not (isinstance(label, str) and label and _are_points(points)):
            raise UserError(f"{where} has no label, or no points of two numbers: correct it")
        points = np.array(points, float)
        if kind == "mask":
            objects.kinds["mask"] += 1
            mask, offset = _labelme_mask(shape, where), points[0].astype(int)
            objects.add_mask(image, label, where, mask, offset)
            continue
        outline = _labelme_outline(str(kind), points)
        if outline is None:
            objects.notes[f"shapes of kind {printable(str(kind))} left out"] += 1
            continue
        objects.kinds[str(kind)] += 1
        group = shape.get("group_id")
        key = number if group is None else (label, str(group))
        groups.setdefault(key, (label, []))[1].append(outline)
    for label, outlines in groups.values():
        objects.add(image, label, str(path), parts=outlines)


def _are_points(points: Any) -> bool:
    return (
        isinstance(points, list)
        and bool(points)
        and all(isinstance(p, list) and len(p) == 2 and all(map(is_number, p)) for p in points)
    )


def _labelme_outline(kind: str, points: np.ndarray) -> np.ndarray | None:
    """A polygon ``(n, 2)``, as labelme's own exporters make them; None for what has no area."""
    # X-AnyLabeling writes the four corners of rectangles, which may be turned ("rotation").
    if kind in ("polygon", "rectangle", "rotation") and len(points) >= 3:
        return points
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    if kind == "circle" and len(points) == 2:
        angles = np.linspace(0, 2 * np.pi, _POINTS_OF_CIRCLE, endpoint=False)
        radius = np.linalg.norm(points[1] - points[0])
        return points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return None


def _labelme_mask(shape: dict[str, Any], where: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=["PNG"]) as image:
            mask = np.asarray(image) > 0
            if mask.ndim != 2:
                raise ValueError("it has colours")
            return mask
    except Exception as error:
        raise UserError(f"{where}: its mask cannot be read: {in_one_line(error)}") from error


# How data of a form are called and read: the objects by split, and the classes if they have an order.
FORMATS = {
    "yolo": ("YOLO", _read_yolo),
    "voc": ("Pascal VOC", _read_voc),
    "labelme": ("labelme", _read_labelme),
}


def find_format(folder: Path, made: Collection[Path] = ()) -> str | None:
    """The form of a folder's data: ``coco`` or one of :data:`FORMATS`; None if nothing is known in it.

    Files that cannot be read, or are a program's own form, are of concern only where nothing else is found;
    COCO files of ours, ``made`` earlier, are of none.

    Raises:
        UserError: There are several forms, or only what is not read.
    """
    found, broken = set(), []
    try:
        if _yolo_files(folder):
            found.add("yolo")
    except UserError as error:
        broken.append(str(error))
    for path in files_below(folder, ".xml"):
        try:
            root = _parse_xml(path)
        except UserError as error:
            broken.append(str(error))
            continue
        found |= {"voc"} if root.tag == "annotation" else set()
        if root.tag == "annotations" and root.find("image") is not None:
            broken.append(
                f"{path} is CVAT's own form (CVAT for images): export the task as COCO 1.0, or, for semantic "
                "segmentation, as Segmentation mask 1.1"
            )
    for path in files_below(folder, ".json"):
        if path.resolve() in made:
            continue
        try:
            content = read_json(path)[0]
        except UserError as error:
            broken.append(str(error))
            continue
        found |= {"labelme"} if _is_labelme(content) else {"coco"} if is_coco(content) else set()
        if _is_of_label_studio(content):
            broken.append(
                f"{path} is Label Studio's own form: export the project as COCO or YOLO with images"
            )
    if len(found) > 1:
        names = " and ".join(sorted(found))
        raise UserError(f"{folder}: it holds annotations in {names}: say which by --format")
    if not found and broken:
        raise UserError(broken[0])
    return found.pop() if found else None


def _is_of_label_studio(content: Any) -> bool:
    """Whether this is an export as JSON (tasks with their data), or as JSON-MIN."""
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and (
        {"data", "annotations"} <= first.keys() or {"annotation_id", "annotator"} <= first.keys()
    )


def convert(name: str, folder: Path, classes: Sequence[str] | None = None) -> dict[str, CocoFile]:
    """The data of a folder as COCO files, by split; prints what was taken, changed and left out.

    Args:
        name: of one of :data:`FORMATS`.
        folder: of the data.
        classes: all of them, in the order that they are to have; None: the data's own order, or by name.

    Raises:
        UserError: A file cannot be read, contradicts itself or others, or nothing can be learned.
    """
    title, read = FORMATS[name]
    splits, own = read(folder)
    used = {each["category_id"] for objects in splits.values() for each in objects.objects}
    classes = list(classes or own or sorted(used))
    if again := repeated(classes):
        raise UserError(f"{folder}: classes share a name: {listed(again)}: rename them")
    if not used:
        raise UserError(f"{folder}: its labels hold no object: there is nothing to learn")
    if unknown := sorted(used - set(classes)):
        raise UserError(
            f"{folder}: labels that are none of the classes: {listed(unknown)}: add them"
        )
    if others := [split for split in splits if split not in SPLITS]:
        count = sum(len(splits.pop(split).images) for split in others)
        print(f"{count} images for {listed(others)} are left out: train and val are used")
    if "train" not in splits:
        raise UserError(
            f"{folder}: no images with annotations in {title}'s form are for training: check "
            "the folder and the names of those in it"
        )
    for split, objects in splits.items():
        print(f"{split}, from {title}: {objects.describe()}")
    taken = {folder / image["file_name"] for each in splits.values() for image in each.images}
    places = {path.parent for path in taken}
    if rest := [p for p in images_below(folder) if p.parent in places and p not in taken]:
        print(f"{len(rest)} images beside these have no annotations, or are in no split: left out")
    return {split: objects.as_coco(classes) for split, objects in splits.items()}
