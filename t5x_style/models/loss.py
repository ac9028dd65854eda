"""Cross-entropy of the next token without ever holding [B, S, V].

There are two forms of the same sums.

By token chunks, a chunk of the tokens goes through the head at a time. The pass that computes the
loss computes the gradients too, so the logits are computed once: 6 V D FLOPs a token in all, not 8.
The head is gathered over the fsdp axis once per step, not per chunk, and its gradient is scattered
once.

By vocabulary chunks, only a chunk of the head is gathered at a time, and only its gradient is held.
It is for chips on which a whole head does not fit. A first pass finds log(Z), and a second one
computes the logits again: 8 V D FLOPs a token.
"""

import functools

import jax
import jax.numpy as jnp

from t5x_style.kernels import softcapped
from t5x_style.models.logical import BATCH, EMBED, SEQUENCE, VOCAB, axis_names, per_shard


def next_token_loss(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    chunk_tokens: int,
    vocab_chunks: int = 1,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """Weighted sum of the tokens' losses.

    Args:
      hidden: [B, S, D]. head: [V, D], cast to hidden's dtype for the products.
      targets: int32 [B, S]. weights: float32 [B, S]; give them summing to one for a mean.
      chunk_tokens: tokens per device whose logits live at once; not read by vocabulary chunks.
      vocab_chunks: pieces of a device's vocabulary; above 1 the loss is by vocabulary chunks.
      softcap: c of c * tanh(logits / c).
      z_loss: coefficient of log(Z)^2 (PaLM, section 5).

    Returns:
      The loss, float32 []: the sum of weights * (-log p(target) + z_loss * log(Z)^2). And for the
      record, without gradients, three float32 [B]: the weighted sums of -log p(target) and of the z
      term in each row, and its largest logit, after the cap.
    """
    if vocab_chunks > 1:
        compute = functools.partial(_vocabulary_chunks, vocab_chunks=vocab_chunks)
    else:
        compute = functools.partial(_token_chunks, chunk_tokens=chunk_tokens)
    compute = functools.partial(compute, softcap=softcap, z_loss=z_loss)
    loss, rows = _loss(hidden, head, targets, weights, compute)
    return loss, jax.lax.stop_gradient(rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _loss(hidden, head, targets, weights, compute):
    compute = functools.partial(compute, gradients=False)
    nll, z, largest = per_shard(compute, _IN_AXES, _ROWS)(hidden, head, targets, weights)
    return nll.sum() + z.sum(), (nll, z, largest)


def _loss_forward(hidden, head, targets, weights, compute):
    compute = functools.partial(compute, gradients=True)
    out_axes = (*_ROWS, (BATCH, SEQUENCE, None), (VOCAB, EMBED))
    nll, z, largest, *gradients = per_shard(compute, _IN_AXES, out_axes)(
        hidden, head, targets, weights
    )
    return (nll.sum() + z.sum(), (nll, z, largest)), tuple(gradients)


def _loss_backward(compute, gradients, cotangents):
    # The loss is linear in its cotangent, so the gradients for a cotangent of 1 are scaled by it.
    scale, _ = cotangents
    hidden_gradient, head_gradient = gradients
    return (
        (scale * hidden_gradient).astype(hidden_gradient.dtype),
        scale * head_gradient,
        None,
        None,
    )


_loss.defvjp(_loss_forward, _loss_backward)

_ROWS = ((BATCH,), (BATCH,), (BATCH,))
_IN_AXES = ((BATCH, SEQUENCE, None), (VOCAB, EMBED), (BATCH, SEQUENCE), (BATCH, SEQUENCE))


def _token_chunks(hidden, head, targets, weights, *, chunk_tokens, softcap, z_loss, gradients):
    """One device's part: rows and tokens over batch axes, V over `vocab`, D over `embed`."""
    batch, length, width = hidden.shape
    vocab_axes = axis_names(VOCAB)
    head = _gather_width(head.astype(hidden.dtype))
    first_word = _first_word(head)
    chunks = _chunks(batch * length, chunk_tokens)

    def body(head_gradient, chunk):
        x, target, weight = chunk
        logits, hit = _logits(x, head, target, first_word, softcap)
        maximum = jax.lax.stop_gradient(logits.max(-1))
        maximum = jax.lax.pmax(maximum, vocab_axes) if vocab_axes else maximum
        exponentials = jnp.exp(logits - maximum[:, None])
        total = _sum_over(exponentials.sum(-1), vocab_axes)
        log_z = maximum + jnp.log(total)
        target_logit = _sum_over(jnp.where(hit, logits, 0.0).sum(-1), vocab_axes)
        nll, z = weight * (log_z - target_logit), weight * z_loss * jnp.square(log_z)
        if not gradients:
            return head_gradient, (nll, z, maximum, None)
        probability = exponentials / total[:, None]
        slope = _slope(logits, probability, hit, log_z, weight, softcap, z_loss).astype(x.dtype)
        x_gradient = _sum_over(jnp.einsum("tv,vd->td", slope, head), vocab_axes)
        head_gradient = head_gradient + _head_gradient(slope, x)
        return head_gradient, (nll, z, maximum, x_gradient)

    flat = (hidden.reshape(-1, width), targets.reshape(-1), weights.reshape(-1))
    chunked = tuple(array.reshape(chunks, -1, *array.shape[1:]) for array in flat)
    start = jnp.zeros(head.shape, jnp.float32) if gradients else None
    head_gradient, (nll, z, maximum, x_gradient) = jax.lax.scan(body, start, chunked)
    rows = _of_rows(nll, z, maximum, batch, length)
    if not gradients:
        return rows
    head_gradient = _sum_over_token_axes(_scatter_width(head_gradient))
    return *rows, x_gradient.reshape(hidden.shape), head_gradient


def _vocabulary_chunks(hidden, head, targets, weights, *, vocab_chunks, softcap, z_loss, gradients):
    """One device's part as in `_token_chunks`, a chunk of its vocabulary at a time."""
    batch, length, width = hidden.shape
    vocab_axes = axis_names(VOCAB)
    x, target, weight = hidden.reshape(-1, width), targets.reshape(-1), weights.reshape(-1)
    words = len(head) // vocab_chunks
    pieces = head.reshape(vocab_chunks, words, -1)
    chunks = (pieces, _first_word(head) + words * jnp.arange(vocab_chunks, dtype=jnp.int32))

    def logits_of(chunk):
        piece, first_word = chunk
        piece = _gather_width(piece.astype(x.dtype))
        return (piece, *_logits(x, piece, target, first_word, softcap))

    def add(carry, chunk):
        maximum, total, target_logit = carry
        _, logits, hit = logits_of(chunk)
        higher = jnp.maximum(maximum, logits.max(-1))
        total = total * jnp.exp(maximum - higher) + jnp.exp(logits - higher[:, None]).sum(-1)
        return (higher, total, target_logit + jnp.where(hit, logits, 0.0).sum(-1)), None

    none, zero = (jnp.full(target.shape, value, jnp.float32) for value in (-jnp.inf, 0.0))
    (own, total, target_logit), _ = jax.lax.scan(add, (none, zero, zero), chunks)
    maximum = jax.lax.pmax(own, vocab_axes) if vocab_axes else own
    log_z = maximum + jnp.log(_sum_over(total * jnp.exp(own - maximum), vocab_axes))
    nll = weight * (log_z - _sum_over(target_logit, vocab_axes))
    z = weight * z_loss * jnp.square(log_z)
    rows = _of_rows(nll, z, maximum, batch, length)
    if not gradients:
        return rows

    def differentiate(x_gradient, chunk):
        piece, logits, hit = logits_of(chunk)
        probability = jnp.exp(logits - log_z[:, None])
        slope = _slope(logits, probability, hit, log_z, weight, softcap, z_loss).astype(x.dtype)
        more = jnp.einsum("tv,vd->td", slope, piece, preferred_element_type=jnp.float32)
        return x_gradient + more, _scatter_width(_head_gradient(slope, x))

    x_gradient, head_gradient = jax.lax.scan(differentiate, jnp.zeros(x.shape, jnp.float32), chunks)
    x_gradient = _sum_over(x_gradient, vocab_axes).astype(x.dtype).reshape(hidden.shape)
    return *rows, x_gradient, _sum_over_token_axes(head_gradient.reshape(head.shape))


def _first_word(head):
    """The id of the first word of a device's part of the head."""
    vocab_axes = axis_names(VOCAB)
    return jax.lax.axis_index(vocab_axes) * len(head) if vocab_axes else 0


def _logits(x, head, target, first_word, softcap):
    """Logits float32 [T, V] of x [T, D] and head [V, D]; and bool [T, V], the tokens' targets."""
    raw = jnp.einsum("td,vd->tv", x, head, preferred_element_type=jnp.float32)
    words = jax.lax.broadcasted_iota(jnp.int32, raw.shape, 1) + first_word
    return softcapped(raw, softcap), words == target[:, None]


def _slope(logits, probability, hit, log_z, weight, softcap, z_loss):
    """The gradient of the loss with respect to the logits before their cap, float32 [T, V]."""
    slope = (1 + 2 * z_loss * log_z)[:, None] * probability - hit
    if softcap is not None:
        slope = slope * (1 - jnp.square(logits / softcap))
    return slope * weight[:, None]


def _head_gradient(slope, x):
    return jnp.einsum("tv,td->vd", slope, x, preferred_element_type=jnp.float32)


def _gather_width(head):
    """[V, D] of the shards of D."""
    embed_axes = axis_names(EMBED)
    return jax.lax.all_gather(head, embed_axes, axis=1, tiled=True) if embed_axes else head


def _scatter_width(head_gradient):
    """A device's shard of D, summed over the axes that split D."""
    embed_axes = axis_names(EMBED)
    if not embed_axes:
        return head_gradient
    scattered = jax.lax.psum_scatter(head_gradient, embed_axes, scatter_dimension=1, tiled=True)
    # Over an axis that does not split the tokens, the scatter has summed equal gradients.
    return scattered / _sum_over(1, _difference(embed_axes, _token_axes()))


def _sum_over_token_axes(head_gradient):
    """Over those axes of tokens over which the scatter has not summed already."""
    return _sum_over(head_gradient, _difference(_token_axes(), axis_names(EMBED)))


def _of_rows(nll, z, maximum, batch, length):
    """Three [B] of a row's tokens: the sums of nll and z, and the largest of their logits."""
    axes = axis_names(SEQUENCE)
    sums = [_sum_over(losses.reshape(batch, length).sum(1), axes) for losses in (nll, z)]
    largest = maximum.reshape(batch, length).max(1)
    return *sums, jax.lax.pmax(largest, axes) if axes else largest


def _token_axes() -> tuple[str, ...]:
    return (*axis_names(BATCH), *axis_names(SEQUENCE))


def _difference(axes: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(axis for axis in axes if axis not in others)


def _sum_over(x, axes: tuple[str, ...]) -> jax.Array:
    return jax.lax.psum(x, axes) if axes else x


def _chunks(tokens: int, chunk_tokens: int) -> int:
    """The smallest number of equal chunks of at most `chunk_tokens` tokens."""
    fewest = -(-tokens // chunk_tokens)
    return next(count for count in range(fewest, tokens + 1) if tokens % count == 0)
