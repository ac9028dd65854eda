"""Sampling text from a model, with a cache of keys and values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from t5x_style.data import Tokenizer
from t5x_style.errors import UsageError
from t5x_style.inference.restored import RestoredModel
from t5x_style.models.attention import Cache
from t5x_style.partitioning import in_force
from t5x_style.step.model_state import BoundModel, random_key


def sample(
    restored: RestoredModel,
    prompt: str,
    *,
    samples: int,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> list[str]:
    """Continuations of a prompt, up to the end of the document or `max_tokens` tokens.

    The prompt follows an end-of-document token, as every document did in training. Only what a text
    is made of can be drawn, and the end of the document (see `drawable_ids`).

    Args:
      temperature: 0 always takes the likeliest token.
      top_p: sample among the likeliest tokens that together have this probability (Holtzman et
        al. 2020); 1 leaves all of them.

    Raises:
      UsageError: the model has too few positions, or an option is out of range.
    """
    if temperature < 0 or not 0 < top_p <= 1 or samples < 1 or max_tokens < 1:
        raise UsageError(
            f"--temperature={temperature} --top_p={top_p} --samples={samples} "
            f"--max_tokens={max_tokens}: temperature must not be negative, top_p is above 0 "
            "and at most 1, and the other two are 1 or more"
        )
    tokenizer = restored.tokenizer
    ids = [tokenizer.eos_id, *tokenizer.encode(prompt)]
    limit = restored.model.architecture.max_length
    if limit is not None and len(ids) + max_tokens > limit:
        raise UsageError(
            f"a prompt of {len(ids)} tokens and --max_tokens={max_tokens} exceed the model's "
            f"{limit} positions: use --max_tokens={max(limit - len(ids), 0)} or fewer"
        )
    drawable = drawable_ids(tokenizer, restored.model.architecture.vocab_size)
    with in_force(restored.topology, restored.mesh):
        drawn = jax.jit(
            functools.partial(
                _sample, restored.model, max_tokens=max_tokens, temperature=temperature, top_p=top_p
            )
        )(
            restored.parameters,
            jnp.asarray(drawable),
            jnp.tile(jnp.asarray(ids, jnp.int32), (samples, 1)),
            random_key(seed),
        )
    # Many decoders leave out the space before a text: the continuation needs its own.
    rows = [[*ids, *_up_to_end(row, tokenizer.eos_id)] for row in np.asarray(drawn)]
    return [tokenizer.decode(row)[len(tokenizer.decode(ids)) :] for row in rows]


def drawable_ids(tokenizer: Tokenizer, words: int) -> np.ndarray:
    """bool [words]: the ids that a text can be made of, and the end of a document.

    A model may have more ids than its vocabulary, so that a mesh divides them. A vocabulary may
    have ids without text: padding, unknown, the beginning of a document, gaps.
    """
    drawable = np.zeros(words, bool)
    drawable[: tokenizer.vocab_size] = tokenizer.token_bytes() > 0
    drawable[tokenizer.eos_id] = True
    return drawable


def _sample(
    model: BoundModel,
    parameters: dict,
    drawable: jax.Array,
    prompt: jax.Array,
    key: jax.Array,
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
) -> jax.Array:
    """int32 [B, max_tokens] after a prompt int32 [B, P], of the ids in `drawable`, bool [V]."""
    decoder = model(parameters)
    batch, length = prompt.shape
    cache: Cache | None = decoder.empty_cache(batch, length + max_tokens)
    positions = jnp.arange(length, dtype=jnp.int32)
    hidden, cache = decoder(prompt, positions, cache)

    def one_token(carry, key):
        hidden, cache, position = carry
        logits = decoder.logits(hidden[:, -1:])[:, 0]
        # Before the temperature and top_p, so that the others have all of the probability.
        logits = jnp.where(drawable, logits, -jnp.inf)
        token = _draw(logits, key, temperature, top_p)
        hidden, cache = decoder(token[:, None], position[None], cache)
        return (hidden, cache, position + 1), token

    start = (hidden[:, -1:], cache, jnp.int32(length))
    _, tokens = jax.lax.scan(one_token, start, jax.random.split(key, max_tokens))
    return tokens.T


def _draw(logits: jax.Array, key: jax.Array, temperature: float, top_p: float) -> jax.Array:
    """int32 [B] from logits float32 [B, V]; never one of minus infinity."""
    if temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    logits = logits / temperature
    if top_p < 1:
        descending = jnp.sort(logits, axis=-1)[:, ::-1]
        probability = jax.nn.softmax(descending, axis=-1)
        # The likeliest token is always kept.
        kept = jnp.cumsum(probability, axis=-1) - probability < top_p
        threshold = jnp.where(kept, descending, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits >= threshold, logits, -jnp.inf)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def _up_to_end(tokens: np.ndarray, eos_id: int) -> list[int]:
    ends = np.flatnonzero(tokens == eos_id)
    return tokens[: ends[0] if len(ends) else None].tolist()
