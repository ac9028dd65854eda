"""Cross-entropy of the next token without ever holding [B, S, V].

Tokens go through the head a chunk at a time. The gradients are made in the same pass that makes
the loss, so the logits are computed once (6 V D FLOPs a token in all, not 8); the head is gathered
over the fsdp axis once and its gradient scattered once per step, not once per chunk.
"""

import functools

import jax
import jax.numpy as jnp

from t5x_style.models.decoder import softcapped
from t5x_style.models.logical import BATCH, EMBED, SEQUENCE, VOCAB, axis_names, per_shard


def next_token_loss(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    chunk_tokens: int,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Weighted sum of the tokens' losses.

    Args:
      hidden: [B, S, D]. head: [V, D], cast to hidden's dtype for the products.
      targets: int32 [B, S]. weights: float32 [B, S]; give them summing to one for a mean.
      chunk_tokens: tokens per device whose logits live at once.
      softcap: c of c * tanh(logits / c).
      z_loss: coefficient of log(Z)^2 (PaLM, section 5).

    Returns:
      The loss, float32 []: sum of weights * (-log p(target) + z_loss * log(Z)^2); and for the
      record, without a gradient, float32 [B] each: the weighted sums of -log p(target) and of the
      z term per row.
    """
    loss, rows = _loss(hidden, head, targets, weights, chunk_tokens, softcap, z_loss)
    return loss, jax.lax.stop_gradient(rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _loss(hidden, head, targets, weights, chunk_tokens, softcap, z_loss):
    compute = functools.partial(
        _on_shard, chunk_tokens=chunk_tokens, softcap=softcap, z_loss=z_loss, gradients=False
    )
    rows = ((BATCH,), (BATCH,))
    nll, z = per_shard(compute, _IN_AXES, rows)(hidden, head, targets, weights)
    return nll.sum() + z.sum(), (nll, z)


def _loss_forward(hidden, head, targets, weights, chunk_tokens, softcap, z_loss):
    compute = functools.partial(
        _on_shard, chunk_tokens=chunk_tokens, softcap=softcap, z_loss=z_loss, gradients=True
    )
    out_axes = ((BATCH,), (BATCH,), (BATCH, SEQUENCE, None), (VOCAB, EMBED))
    nll, z, hidden_gradient, head_gradient = per_shard(compute, _IN_AXES, out_axes)(
        hidden, head, targets, weights
    )
    return (nll.sum() + z.sum(), (nll, z)), (hidden_gradient, head_gradient)


def _loss_backward(chunk_tokens, softcap, z_loss, gradients, cotangents):
    # The loss is linear in its cotangent, so gradients made for 1 are scaled by it.
    scale, _ = cotangents
    hidden_gradient, head_gradient = gradients
    return (
        (scale * hidden_gradient).astype(hidden_gradient.dtype),
        scale * head_gradient,
        None,
        None,
    )


_loss.defvjp(_loss_forward, _loss_backward)

_IN_AXES = ((BATCH, SEQUENCE, None), (VOCAB, EMBED), (BATCH, SEQUENCE), (BATCH, SEQUENCE))


def _on_shard(hidden, head, targets, weights, *, chunk_tokens, softcap, z_loss, gradients):
    """One device's part: rows and tokens over batch axes, V over `vocab`, D over `embed`."""
    batch, length, width = hidden.shape
    vocab_axes, embed_axes = axis_names(VOCAB), axis_names(EMBED)
    batch_axes, sequence_axes = axis_names(BATCH), axis_names(SEQUENCE)
    head = head.astype(hidden.dtype)
    if embed_axes:
        head = jax.lax.all_gather(head, embed_axes, axis=1, tiled=True)
    vocab = head.shape[0]
    first_word = jax.lax.axis_index(vocab_axes) * vocab if vocab_axes else 0
    chunks = _chunks(batch * length, chunk_tokens)

    def body(head_gradient, chunk):
        x, target, weight = chunk
        raw = jnp.einsum("td,vd->tv", x, head, preferred_element_type=jnp.float32)
        logits = softcapped(raw, softcap)
        maximum = jax.lax.stop_gradient(logits.max(-1))
        maximum = jax.lax.pmax(maximum, vocab_axes) if vocab_axes else maximum
        exponentials = jnp.exp(logits - maximum[:, None])
        total = _sum_over(exponentials.sum(-1), vocab_axes)
        log_z = maximum + jnp.log(total)
        hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) + first_word == target[:, None]
        target_logit = _sum_over(jnp.where(hit, logits, 0.0).sum(-1), vocab_axes)
        nll, z = weight * (log_z - target_logit), weight * z_loss * jnp.square(log_z)
        if not gradients:
            return head_gradient, (nll, z, None)
        probability = exponentials / total[:, None]
        slope = (1 + 2 * z_loss * log_z)[:, None] * probability - hit
        if softcap is not None:
            slope = slope * (1 - jnp.square(logits / softcap))
        slope = (slope * weight[:, None]).astype(x.dtype)
        x_gradient = _sum_over(jnp.einsum("tv,vd->td", slope, head), vocab_axes)
        head_gradient = head_gradient + jnp.einsum(
            "tv,td->vd", slope, x, preferred_element_type=jnp.float32
        )
        return head_gradient, (nll, z, x_gradient)

    flat = (hidden.reshape(-1, width), targets.reshape(-1), weights.reshape(-1))
    chunked = tuple(each.reshape(chunks, -1, *each.shape[1:]) for each in flat)
    start = jnp.zeros(head.shape, jnp.float32) if gradients else None
    head_gradient, (nll, z, x_gradient) = jax.lax.scan(body, start, chunked)
    nll, z = (_sum_over(each.reshape(batch, length).sum(1), sequence_axes) for each in (nll, z))
    if not gradients:
        return nll, z
    token_axes = (*batch_axes, *sequence_axes)
    if embed_axes:
        head_gradient = jax.lax.psum_scatter(
            head_gradient, embed_axes, scatter_dimension=1, tiled=True
        )
        # Over an axis that does not split the tokens, the scatter has added equal gradients.
        equal = tuple(axis for axis in embed_axes if axis not in token_axes)
        head_gradient = head_gradient / _sum_over(1, equal)
    # The scatter has already summed over the axes that `embed` shares with the tokens.
    others = tuple(axis for axis in token_axes if axis not in embed_axes)
    return nll, z, x_gradient.reshape(hidden.shape), _sum_over(head_gradient, others)


def _sum_over(x, axes: tuple[str, ...]) -> jax.Array:
    return jax.lax.psum(x, axes) if axes else x


def _chunks(tokens: int, chunk_tokens: int) -> int:
    """The fewest equal chunks of at most `chunk_tokens` tokens each."""
    fewest = -(-tokens // chunk_tokens)
    return next(count for count in range(fewest, tokens + 1) if tokens % count == 0)
