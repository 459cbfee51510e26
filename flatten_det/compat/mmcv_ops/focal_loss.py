"""Sigmoid and softmax focal loss (Lin et al., 2017).

``weight`` is (C,), one factor per target class, or empty for none; ``gamma`` the focusing parameter.
"""

import torch
import torch.nn.functional as F

from .precision import at_least_float32


def sigmoid_focal_loss_forward(input, target, weight, output, gamma, alpha):
    """Write the loss of every pair of sample and class to ``output`` (N, C).

    Args:
        input: logits (N, C).
        target: class indices (N,) in [0, C]; C is the background, which matches no column.
        alpha: weight of the positive pairs; the negative ones have 1 - alpha.
    """
    x = at_least_float32(input)
    p = x.sigmoid()
    positive = -alpha * (1 - p).pow(gamma) * F.logsigmoid(x)
    negative = -(1 - alpha) * p.pow(gamma) * F.logsigmoid(-x)
    loss = torch.where(_is_target(x, target), positive, negative)
    output.copy_(loss * _sample_weight(weight, target, x).unsqueeze(1))


def sigmoid_focal_loss_backward(input, target, weight, grad_input, gamma, alpha):
    """Write the derivative of every loss with respect to its logit to ``grad_input`` (N, C)."""
    x = at_least_float32(input)
    p = x.sigmoid()
    q = 1 - p
    positive = -alpha * q.pow(gamma) * (q - gamma * p * F.logsigmoid(x))
    negative = -(1 - alpha) * p.pow(gamma) * (gamma * q * F.logsigmoid(-x) - p)
    grad = torch.where(_is_target(x, target), positive, negative)
    grad_input.copy_(grad * _sample_weight(weight, target, x).unsqueeze(1))


def softmax_focal_loss_forward(softmax, target, weight, output, gamma, alpha):
    """Write the loss of every sample to ``output`` (N,), ``alpha`` times its weight.

    Args:
        softmax: class probabilities (N, C).
        target: class indices (N,); a negative one is ignored: loss and gradient 0.
    """
    softmax = at_least_float32(softmax)
    p = _target_probability(softmax, target)
    loss = -alpha * (1 - p).pow(gamma) * _log(p)
    output.copy_(loss.mul_(_sample_weight(weight, target, softmax)).masked_fill_(target < 0, 0))


def softmax_focal_loss_backward(softmax, target, weight, buff, grad_input, gamma, alpha):
    """Write the derivative with respect to the logits to ``grad_input`` (N, C); ``buff`` (N,) takes
    the factor that a sample's row shares."""
    softmax = at_least_float32(softmax)
    p = _target_probability(softmax, target)
    q = 1 - p
    # (1 - p)^(gamma - 1) is infinite at p = 1 for gamma < 1, where log(p) = 0 cancels it.
    focus = gamma * q.clamp(min=torch.finfo(q.dtype).eps).pow(gamma - 1) * p * _log(p)
    factor = alpha * (focus - q.pow(gamma)) * _sample_weight(weight, target, softmax)
    factor.masked_fill_(target < 0, 0)
    buff.copy_(factor)
    one_hot = _is_target(softmax, target).to(softmax.dtype)
    grad_input.copy_(factor.unsqueeze(1) * (one_hot - softmax))


def _log(p):
    return p.clamp(min=torch.finfo(p.dtype).tiny).log()


def _is_target(x, target):
    """(N, C) mask of each sample's target column."""
    return target.unsqueeze(1) == torch.arange(x.size(1), device=x.device)


def _target_probability(softmax, target):
    return softmax.gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1)


def _sample_weight(weight, target, x):
    """(N,) class weight of each sample's target; 1 where there are none or the target has none."""
    if weight.numel() == 0:
        return x.new_ones(target.size(0))
    weight = weight.to(x.dtype)
    outside = (target < 0) | (target >= weight.numel())
    return weight[target.masked_fill(outside, 0)].masked_fill(outside, 1)
