"""Rematerialisation policies by name: what the backward pass keeps and what it computes again."""

from collections.abc import Callable

import jax

REMAT_POLICIES = ("none", "full", "save_dots")


def rematerialised(body: Callable, policy: str) -> Callable:
    """The body of a layer scan under a policy.

    'none' keeps every intermediate; 'full' keeps only the layer's input; 'save_dots' keeps the
    results of the weight matrices and computes the rest again (attention scores, activations,
    norms). What each costs in FLOPs stands in `accounting.flops`, and a test counts it.
    """
    if policy == "none":
        return body
    keep = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "save_dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }[policy]
    return jax.checkpoint(body, policy=keep, prevent_cse=False)
