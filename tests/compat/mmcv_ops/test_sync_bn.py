import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from mmcv.ops import SyncBatchNorm
from mmcv.ops.sync_bn import SyncBatchNormFunction


def layers(**options):
    """mmcv's layer and torch's, with the same weights and statistics."""
    torch.manual_seed(0)
    layer, expected = SyncBatchNorm(3, **options), torch.nn.BatchNorm2d(3, **options)
    if layer.affine:
        torch.nn.init.normal_(layer.bias)
    expected.load_state_dict(layer.state_dict())
    return layer, expected


@pytest.mark.parametrize("stats_mode", ["default", "N"])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.usefixtures("lone_process")
def test_one_process_is_torchs_batch_norm(stats_mode, momentum):
    layer, expected = layers(eps=1e-3, momentum=momentum)
    layer.stats_mode = stats_mode
    for _ in range(2):
        inputs = torch.randn(2, 3, 4, 5) * 3 + 1
        results = []
        for module in (layer, expected):
            module.zero_grad()
            input = inputs.clone().requires_grad_()
            output = module(input)
            (output.square() * torch.arange(5.0)).sum().backward()
            results.append([output, input.grad, module.weight.grad, module.bias.grad])
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(layer.state_dict(), expected.state_dict())
    torch.testing.assert_close(layer.eval()(inputs), expected.eval()(inputs))


@pytest.mark.parametrize("options", [dict(affine=False), dict(track_running_stats=False)])
@pytest.mark.usefixtures("lone_process")
def test_without_weights_or_running_statistics(options):
    layer, expected = layers(**options)
    input = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(layer(input), expected(input))
    torch.testing.assert_close(layer.state_dict(), expected.state_dict())


@pytest.mark.usefixtures("lone_process")
def test_half_precision_is_rounded_once():
    layer, _ = layers()
    half = torch.randn(2, 3, 4, 5).half().requires_grad_()
    single = half.detach().float().requires_grad_()
    outputs = [layer(x) for x in (half, single)]
    for output in outputs:
        output.sum().backward()
    assert torch.equal(outputs[0], outputs[1].half())
    assert torch.equal(half.grad, single.grad.half())


@pytest.mark.parametrize("sizes", [(2, 2), (3, 0)])
def test_two_processes_normalize_as_one(sizes, monkeypatch):
    """mmcv adds up what its ops return; here two threads do, each in the place of a process."""
    parts, barrier = {}, threading.Barrier(2, timeout=60)

    def all_reduce(tensor, group):
        parts[threading.get_ident()] = tensor.clone()
        barrier.wait()
        tensor.copy_(sum(parts.values()))
        barrier.wait()

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    torch.manual_seed(0)
    whole = torch.randn(sum(sizes), 3, 4, 5)
    upstream = torch.randn_like(whole)
    weight, bias = torch.rand(3), torch.randn(3)
    stats_mode = "default" if min(sizes) else "N"

    def process(input, upstream):
        leaves = [x.clone().requires_grad_() for x in (input, weight, bias)]
        mean, var = torch.zeros(3), torch.ones(3)
        output = SyncBatchNormFunction.apply(
            leaves[0], mean, var, *leaves[1:], 0.1, 1e-5, None, 2, stats_mode
        )
        grads = torch.autograd.grad(output, leaves, upstream)
        return output, mean, var, *grads

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(process, whole.split(sizes), upstream.split(sizes))

    expected = torch.nn.BatchNorm2d(3)
    expected.load_state_dict(dict(weight=weight, bias=bias), strict=False)
    whole.requires_grad_()
    output = expected(whole)
    grads = torch.autograd.grad(output, [whole, *expected.parameters()], upstream)
    torch.testing.assert_close(torch.cat([first[0], second[0]]), output)
    torch.testing.assert_close(first[1], expected.running_mean)
    if min(sizes):  # Each process takes the others to hold as much as it does.
        torch.testing.assert_close(first[2], expected.running_var)
        torch.testing.assert_close(torch.cat([first[3], second[3]]), grads[0])
        for n in (4, 5):  # The mean over the processes, as DistributedDataParallel takes it.
            torch.testing.assert_close(first[n] * 2, grads[n - 3])
            assert torch.equal(first[n], second[n])
