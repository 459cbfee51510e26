"""Plans and launches: splits, tiles, determinism."""

from dataclasses import asdict, replace

import pytest
import torch
from gpu_cases import check, make_case, run_kernels
from recorded_launches import record_launches

from flatten_det.attention import gpu
from flatten_det.attention.gpu import launch
from flatten_det.attention.gpu import plan as plans
from flatten_det.attention.gpu.plan import default_plan, plan_for


@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("num_heads", [1, 2])
def test_tiles_and_splits_do_not_change_the_result(monkeypatch, num_heads):
    monkeypatch.setattr(plans, "PROGRAMS_PER_MULTIPROCESSOR", 7)
    case = make_case((6, 11), num_heads, 16, 3)
    plan = plan_for(16 * num_heads, num_heads, torch.float32, 66, 11)
    for changes in (
        dict(block=16, query_block=16, columns=2, depthwise_columns=4, lanes=2),
        dict(group=1, columns=4, attend_block=128, key_block=64, fused_convolution=False),
        dict(group=num_heads, samples=16),
    ):
        check(case, replace(plan, **changes))


@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
def test_several_splits_and_heads_apart(monkeypatch):
    launches = record_launches(monkeypatch)
    monkeypatch.setattr(plans, "PROGRAMS_PER_MULTIPROCESSOR", 12)
    check(make_case((6, 11), 4, 16, 3))
    grids = {x.name: x.grid for x in launches}
    assert grids["row_norms"] == (2, 2, 2)
    assert grids["reduce_keys"] == (8, 2)
    assert grids["attend"] == (8, 1)
    assert "sum_splits" in grids


@pytest.mark.parametrize(("num_heads", "count"), [(1, (3, 4)), (2, (3, 5)), (4, (4, 5))])
def test_launches(monkeypatch, num_heads, count):
    launches = []
    monkeypatch.setattr(launch, "run", lambda kernel, *_, **__: launches.append(kernel))
    monkeypatch.setattr(plans, "PROGRAMS_PER_MULTIPROCESSOR", 12)
    case = make_case((60, 11), num_heads, 16, 3, B=1)
    _, *saved = gpu.forward(case.inputs())
    forward = len(launches)
    gpu.backward(case.grad, case.inputs(), *saved, (True,) * 7)
    assert (forward, len(launches) - forward) == count
    # Heads apart read the norms of rows; else they are for backward alone.
    *_, norms = gpu.forward(case.inputs(), for_backward=False)
    assert (norms is None) == (forward == 3)


@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("num_heads", [1, 4])
def test_the_same_bits_twice(num_heads):
    case = make_case((3, 7), num_heads, 16, 3)
    first, second = run_kernels(case), run_kernels(case)
    assert first.out.equal(second.out)
    assert first.out.equal(gpu.forward(case.inputs(), for_backward=False)[0])
    assert all(a.equal(b) for a, b in zip(first.grads, second.grads, strict=True))


def test_plans_depend_on_the_bucket_alone():
    plans = {plan_for(64, 1, torch.bfloat16, n, 16 + n % 500) for n in range(256, 300_000, 977)}
    assert len(plans) == 1
    assert len({plan_for(96, 3, torch.bfloat16, n, n) for n in range(1, 4096)}) <= 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("dim", "num_heads"),
    [(16, 1), (24, 1), (64, 1), (128, 2), (320, 5), (512, 8), (96, 3), (768, 24), (1024, 16)],
)
def test_plans_are_what_the_kernels_take(dim, num_heads, dtype):
    for tokens in (1, 16, 49, 64, 3136):
        plan = plan_for(dim, num_heads, dtype, tokens, int(tokens**0.5))
        sizes = asdict(plan)
        for name in ("block", "attend_block", "query_block", "key_block"):
            assert sizes[name] >= 16, name
            assert sizes[name] & (sizes[name] - 1) == 0, name
        assert plan.group in (1, num_heads)
    assert plan is default_plan(dim, num_heads, dtype, 256, True, 0)


def test_a_map_of_another_size():
    case = make_case((3, 5), 1, 16, 3)
    with pytest.raises(ValueError, match=r"hw_shape=\(3, 4\) has 12 positions.*15 tokens"):
        run_kernels(case._replace(hw_shape=(3, 4)))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("positions", torch.ones(1, 14, 16), r"\(1, 14, 16\), it must be \(1, 15, 16\)"),
        ("scale", torch.ones(1, 1, 1), "scale has shape"),
        ("dwc_weight", torch.ones(16, 1, 3, 5), "dwc_weight has shape"),
        ("dwc_weight", torch.ones(16, 1, 4, 4), "kernel of 4x4, its size must be odd"),
        ("dwc_bias", torch.ones(8), r"dwc_bias has shape \(8,\), it must be \(16,\)"),
        (
            "sizes",
            torch.ones(1, 2, dtype=torch.int32),
            r"sizes has shape \(1, 2\), it must be \(2, 2\)",
        ),
        ("sizes", torch.ones(2, 2), "sizes must be contiguous int32; they are torch.float32"),
    ],
)
def test_parameters_of_another_kind(name, value, message):
    with pytest.raises(ValueError, match=message):
        gpu.forward(make_case((3, 5), 1, 16, 3).inputs()._replace(**{name: value}))
