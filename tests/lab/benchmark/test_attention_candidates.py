"""The plain transcription, the candidates and their check."""

from dataclasses import replace

import pytest
import torch

from flatten_det.errors import UserError
from flatten_det.lab.benchmark import attention
from flatten_det.lab.benchmark.attention import (
    CORE,
    LEVELS,
    MODES,
    TOLERANCES,
    Checker,
    compute,
    default_candidates,
    find_case,
    floor_bytes,
    load_peer,
    make_inputs,
    part_to_check,
    peak_units,
    unit_bytes,
)
from flatten_det.lab.benchmark.memory import Peak
from flatten_det.lab.benchmark.run import DTYPES, Result, Setting

SHAPE = "32,2,5,7"


@pytest.mark.parametrize("shape", ["16,1,1,7", "32,2,9,7", "48,3,17,31"])
def test_the_transcription_is_the_equation(shape):
    check = Checker(Setting(find_case(shape, CORE), MODES[1]))("eager")
    assert check.passed
    assert check.error < 5e-6


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("level", LEVELS)
def test_candidates_pass(level, mode, peers):
    checker = Checker(Setting(find_case(SHAPE, level), mode, batch=2))
    names = default_candidates(level, torch.device("cpu"))
    for name in {*names, "some_peers:right"} - {"compiled", "sdpa"}:
        result = checker(name)
        assert result.passed, (name, result)
        assert result.error < TOLERANCES["fp32"]
    assert not checker("sdpa").passed


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_compiled_passes(level):
    assert Checker(Setting(find_case(SHAPE, level), MODES[1]))("compiled").passed


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_low_precision(dtype, amp):
    for level, name in zip(LEVELS, ("tiled", "flatten_det"), strict=True):
        setting = Setting(find_case(SHAPE, level), MODES[1], dtype, amp=amp)
        assert Checker(setting)(name).passed
        inputs = make_inputs(setting)
        parameters = {n: x.dtype for n, x in inputs.tensors.items() if n not in "qkvx"}
        assert set(parameters.values()) == {torch.float32 if amp else DTYPES[dtype]}
    # The output projection of float32 weights is in low precision under autocast only.
    assert inputs.tensors["x"].dtype == (torch.float32 if amp else DTYPES[dtype])
    assert compute(inputs, "eager")["output"].dtype == DTYPES[dtype]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("peer", "modes"),
    [("wrong", MODES), ("forgetful", MODES[1:]), ("undefined", MODES[:1]), ("short", MODES[:1])],
)
def test_wrong_peers_fail(peers, level, peer, modes):
    for mode in modes:
        result = Checker(Setting(find_case(SHAPE, level), mode))(f"some_peers:{peer}")
        assert not result.passed
        assert result.worst is not None
        if peer in ("forgetful", "undefined"):
            assert result.error == float("inf")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("some_peers", "give module:function"),
        ("some_peers:missing", "some_peers has no function missing"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("broken_peers:f", "No module named 'some_package_that_nobody_has'"),
    ],
)
def test_a_peer_that_cannot_be_had_is_one_line(peers, text, message):
    with pytest.raises(UserError) as raised:
        load_peer(text)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_large_shapes_are_checked_in_part(monkeypatch):
    case = find_case("32,2,50,20")
    setting = Setting(case, batch=8)
    assert part_to_check(setting) == setting
    for limit, batch, height in ((96_001, 3, 50), (32_000, 1, 50), (7 * 640, 1, 7), (1, 1, 1)):
        monkeypatch.setattr(attention, "MAX_ELEMENTS", limit)
        part = replace(setting, batch=batch, case=replace(case, height=height))
        assert part_to_check(setting) == part


def test_shapes():
    case = find_case("320,5,50,80")
    assert (case.channels, case.heads, case.hw_shape, case.tokens) == (320, 5, (50, 80), 4000)
    setting = Setting(replace(case, level=CORE), MODES[0], "bf16", batch=2)
    assert unit_bytes(setting) == 2 * 4000 * 320 * 2
    assert floor_bytes(setting) == 6 * unit_bytes(setting)
    assert floor_bytes(replace(setting, mode=MODES[1])) == 16 * unit_bytes(setting)
    assert peak_units(Result(setting, "a", peak=Peak(1234))) == 1234 / unit_bytes(setting)
    assert find_case("pvt-s1-262144").tokens == 262144


@pytest.mark.parametrize("text", ["pvt-s9", "64,1,8", "64,3,8,8", "64,1,0,8", "64,x,8,8"])
def test_no_such_shape(text):
    with pytest.raises(UserError, match=f"--shape {text}: "):
        find_case(text)
