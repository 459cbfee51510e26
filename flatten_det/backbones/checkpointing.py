"""Activation checkpointing: what a block computes again in the backward pass instead of keeping it.

==============  ====================================================  =====================================
policy          computed again                                        kept in each block, in tensors (B, N, C)
==============  ====================================================  =====================================
``block``       the whole block                                       1: its input
``mlp``         the MLP and its norm                                  the attention's, and 1
``elementwise`` norms, activations, sums: all but matrix products,    what the products return
                attention and convolutions
==============  ====================================================  =====================================
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from .options import NUM_STAGES, is_count

BLOCK, MLP, ELEMENTWISE = POLICIES = ("block", "mlp", "elementwise")


def checkpoint_policies(
    with_cp: bool | Mapping[str, Any], num_stages: int = NUM_STAGES
) -> tuple[str | None, ...]:
    """The policy of each stage, None for no checkpointing.

    Args:
        with_cp: False, True (policy ``'block'`` everywhere), or a dict of ``policy`` and ``stages``
            (from 0 on), both optional.
        num_stages: of the backbone.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(with_cp, bool):
        return (BLOCK if with_cp else None,) * num_stages
    if not isinstance(with_cp, Mapping) or set(with_cp) - {"policy", "stages"}:
        raise ValueError(
            f"with_cp must be True, False or a dict of 'policy' and 'stages'; got {with_cp!r}"
        )
    policy, stages = with_cp.get("policy", BLOCK), with_cp.get("stages", range(num_stages))
    if policy not in POLICIES:
        raise ValueError(f"with_cp: policy must be one of {', '.join(POLICIES)}; got {policy!r}")
    if not isinstance(stages, Sequence) or not all(is_count(s, num_stages - 1, 0) for s in stages):
        raise ValueError(f"with_cp: stages must be a list of 0 to {num_stages - 1}; got {stages!r}")
    return tuple(policy if stage in stages else None for stage in range(num_stages))


def recompute(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """Call a function whose activations are computed again in the backward pass."""
    return checkpoint(function, *args, use_reentrant=False)


def recompute_elementwise(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """The same, but for what products, attention and convolutions return: that is kept."""
    contexts = partial(create_selective_checkpoint_contexts, _keep_products)
    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)


def _keep_products(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if operator.overloadpacket.__name__ in _PRODUCTS:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


_PRODUCTS = {
    "addmm",
    "mm",
    "bmm",
    "baddbmm",
    "convolution",
    "focused_linear_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
}
