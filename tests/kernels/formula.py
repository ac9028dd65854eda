"""Causal attention with ALiBi and a window in float64 numpy, one head and one query at a time."""

import numpy as np


def attention(
    q, k, v, *, query_positions, key_positions, slopes=None, window=None, segments=None
) -> np.ndarray:
    """q [B, S, N, H], k and v [B, T, K, H], slopes [N] or None; float64 [B, S, N, H].

    A query sees the `window` positions that end in its own, or all up to its own; with segments
    ([B, S], [B, T]) those of its own segment among them.
    """
    q, k, v = (np.asarray(each, np.float64) for each in (q, k, v))
    batch, length, heads, _ = q.shape
    out = np.zeros(q.shape)
    for b, s, n in np.ndindex(batch, length, heads):
        kv_head = n // (heads // k.shape[2])
        last = query_positions[s]
        positions = range(0 if window is None else last - window + 1, last + 1)
        seen = np.flatnonzero(np.isin(key_positions, positions))
        if segments is not None:
            seen = [t for t in seen if segments[1][b][t] == segments[0][b][s]]
        scores = k[b, seen, kv_head] @ q[b, s, n]
        if slopes is not None:
            scores = scores - slopes[n] * (query_positions[s] - np.asarray(key_positions)[seen])
        weights = np.exp(scores - scores.max())
        out[b, s, n] = weights / weights.sum() @ v[b, seen, kv_head]
    return out


def random_qkv(*, batch=2, queries=6, keys=6, heads=4, kv_heads=2, head_dim=8, seed=0):
    """float32 q, k and v from N(0, 1)."""
    rng = np.random.default_rng(seed)
    shapes = [(batch, queries, heads, head_dim)] + 2 * [(batch, keys, kv_heads, head_dim)]
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)
