"""Rematerialisation policies by name: what the backward pass keeps and what it computes again."""

from collections.abc import Callable

import jax

from t5x_style.kernels import RESIDUALS

# What each weight matrix makes, by a name and not as a product: in eight bits that is a sum in
# int32, twice the bytes of what is made of it.
PRODUCT = "product"
# Names under which the attention marks what it makes: what its kernel reads, and the product of its
# output matrix.
QKV = "qkv"
OUTPUT = "attention_output"

_SAVE_ATTENTION = (RESIDUALS, OUTPUT)
_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "save_dots": jax.checkpoint_policies.save_only_these_names(PRODUCT, RESIDUALS),
    "save_attention": jax.checkpoint_policies.save_only_these_names(*_SAVE_ATTENTION),
    "save_qkv": jax.checkpoint_policies.save_only_these_names(QKV, RESIDUALS),
    "save_qkv_out": jax.checkpoint_policies.save_only_these_names(QKV, *_SAVE_ATTENTION),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(_SAVE_ATTENTION),
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
REMAT_POLICIES = ("none", *_POLICIES)


def rematerialised(body: Callable, policy: str) -> Callable:
    """The body of a layer scan under a policy.

    'none' computes no product again; under every policy a norm and an activation remember what
    they read and nothing else. 'full' keeps only the layer's input; 'save_dots' keeps the results
    of the weight matrices and what the attention kernel needs to go back (its output, and, but with
    'plain', a log-sum-exp per query), and computes the rest again: activations, norms, the plain
    kernel's scores. 'save_attention' keeps that output and the product of the attention's output
    matrix, so that no kernel runs forward twice; 'save_qkv' keeps the queries, keys and values in
    place of that product, 'save_qkv_out' besides it; 'offload' keeps what 'save_attention' does in
    the host's memory. What each costs in FLOPs stands in `accounting.flops`, and a test counts it.
    """
    if policy == "none":
        return body
    return jax.checkpoint(body, policy=_POLICIES[policy], prevent_cse=False)
