"""The steps of batch normalization over several processes (``SyncBatchNorm``, ``MMSyncBN``).

mmcv adds up the statistics and gradients of all processes between these steps; each step sees one
process's part. Inputs are (N, C, S) in any precision, statistics (C,) in float32.
"""

from .precision import at_least_float32


def sync_bn_forward_mean(input, mean):
    """Write each channel's mean to ``mean``."""
    mean.copy_(at_least_float32(input).mean((0, 2)))


def sync_bn_forward_var(input, mean, var):
    """Write each channel's mean squared distance from ``mean``, that of all processes, to ``var``."""
    var.copy_((at_least_float32(input) - mean.unsqueeze(1)).square().mean((0, 2)))


def sync_bn_forward_output(
    input, mean, var, weight, bias, running_mean, running_var, norm, std, output, eps, momentum,
    group_size,
):  # fmt: skip
    """Normalize ``input`` and move the running statistics, which take the unbiased variance.

    Args:
        mean, var: statistics over all processes.
        weight, bias, running_mean, running_var: may be None.
        norm, std: filled with the normalized input and the square root of ``var + eps``, which the backward
            steps take.
        momentum: share of this batch in the running statistics.
        group_size: number of processes; each is taken to hold as many values as this one.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((at_least_float32(input) - mean.unsqueeze(1)) / std.unsqueeze(1))
    output.copy_(norm if weight is None else norm * weight.unsqueeze(1) + bias.unsqueeze(1))
    if running_mean is not None:
        count = input.size(0) * input.size(2) * group_size
        unbiased = var * count / (count - 1) if count > 1 else var
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(unbiased, momentum)


def sync_bn_backward_param(grad_output, norm, grad_weight, grad_bias):
    """Write the gradients of weight and bias, each (C,)."""
    grad_output = at_least_float32(grad_output)
    grad_weight.copy_((grad_output * norm).sum((0, 2)))
    grad_bias.copy_(grad_output.sum((0, 2)))


def sync_bn_backward_data(grad_output, weight, grad_weight, grad_bias, norm, std, grad_input):
    """Write the gradient of the input (N, C, S).

    ``grad_weight`` and ``grad_bias`` are the means over all processes of what
    :func:`sync_bn_backward_param` wrote in each.
    """
    count = grad_output.size(0) * grad_output.size(2)
    # What the input does to its own mean and variance.
    common = (norm * grad_weight.unsqueeze(1) + grad_bias.unsqueeze(1)) / count
    grad_input.copy_((at_least_float32(grad_output) - common) * (weight / std).unsqueeze(1))
