"""Causal attention with all its options in float64 numpy, one head and one query at a time."""

import numpy as np


def attention(q, k, v, **where) -> np.ndarray:
    """float64 [B, S, N, H]; the options are those of `attention_and_gradients`."""
    return attention_and_gradients(q, k, v, np.zeros(q.shape), **where)[0]


def attention_and_gradients(
    q,
    k,
    v,
    direction,
    *,
    query_positions,
    key_positions,
    slopes=None,
    window=None,
    segments=None,
    softcap=None,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """q [B, S, N, H], k and v [B, T, K, H], slopes [N] or None; float64 [B, S, N, H], and the
    gradients of (out * direction).sum() by q, k and v.

    A query sees the `window` positions that end in its own, or all up to its own; with segments
    ([B, S], [B, T]) those of its own segment among them.
    """
    q, k, v, direction = (np.asarray(x, np.float64) for x in (q, k, v, direction))
    batch, length, heads, _ = q.shape
    out, dq, dk, dv = (np.zeros(x.shape) for x in (q, q, k, v))
    for b, s, n in np.ndindex(batch, length, heads):
        kv_head = n // (heads // k.shape[2])
        last = query_positions[s]
        positions = range(0 if window is None else last - window + 1, last + 1)
        seen = np.flatnonzero(np.isin(key_positions, positions))
        if segments is not None:
            seen = seen[np.asarray(segments[1])[b, seen] == segments[0][b][s]]
        scores = k[b, seen, kv_head] @ q[b, s, n]
        slope = np.ones(len(seen))
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
            slope = 1 - (scores / softcap) ** 2
        if slopes is not None:
            scores = scores - slopes[n] * (query_positions[s] - np.asarray(key_positions)[seen])
        weights = np.exp(scores - scores.max())
        weights = weights / weights.sum()
        out[b, s, n] = weights @ v[b, seen, kv_head]
        toward = v[b, seen, kv_head] @ direction[b, s, n]
        of_scores = weights * (toward - weights @ toward) * slope
        dq[b, s, n] = of_scores @ k[b, seen, kv_head]
        dk[b, seen, kv_head] += np.outer(of_scores, q[b, s, n])
        dv[b, seen, kv_head] += np.outer(weights, direction[b, s, n])
    return out, (dq, dk, dv)


def random_qkv(*, batch=2, queries=6, keys=6, heads=4, kv_heads=2, head_dim=8, seed=0):
    """float32 q, k and v from N(0, 1)."""
    rng = np.random.default_rng(seed)
    shapes = [(batch, queries, heads, head_dim)] + 2 * [(batch, keys, kv_heads, head_dim)]
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)
