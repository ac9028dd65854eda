"""The forward products that a step computes again, by remat policy and attention kernel."""

ATTENTION_TERMS = ("attention_logits", "attention_values")

# The forward products of a layer that the backward pass computes again under each remat policy.
# The last feed-forward matrix is never among them: its gradient needs its input, not its output,
# so the compiler drops it (and in a parallel block the attention's output matrix likewise). The
# head is outside the layers, and its gradient is computed with its logits; but a loss by vocabulary
# chunks (models/loss.py) computes them twice.
_AGAIN_BUT_ATTENTION = ("qkv", "feed_forward_in")
REMAT_RECOMPUTES: dict[str, tuple[str, ...]] = {
    "none": (),
    "save_dots": (),
    "full": ("qkv", *ATTENTION_TERMS, "output", "feed_forward_in"),
    "save_attention": _AGAIN_BUT_ATTENTION,
    "save_qkv": ("output", "feed_forward_in"),
    "save_qkv_out": ("feed_forward_in",),
    "offload": _AGAIN_BUT_ATTENTION,
}

# Products that an attention kernel computes again in its backward pass, under every remat policy.
# Plain holds all of its weights; blockwise computes the logits again. Flash has two such passes,
# one for the queries' gradient and one for the keys' and values'. Each computes the logits again,
# and the second also the gradient of the weights, a product of the size of attention_values. cuDNN
# computes the logits again, in one pass.
KERNEL_RECOMPUTES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "blockwise": ("attention_logits",),
    "flash": ("attention_logits", "attention_logits", "attention_values"),
    "cudnn": ("attention_logits",),
}

# The policies that keep the kernel's result, and the products that it must still compute again. The
# plain kernel needs its weights too. cuDNN needs a statistic of each query, which has no name by
# which to keep it, so its forward pass runs again.
KEEP_ATTENTION = ("save_dots", "save_attention", "save_qkv", "save_qkv_out", "offload")
RESULT_IS_NOT_ENOUGH: dict[str, tuple[str, ...]] = {
    "plain": ("attention_logits",),
    "cudnn": ATTENTION_TERMS,
}
