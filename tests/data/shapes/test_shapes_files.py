import errno
import json
import multiprocessing
import os
import resource
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from flatten_det.data.shapes import files
from flatten_det.data.shapes.files import prepare_shapes
from flatten_det.data.shapes.options import CLASSES, PALETTE, ShapesOptions
from flatten_det.data.shapes.render import render

SIZES = dict(image_size=(64, 80), object_size=(8, 48))
OPTIONS = ShapesOptions(**SIZES, num_images={"train": 6, "val": 4}, seed=5)
OTHER = ShapesOptions(**SIZES, num_images={"train": 5, "val": 4}, seed=6)
FORK = multiprocessing.get_context("fork")


def _contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    """A rendered folder, to be read only."""
    root = tmp_path_factory.mktemp("complete") / "shapes"
    prepare_shapes(root, OPTIONS)
    return root


@pytest.fixture
def root(tmp_path, release_folders) -> Path:
    """A rendered folder that no process uses any more."""
    prepare_shapes(tmp_path / "shapes", OPTIONS)
    release_folders()
    return tmp_path / "shapes"


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """Messages logged so far."""
    messages = []
    monkeypatch.setattr(files, "print_log", lambda message, logger: messages.append(message))
    return messages


def test_bytes_do_not_depend_on_workers_or_place(complete, tmp_path):
    for workers in (1, 5):
        prepare_shapes(tmp_path / f"workers-{workers}", OPTIONS, workers=workers)
        assert _contents(tmp_path / f"workers-{workers}") == _contents(complete)


def test_layout(complete):
    expected = {"shapes.json"}
    for split, count in OPTIONS.num_images.items():
        expected |= {f"annotations/{kind}_{split}.json" for kind in ("instances", "panoptic")}
        for index in range(count):
            expected.add(f"{split}/images/{index:06}.jpg")
            expected |= {f"{split}/{kind}/{index:06}.png" for kind in ("semantic", "panoptic")}
    assert set(_contents(complete)) == expected
    assert not [path for path in complete.parent.iterdir() if "rendering" in path.name]


@pytest.mark.parametrize("split", ["train", "val"])
def test_annotations_agree_with_pixels(complete, split):
    """Of masks, boxes and label maps, what the pipelines of the data sets do not show."""
    coco = COCO(str(complete / f"annotations/instances_{split}.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    assert 0 not in coco.getAnnIds()
    assert len(coco.getImgIds()) == OPTIONS.num_images[split]
    for info in coco.loadImgs(coco.getImgIds()):
        drawn = render(OPTIONS, split, info["id"])
        with Image.open(complete / split / "images" / info["file_name"]) as image:
            assert image.size == (info["width"], info["height"]) == (80, 64)
            # JPEG keeps the picture, and its channels in order, up to a small error.
            assert np.abs(np.asarray(image, float) - drawn.image).mean() < 8
        annotations = coco.loadAnns(coco.getAnnIds(info["id"]))
        assert len(annotations) == len(drawn.labels)
        for annotation in annotations:
            assert annotation["area"] == coco_mask.decode(annotation["segmentation"]).sum()
            assert annotation["iscrowd"] == 0
        path = complete / split / "semantic" / info["file_name"].replace(".jpg", ".png")
        with Image.open(path) as image:
            assert image.mode == "P"
            palette = np.reshape(image.getpalette(), (-1, 3))
        np.testing.assert_array_equal(palette[: len(CLASSES) + 1], [(0, 0, 0), *PALETTE])


def test_annotations_name_the_size_of_each_image(tmp_path):
    options = ShapesOptions(
        image_size=((48, 48), (96, 80)), num_images={"train": 1, "val": 5}, object_size=(8, 40)
    )
    prepare_shapes(tmp_path / "shapes", options)
    for kind in ("instances", "panoptic"):
        content = json.loads((tmp_path / f"shapes/annotations/{kind}_val.json").read_text())
        sizes = [(info["height"], info["width"]) for info in content["images"]]
        assert sizes == [render(options, "val", i).owner.shape for i in range(5)]
        assert len(set(sizes)) > 1


def test_complete_folder_is_reused(complete, monkeypatch):
    monkeypatch.setattr(files, "render", lambda *args: pytest.fail("rendered"))
    before = {path: path.stat().st_mtime_ns for path in complete.rglob("*")}
    prepare_shapes(complete, OPTIONS)
    prepare_shapes(str(complete), OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in complete.rglob("*")} == before


@pytest.mark.parametrize(
    "name", ["train/images/000003.jpg", "val/semantic/000000.png", "annotations/instances_val.json"]
)
@pytest.mark.parametrize("truncated", [False, True], ids=["deleted", "truncated"])
def test_damaged_folder_is_rendered_anew(root, complete, log, name, truncated):
    if truncated:
        os.truncate(root / name, (root / name).stat().st_size // 2)
    else:
        (root / name).unlink()
    prepare_shapes(root, OPTIONS)
    assert _contents(root) == _contents(complete)
    assert log == [f"Shapes in '{root}' is damaged: rendered anew"]


@pytest.mark.parametrize("content", ["", '{"format": ', "[]", '{"format": {"version": 0}}'])
def test_broken_manifest_is_rendered_anew(root, complete, content):
    (root / "shapes.json").write_text(content)
    prepare_shapes(root, OPTIONS)
    assert _contents(root) == _contents(complete)


def _edit_annotations(path: Path) -> None:
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][0] += 1.25
    path.write_text(json.dumps(content, indent=1))


def _red_image(path: Path) -> None:
    Image.new("RGB", (80, 64), "red").save(path)


def _change_case(path: Path) -> None:
    """Another content of the same size."""
    path.write_text(path.read_text().replace("circle", "CIRCLE"))


def _shorten(path: Path) -> None:
    """Smaller, and no beginning of what it was."""
    path.write_text(path.read_text()[1:])


def _refused(
    root: Path, options: ShapesOptions, message: str, error: type[OSError] = FileExistsError
) -> OSError:
    """What is there stays as it is, and nothing lies beside it."""
    before = _contents(root)
    with pytest.raises(error, match=message) as caught:
        prepare_shapes(root, options)
    assert _contents(root) == before
    assert {path.name for path in root.parent.iterdir()} <= {"shapes", ".shapes.lock"}
    return caught.value


@pytest.mark.parametrize(
    ("name", "edit", "is_noticed_at_once"),
    [
        ("annotations/instances_train.json", _edit_annotations, True),
        ("train/images/000002.jpg", _red_image, True),
        ("annotations/panoptic_train.json", _shorten, True),
        ("annotations/instances_val.json", _change_case, False),
        ("train/images/000077.jpg", _red_image, False),
    ],
)
def test_what_was_changed_by_hand_is_not_replaced(root, name, edit, is_noticed_at_once):
    edit(root / name)
    said = rf"1 of its files were .*'{name}', and it is left"
    if is_noticed_at_once:
        _refused(root, OPTIONS, said)
    _refused(root, OTHER, said)
    (root / name).unlink()
    prepare_shapes(root, OTHER)


@pytest.mark.parametrize("manifest", ["", "of an older version"])
def test_what_was_changed_by_hand_is_found_without_digests(root, manifest):
    _edit_annotations(root / "annotations/instances_train.json")
    if manifest:
        content = json.loads((root / "shapes.json").read_text())
        manifest = json.dumps({key: content[key] for key in ("format", "options", "files")})
    (root / "shapes.json").write_text(manifest)
    _refused(root, OPTIONS, "1 of its files were .*annotations/instances_train.json")


def test_pipe_in_the_place_of_an_image(root):
    (root / "val/images/000001.jpg").unlink()
    os.mkfifo(root / "val/images/000001.jpg")
    _refused(root, OPTIONS, r"such as 'val/images/000001\.jpg'")


def test_other_options_are_rendered_anew_and_logged(root, log):
    prepare_shapes(root, OTHER)
    assert len(log) == 1
    assert "has other options (num_images" in log[0]
    assert "seed 5 instead of 6" in log[0]
    assert not (root / "train/images/000005.jpg").exists()
    np.testing.assert_array_equal(
        np.asarray(Image.open(root / "val/semantic/000000.png")) > 0,
        render(OTHER, "val", 0).owner >= 0,
    )


def test_folder_in_use_is_restored_but_not_given_other_options(complete, tmp_path):
    root = tmp_path / "shapes"
    prepare_shapes(root, OPTIONS)
    (root / "train/images/000000.jpg").unlink()
    prepare_shapes(root, OPTIONS)
    with pytest.raises(RuntimeError, match=r"seed 5 instead of 6.* is in use .* another data_root"):
        prepare_shapes(root, OTHER)
    assert _contents(root) == _contents(complete)


@pytest.mark.parametrize("name", ["notes.txt", "train/images/cat.jpg"])
def test_foreign_folder_is_left_alone(tmp_path, name):
    file = tmp_path / "shapes" / name
    file.parent.mkdir(parents=True)
    file.write_text("keep me")
    _refused(tmp_path / "shapes", OPTIONS, f"did not render, such as '{name}'")


def test_own_folder_with_a_foreign_file_or_without_manifest_is_not_replaced(root, release_folders):
    (root / "train/images/notes.txt").write_text("keep me")
    prepare_shapes(root, OPTIONS)  # Nothing needs to be replaced.
    release_folders()
    _refused(root, OTHER, r"such as 'train/images/notes.txt'")
    (root / "shapes.json").unlink()
    (root / "train/images/notes.txt").unlink()
    _refused(root, OPTIONS, "did not render")


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "shapes").write_text("keep me")
    with pytest.raises(FileExistsError, match="is a file"):
        prepare_shapes(tmp_path / "shapes", OPTIONS)
    with pytest.raises(OSError, match=r"cannot render Shapes into .*shapes/deeper"):
        prepare_shapes(tmp_path / "shapes/deeper", OPTIONS)
    assert (tmp_path / "shapes").read_text() == "keep me"


def test_link_to_another_disk_is_followed(complete, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "shapes").symlink_to(tmp_path / "disk")
    prepare_shapes(tmp_path / "shapes", OPTIONS)
    assert (tmp_path / "shapes").is_symlink()
    assert _contents(tmp_path / "disk") == _contents(complete)


def test_disk_that_takes_no_more_is_named_and_leaves_nothing_behind(root, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # Larger than some images, smaller than others and than the manifest.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        said = r"cannot render Shapes into .*File too large"
        assert _refused(root, OTHER, said, OSError).errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _prepare_in_child(root: Path, options: ShapesOptions) -> None:
    cv2.setNumThreads(0)  # OpenCV's threads do not survive a fork.
    write_files = files._write_files

    def write_files_and_tell(*args):
        (root.parent / f"rendered-by-{os.getpid()}").touch()
        write_files(*args)

    files._write_files = write_files_and_tell
    prepare_shapes(root, options)


def _start(root: Path, options: ShapesOptions) -> multiprocessing.Process:
    process = FORK.Process(target=_prepare_in_child, args=(root, options))
    process.start()
    return process


def test_killed_rendering_is_started_again(complete, tmp_path):
    root = tmp_path / "data/shapes"
    root.parent.mkdir()
    process = _start(root, ShapesOptions(num_images={"train": 100_000}))
    deadline = time.monotonic() + 60
    while not list(root.parent.glob(".shapes.rendering-*/new/train/images/00002*.jpg")):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    assert not root.exists()
    prepare_shapes(root, OPTIONS)
    assert _contents(root) == _contents(complete)
    left = {path.name for path in root.parent.iterdir()}
    assert left == {"shapes", ".shapes.lock", f"rendered-by-{process.pid}"}


def test_interrupt_ends_the_rendering_at_once(tmp_path, monkeypatch):
    rendered, interrupted = [], threading.Event()

    def interrupt(results, description, total):
        yield next(results)
        interrupted.set()
        raise KeyboardInterrupt

    def counting_render(options, split, index):
        assert not rendered or interrupted.wait(60)
        rendered.append(index)
        return render(options, split, index)

    monkeypatch.setattr("flatten_det.data.coco.track", interrupt)
    monkeypatch.setattr(files, "render", counting_render)
    with pytest.raises(KeyboardInterrupt):
        prepare_shapes(tmp_path / "shapes", ShapesOptions(num_images={"train": 1000}), workers=1)
    assert len(rendered) < 500
    assert {path.name for path in tmp_path.iterdir()} == {".shapes.lock"}


def test_of_several_processes_one_renders_and_all_wait(complete, tmp_path):
    processes = [_start(tmp_path / "shapes", OPTIONS) for _ in range(4)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list(tmp_path.glob("rendered-by-*"))) == 1
    assert _contents(tmp_path / "shapes") == _contents(complete)


def test_folder_in_use_by_another_process_is_kept(root, tmp_path):
    barrier = FORK.Barrier(2)

    def read():
        prepare_shapes(root, OPTIONS)
        barrier.wait(60)
        barrier.wait(60)

    process = FORK.Process(target=read)
    process.start()
    barrier.wait(60)
    with pytest.raises(RuntimeError, match="is in use"):
        prepare_shapes(root, OTHER)
    barrier.wait(60)
    process.join()
    prepare_shapes(root, OTHER)
    assert json.loads((root / "shapes.json").read_text())["options"] == OTHER.as_dict()
