"""Plans by measurement: which one wins, and what is kept on disk. Clock and launches are made up."""

import json
import logging
import multiprocessing
import os
from dataclasses import asdict

import pytest
import torch
from gpu_cases import make_case
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from flatten_det.attention.gpu import launch, tiles, tuning
from flatten_det.attention.gpu.plan import plan_for
from flatten_det.attention.gpu.tuning import Key, Trial, Tuner, candidates

KEY = Key("forward", 64, 1, torch.bfloat16, 256, True, 1 << 18)
DEFAULT = plan_for(64, 1, torch.bfloat16, 4096, 64)
PLANS = candidates(DEFAULT, "forward")
EXPECTED = torch.arange(1.0, 9.0)
ENVIRONMENT = dict(device="NVIDIA H200", torch="2.11", triton="3.6", kernels="0123")


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FLATTEN_DET_CACHE", str(tmp_path))
    return tmp_path


class Card:
    """A device where plans take the ``seconds`` that a test says, and compilations half a second.

    Otherwise their place in the list of candidates + 1. ``outputs`` may be exceptions; what is expected where
    nothing is said. ``runs`` are plans in the order of their first calls.
    """

    def __init__(self, seconds=(), outputs=(), compiling=0.5):
        self.seconds, self.outputs, self.compiling = dict(seconds), dict(outputs), compiling
        self.runs, self.now, self.running = [], 0.0, None

    def run(self, plan):
        if plan not in self.runs:
            self.runs.append(plan)
            self.now += self.compiling
        self.running = plan
        output = self.outputs.get(plan, EXPECTED.bfloat16())
        if isinstance(output, Exception):
            raise output
        return [output]

    def measure(self, run):
        run()
        return self.seconds.get(self.running, PLANS.index(self.running) + 1)

    def tuner(self, environment=ENVIRONMENT, **functions):
        functions = {
            "worth_tuning": lambda q: True,
            "capturing": lambda: False,
            "environment": lambda device: environment,
            **functions,
        }
        return Tuner(self.measure, lambda: self.now, **functions)

    def plan(self, tuner=None, key=KEY):
        tuner = tuner or self.tuner()
        return tuner.plan(key, DEFAULT, torch.empty(1), lambda: Trial(self.run, [EXPECTED]))


def files(folder):
    return [x for x in folder.rglob("*") if x.is_file()]


def test_the_fastest_right_plan_wins(caplog):
    _, wrong, not_a_number, fails, second, best, *_ = PLANS
    card = Card(
        {wrong: 0.1, not_a_number: 0.2, fails: 0.3, best: 0.5, second: 0.6},
        {
            wrong: EXPECTED.bfloat16() * 1.1,
            not_a_number: EXPECTED.bfloat16() * torch.nan,
            fails: RuntimeError("out of resources"),
        },
        compiling=0,
    )
    with caplog.at_level(logging.DEBUG):
        assert card.plan() == best
    assert set(card.runs) == set(PLANS)
    assert "RuntimeError: out of resources" in caplog.text
    assert caplog.text.count("wrong results") == 2


def test_rounding_to_the_dtype_is_no_mistake():
    exact = torch.linspace(0.1, 1, 1000)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert tuning.is_right([exact.to(dtype), None], [exact, None])
    assert not tuning.is_right([exact * 1.001], [exact])
    assert not tuning.is_right([exact.half() * torch.inf], [exact])


def test_the_budget_ends_the_search():
    card = Card({PLANS[5]: 0.1}, compiling=2)
    assert card.plan() == DEFAULT
    # Before the fourth, six seconds have passed.
    assert card.runs == PLANS[:3]


def test_nothing_passes(caplog, folder):
    card = Card(outputs={plan: RuntimeError("no") for plan in PLANS})
    tuner = card.tuner()
    assert card.plan(tuner) == DEFAULT
    assert "no plan passed its check" in caplog.text
    assert not files(folder)
    tried = len(card.runs)
    assert card.plan(tuner) == DEFAULT
    assert len(card.runs) == tried


@pytest.mark.parametrize(
    ("failure", "level"), [(torch.OutOfMemoryError, logging.DEBUG), (ValueError, logging.WARNING)]
)
def test_nothing_to_compare_with(folder, caplog, failure, level):
    def trial():
        raise failure("no reference")

    with caplog.at_level(logging.DEBUG):
        assert Card().tuner().plan(KEY, DEFAULT, torch.empty(1), trial) == DEFAULT
    assert [(x.levelno, "no reference" in x.message) for x in caplog.records] == [(level, True)]
    assert not files(folder)


def test_a_kept_plan_is_not_measured_again():
    best = PLANS[2]
    assert Card({best: 0.1}).plan() == best
    later = Card()
    assert later.plan() == best
    assert not later.runs
    other_size = later.plan(key=KEY._replace(size=1 << 20))
    assert other_size == DEFAULT
    assert later.runs


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_a_plan_of_another_device_or_version_is_not_used(name):
    Card({PLANS[2]: 0.1}).plan()
    later = Card()
    assert later.plan(later.tuner({**ENVIRONMENT, name: "another"})) == DEFAULT
    assert later.runs


@pytest.mark.parametrize("damage", ["cut", "empty", "deep", "list", "field", "value", "device"])
def test_damaged_and_foreign_files_are_ignored_and_rewritten(folder, caplog, damage):
    Card({PLANS[2]: 0.1}).plan()
    (path,) = files(folder)
    right = path.read_bytes()
    content = json.loads(right)
    if damage == "field":
        content["plan"]["another"] = 1
    elif damage == "value":
        content["plan"]["block"] = 48
    elif damage == "device":
        content["environment"]["device"] = "another"
    path.write_bytes(
        {"cut": right[:-9], "empty": b"", "deep": b"[" * 100_000, "list": b"[]"}.get(
            damage, json.dumps(content).encode()
        )
    )
    with caplog.at_level(logging.DEBUG):
        assert Card({PLANS[2]: 0.1}).plan() == PLANS[2]
    assert caplog.text.count("is ignored") == 1
    assert path.read_bytes() == right


def test_the_choice_of_a_process_that_was_quicker():
    card = Card({PLANS[2]: 0.1})
    other = Card({PLANS[1]: 0.1})

    def trial():
        other.plan()
        return Trial(card.run, [EXPECTED])

    assert card.tuner().plan(KEY, DEFAULT, torch.empty(1), trial) == PLANS[1]


def test_without_a_folder_plans_last_for_the_process(monkeypatch, folder):
    (folder / "file").touch()
    monkeypatch.setenv("FLATTEN_DET_CACHE", str(folder / "file"))
    card = Card({PLANS[2]: 0.1})
    tuner = card.tuner()
    assert card.plan(tuner) == PLANS[2]
    tried = len(card.runs)
    assert card.plan(tuner) == PLANS[2]
    assert len(card.runs) == tried


def test_the_folder(monkeypatch, tmp_path):
    assert tuning.cache_folder() == tmp_path
    monkeypatch.delenv("FLATTEN_DET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tuning.cache_folder() == tmp_path / "xdg" / "flatten_det"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuning.cache_folder() == tmp_path / ".cache" / "flatten_det"


def _write_many(first):
    for i in range(first, first + 60):
        for key in (KEY._replace(size=i), KEY):
            tuning._Entry(ENVIRONMENT, key).write(PLANS[i % len(PLANS)])
            assert tuning._Entry(ENVIRONMENT, key).read(PLANS)


def test_processes_that_write_at_once(folder):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(first,)) for first in (0, 40)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(files(folder)) == 100 + 1
    for i in range(100):
        entry = tuning._Entry(ENVIRONMENT, KEY._replace(size=i))
        assert entry.read(PLANS) == PLANS[i % len(PLANS)]
    assert tuning._Entry(ENVIRONMENT, KEY).read(PLANS)


def test_nothing_is_measured_during_capture(folder):
    card = Card({PLANS[2]: 0.1})
    capturing = card.tuner(capturing=lambda: True)
    assert card.plan(capturing) == DEFAULT
    assert not card.runs
    card.plan()
    assert card.plan(capturing) == PLANS[2]


def test_what_is_worth_tuning(monkeypatch):
    with FakeTensorMode():
        q = torch.empty(1, 1 << 14, 64, device="cuda")
    assert not tuning.worth_tuning(q)
    # What remains is the rest of the conditions.
    monkeypatch.setattr(tuning, "Parameter", FakeTensor)
    assert tuning.worth_tuning(q)
    with FakeTensorMode():
        assert not tuning.worth_tuning(torch.empty(1, 1 << 13, 64, device="cuda"))
        assert not tuning.worth_tuning(torch.empty(1, 1 << 14, 64))
    with monkeypatch.context() as patch:
        patch.setenv("FLATTEN_DET_AUTOTUNE", "0")
        assert not tuning.worth_tuning(q)
    with monkeypatch.context() as patch:
        patch.setattr(tiles, "interpreted", lambda: True)
        assert not tuning.worth_tuning(q)
    torch.use_deterministic_algorithms(True)
    try:
        assert not tuning.worth_tuning(q)
    finally:
        torch.use_deterministic_algorithms(False)


def test_off_means_the_default_and_no_file(folder):
    card = Card({PLANS[2]: 0.1})
    assert card.plan(card.tuner(worth_tuning=lambda q: False)) == DEFAULT
    assert not card.runs
    assert not os.listdir(folder)


@pytest.mark.parametrize(
    ("tokens", "bucket"), [(1, 1), (2, 4), (4, 4), (5, 16), (65_536, 65_536), (65_537, 262_144)]
)
def test_size_buckets(tokens, bucket):
    assert tuning.size_bucket(tokens) == bucket


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_candidates(direction):
    for tokens, width in ((16, 4), (49, 7), (4096, 64)):
        default = plan_for(64, 1, torch.bfloat16, tokens, width)
        plans = candidates(default, direction)
        assert plans[0] == default
        assert len(set(plans)) == len(plans) >= 4
        assert all(plan.block <= default.block for plan in plans)
        other = "backward" if direction == "forward" else "forward"
        own = {"forward": ("block", "attend_block"), "backward": ("query_block", "key_block")}
        for plan in plans:
            assert all(asdict(plan)[x] == asdict(default)[x] for x in own[other])


@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trials_of_the_kernels(monkeypatch, dtype):
    """Forward and backward as :mod:`launch` tunes them, a broken candidate among the plans."""
    case = make_case((5, 9), 1, 16, 3, dtype, B=1)
    default = plan_for(16, 1, dtype, 45, 9)
    fast, broken = candidates(default, "forward")[1], candidates(default, "forward")[2]
    monkeypatch.setattr(tuning, "candidates", lambda plan, direction: [plan, fast, broken])

    def forward(*arguments):
        out, *saved = launch.forward(*arguments)
        return (out * 1.5 if arguments[-1] == broken else out), *saved

    def backward(*arguments):
        gradients = launch.backward(*arguments)
        if arguments[-1] == broken:
            gradients[4].mul_(1.5)
        return gradients

    needs = tuple(x is not None for x in case.tensors)
    trials = {
        "forward": lambda: tuning.forward_trial(forward, case.inputs()),
        "backward": lambda: tuning.backward_trial(forward, backward, case.inputs(), needs, default),
    }
    for direction, trial in trials.items():
        seconds = iter([0.3, 0.2, 0.1])
        tuner = Card().tuner()
        tuner.measure = lambda run, seconds=seconds: next(seconds)
        key = tuning.make_key(direction, 1, 45, 9, 16, 1, dtype)
        assert tuner.plan(key, default, case.tensors[0], trial) == fast
        assert next(seconds) == 0.1


@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
def test_candidates_are_right():
    case = make_case((3, 21), 1, 16, 3, torch.bfloat16, B=1)
    default = plan_for(16, 1, torch.bfloat16, 63, 21)
    needs = (True,) * 7
    for direction, trial in {
        "forward": tuning.forward_trial(launch.forward, case.inputs()),
        "backward": tuning.backward_trial(
            launch.forward, launch.backward, case.inputs(), needs, default
        ),
    }.items():
        for plan in candidates(default, direction):
            assert tuning.is_right(trial.run(plan), trial.expected), plan
