"""Ranks of one machine have the index of the data in memory once; and loaders feed well by default."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked_ranks
import pytest
import torch
from coco_sized import CLASSES, write_coco_sized
from mmengine.dataset import BaseDataset
from mmengine.dist import barrier
from mmengine.registry import DATASETS
from mmengine.runner import Runner

import flatten_det.config
from flatten_det import distributed
from flatten_det.config import build_dataloader
from flatten_det.errors import UserError

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="of Linux")
SAMPLES = 300
INHERITED: list[str] = []  # Mappings of a forked rank that are of the tests' own process.


@DATASETS.register_module()
class CountedDataset(BaseDataset):
    """Some samples, and a line in a file whenever they are loaded."""

    def load_data_list(self) -> list[dict]:
        with open(self.ann_file, "a") as file:
            file.write(f"{os.getpid()}\n")
        return [{"number": n, "text": str(n) * 100} for n in range(SAMPLES)]


@DATASETS.register_module()
class LockedDataset(CountedDataset):
    """One that cannot be pickled."""

    def load_data_list(self) -> list[dict]:
        self.lock = threading.Lock()
        return super().load_data_list()


def loader_of(journal: Path, kind: str = "CountedDataset", **options: Any) -> dict:
    dataset = {"type": kind, "ann_file": str(journal), "data_prefix": {}}
    return {"batch_size": 2, "sampler": {"type": "DefaultSampler"}, "dataset": dataset} | options


def build(loader: dict) -> torch.utils.data.DataLoader:
    return build_dataloader(Runner.build_dataloader, loader, seed=0)


def in_ranks(folder: Path, count: int, work: Callable[[int], Any]) -> list[Any]:
    """As by ranks that notice no mappings of this process: some may collect them, and others not."""

    def noted(rank: int) -> Any:
        INHERITED.extend(mappings())
        return work(rank)

    return forked_ranks.in_ranks(folder, count, noted)


def mappings() -> list[str]:
    """The files of ours that this process has mapped itself: each by its number and name."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    found = [line.split(maxsplit=4)[4] for line in lines if "memfd:flatten_det" in line]
    return [file for file in found if file not in INHERITED]


@pytest.fixture
def journal(tmp_path) -> Path:
    (tmp_path / "journal").touch()
    return tmp_path / "journal"


def test_one_rank_loads_what_all_map(tmp_path, journal):
    def work(rank: int):
        dataset = build(loader_of(journal)).dataset
        found = [dataset[index] for index in range(len(dataset))], mappings()
        barrier()
        if rank == 1:
            dataset.data_bytes[:] = 0  # Its own from now on.
        barrier()
        assert rank == 1 or dataset[7]["number"] == 7
        return found

    (samples, memory), *others = in_ranks(tmp_path, 3, work)
    assert [sample["number"] for sample in samples] == list(range(SAMPLES))
    assert others == [(samples, memory)] * 2
    (line,) = memory
    assert line.endswith("/memfd:flatten_det (deleted)")
    assert len(journal.read_text().splitlines()) == 1


def test_wrappers_are_shared_too(tmp_path, journal):
    parts = [loader_of(journal)["dataset"], loader_of(journal)["dataset"]]
    loader = loader_of(journal, dataset={"type": "ConcatDataset", "datasets": parts})

    def work(rank: int):
        dataset = build(loader).dataset
        return len(dataset), dataset[SAMPLES + 3]["number"], type(dataset).__name__

    assert in_ranks(tmp_path, 2, work) == [(2 * SAMPLES, 3, "ConcatDataset")] * 2
    assert len(journal.read_text().splitlines()) == 2


def test_what_cannot_be_shared_is_loaded_by_each(tmp_path, journal, capfd):
    def work(rank: int):
        return build(loader_of(journal, "LockedDataset")).dataset[5]["number"], mappings()

    assert in_ranks(tmp_path, 2, work) == [(5, [])] * 2
    assert len(journal.read_text().splitlines()) == 2
    assert capfd.readouterr().err.count("cannot be shared (TypeError: cannot pickle") == 1


def test_data_sets_of_another_kind_are_loaded_by_each(tmp_path):
    loader = loader_of(tmp_path) | {"dataset": {"type": lambda: list(range(4))}}
    assert in_ranks(tmp_path, 2, lambda rank: build(loader).dataset[3]) == [3, 3]


def test_machines_load_one_each(tmp_path, journal, monkeypatch):
    monkeypatch.setattr(distributed, "_machine", lambda: distributed.get_rank() % 2)

    def work(rank: int):
        loader = build(loader_of(journal))
        assert len(loader.dataset) == SAMPLES
        return mappings()

    memory = in_ranks(tmp_path, 4, work)
    assert memory[0] == memory[2] != memory[1] == memory[3]
    assert len(journal.read_text().splitlines()) == 2


@pytest.mark.parametrize("machines", [1, 2])
def test_a_failure_of_one_is_that_of_all(tmp_path, monkeypatch, machines):
    monkeypatch.setattr(distributed, "_machine", lambda: distributed.get_rank() % machines)

    def load(rank: int) -> list:
        if rank == machines - 1:
            raise FileNotFoundError(2, "No such file", "instances.json")
        return []

    def work(rank: int):
        return distributed.from_first_of_machine(lambda: load(rank), lambda done: True)

    errors = in_ranks(tmp_path, 3, work)
    assert isinstance(errors.pop(machines - 1), FileNotFoundError)
    assert [type(error) for error in errors] == [UserError] * 2
    assert {str(error) for error in errors} == {
        "instances.json not found: check the paths in the config and the command"
    }


def test_the_others_outlive_the_one_that_loaded_and_nothing_stays(tmp_path, journal, monkeypatch):
    places = [tmp_path / "tmp", Path("/dev/shm")]
    places[0].mkdir()
    monkeypatch.setenv("TMPDIR", str(places[0]))

    def work(rank: int):
        dataset = build(loader_of(journal)).dataset
        if rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return sum(dataset[index]["number"] for index in range(SAMPLES))

    assert in_ranks(tmp_path, 2, work) == [None, sum(range(SAMPLES))]
    names = [name for place in places for name in os.listdir(place)]
    assert not [name for name in names if "flatten" in name or name in os.listdir(places[0])]


def test_one_process_alone_gives_back_what_loading_took(journal):
    before = set(mappings())
    loader = build(loader_of(journal))
    assert len(set(mappings()) - before) == 1
    assert loader.dataset[SAMPLES - 1]["number"] == SAMPLES - 1
    assert len(journal.read_text().splitlines()) == 1


def test_loaders_feed_well_unless_the_config_says_otherwise(journal, monkeypatch):
    assert not build(loader_of(journal, num_workers=0)).persistent_workers
    loader = build(loader_of(journal, num_workers=1))
    assert (loader.persistent_workers, loader.pin_memory) == (True, False)
    monkeypatch.setattr(flatten_det.config, "get_device", lambda: "cuda")
    assert build(loader_of(journal, num_workers=1)).pin_memory
    given = {"persistent_workers": False, "pin_memory": False}
    loader = build(loader_of(journal, num_workers=1, **given))
    assert (loader.persistent_workers, loader.pin_memory) == (False, False)


def _pss(process: int | str) -> int:
    """Bytes of a process and its children, where shared pages count in parts."""
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    own = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    children = Path(f"/proc/{process}/task").glob("*/children")
    return 1024 * own + sum(_pss(child) for file in children for child in file.read_text().split())


@pytest.mark.slow
def test_two_ranks_of_two_workers_take_the_index_of_one(tmp_path):
    """Of a tenth of COCO's training images: what the file adds to the memory of all processes."""

    def total(images: int, ranks: int, workers: int) -> int:
        dataset = {
            "type": "mmdet.CocoDataset",
            "ann_file": str(tmp_path / f"{images}.json"),
            "metainfo": {"classes": [f"class {i}" for i in range(1, CLASSES + 1)]},
            "data_prefix": {"img": ""},
        }
        loader = loader_of(tmp_path, dataset=dataset, num_workers=workers, batch_size=1)

        def work(rank: int) -> int:
            built = build(loader)
            batches = iter(built)
            for _ in range(100):
                next(batches)
            built.dataset.data_bytes.sum()  # What no process has touched counts for none.
            barrier()
            memory = _pss(os.getpid())
            barrier()
            return memory

        return sum(in_ranks(tmp_path, ranks, work))

    few, many = 300, 11_829
    for images in (few, many):
        write_coco_sized(tmp_path / f"{images}.json", "image.jpg", images)
    one, four = (total(many, *shape) - total(few, *shape) for shape in ((1, 0), (2, 2)))
    print(f"one rank: {one / 2**20:.0f} MiB, two with two workers each: {four / 2**20:.0f} MiB")
    assert one > 30 * 2**20
    assert four <= 1.3 * one
