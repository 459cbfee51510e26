import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import SigmoidFocalLoss, SoftmaxFocalLoss, sigmoid_focal_loss, softmax_focal_loss
from op_checks import check_same_with_gradients

GAMMAS = [0.0, 0.5, 2.0]


def logits_and_target(classes_in_target, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 5, generator=generator, dtype=torch.float64).mul(3).to(dtype)
    target = torch.arange(12) % classes_in_target
    return logits.requires_grad_(), target


def reduced(loss, reduction):
    return {"none": loss, "sum": loss.sum(), "mean": loss.sum() / loss.size(0)}[reduction]


def sigmoid_reference(logits, target, gamma, alpha, weight=None):
    """Lin et al., equation 5, from torch's own cross entropy; class 5 is the background."""
    one_hot = F.one_hot(target, 6)[:, :5].to(logits.dtype)
    p = logits.sigmoid()
    p_t = p * one_hot + (1 - p) * (1 - one_hot)
    alpha_t = alpha * one_hot + (1 - alpha) * (1 - one_hot)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    loss = alpha_t * (1 - p_t) ** gamma * cross_entropy
    return loss if weight is None else loss * weight[target].unsqueeze(1)


def softmax_reference(logits, target, gamma, alpha, weight=None):
    cross_entropy = F.cross_entropy(logits, target, reduction="none", ignore_index=-1)
    loss = alpha * (1 - torch.exp(-cross_entropy)) ** gamma * cross_entropy
    return loss if weight is None else loss * weight[target]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_sigmoid_focal_loss(gamma, reduction):
    logits, target = logits_and_target(classes_in_target=6)
    actual = SigmoidFocalLoss(gamma, 0.25, reduction=reduction)(logits, target)
    expected = reduced(sigmoid_reference(logits, target, gamma, 0.25), reduction)
    check_same_with_gradients(actual, expected, [logits])


def test_sigmoid_focal_loss_with_class_weights():
    logits, target = logits_and_target(classes_in_target=5)
    weight = torch.tensor([0.5, 1.0, 2.0, 0.0, 3.0], dtype=torch.float64)
    actual = SigmoidFocalLoss(2.0, 0.25, weight, "none")(logits, target)
    expected = sigmoid_reference(logits, target, 2.0, 0.25, weight)
    check_same_with_gradients(actual, expected, [logits])


@pytest.mark.parametrize("gamma", GAMMAS)
def test_softmax_focal_loss(gamma):
    logits, target = logits_and_target(classes_in_target=5)
    # mmcv's backward multiplies the (N, C) gradient by the upstream one, so "none" cannot be used.
    actual = SoftmaxFocalLoss(gamma, 0.25, reduction="sum")(logits, target)
    expected = softmax_reference(logits, target, gamma, 0.25).sum()
    check_same_with_gradients(actual, expected, [logits])


def test_softmax_focal_loss_with_class_weights_and_ignored_samples():
    logits, target = logits_and_target(classes_in_target=5)
    target[[2, 7]] = -1
    weight = torch.tensor([0.5, 1.0, 2.0, 0.0, 3.0], dtype=torch.float64)

    loss = softmax_focal_loss(logits, target, 2.0, 0.25, weight, "none")
    assert torch.equal(loss[[2, 7]], torch.zeros(2, dtype=torch.float64))

    actual = softmax_focal_loss(logits, target, 2.0, 0.25, weight, "mean")
    expected = softmax_reference(logits, target, 2.0, 0.25, weight).sum() / 12
    check_same_with_gradients(actual, expected, [logits])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss_function", [sigmoid_focal_loss, softmax_focal_loss])
def test_half_precision_is_rounded_once(loss_function, dtype):
    logits, target = logits_and_target(classes_in_target=5, dtype=dtype)
    loss = loss_function(logits, target, 2.0, 0.25, None, "none")
    expected = loss_function(logits.detach().float(), target, 2.0, 0.25, None, "none")
    if loss_function is sigmoid_focal_loss:
        assert torch.equal(loss, expected.to(dtype))
    else:  # mmcv computes the softmax before, in the input's dtype
        torch.testing.assert_close(loss.float(), expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("loss_function", [sigmoid_focal_loss, softmax_focal_loss])
def test_saturated_logits_stay_finite(loss_function, gamma, dtype):
    logits = torch.tensor([[80.0, -80.0], [-80.0, 80.0], [0.0, 0.0]], dtype=dtype)
    logits.requires_grad_()
    loss = loss_function(logits, torch.tensor([0, 0, 1]), gamma, 0.25, None, "sum")
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
