"""A decoder's forward pass in float64 numpy, written from the papers, one head at a time.

It reads the parameters by name and knows nothing else of the package's code.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t5x_style.accounting import Architecture
from t5x_style.models import Decoder


def with_random_parameters(make: Callable[[], Decoder], seed: int = 0) -> tuple[Decoder, dict]:
    """A decoder all of whose parameters are drawn, and those parameters by name.

    Fresh gains of 1 and biases of 0 would hide mistakes.
    """
    rng = np.random.default_rng(seed)
    definition, state = nnx.split(nnx.eval_shape(make))

    def draw(path, leaf):
        centre, spread = (1.0, 0.3) if path[-1].key == "gain" else (0.0, 0.15)
        return jnp.asarray(centre + spread * rng.normal(size=leaf.shape), leaf.dtype)

    parameters = jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, parameters)
    return nnx.merge(definition, state), parameters


def logits(architecture: Architecture, parameters: dict, tokens: np.ndarray) -> np.ndarray:
    """float64 [B, S, V] for tokens [B, S]."""
    a, p = architecture, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters)
    return np.stack([_one_sequence(a, p, row) for row in tokens])


def _one_sequence(a: Architecture, p: dict, tokens: np.ndarray) -> np.ndarray:
    x = p["embedding"][tokens]
    if a.positions == "learned":
        x = x + p["position_table"][: len(tokens)]
    if a.embedding_norm:
        x = _norm(a, p["embedding_norm"], x)
    for layer in range(a.layers):
        block = jax.tree.map(lambda leaf: leaf[layer], p["blocks"])  # noqa: B023
        normed = _norm(a, block["attention_norm"], x)
        attended = _attention(a, block["attention"], normed)
        if a.parallel_block:
            x = x + attended + _feed_forward(a, block["feed_forward"], normed)
        else:
            x = x + attended
            normed = _norm(a, block["feed_forward_norm"], x)
            x = x + _feed_forward(a, block["feed_forward"], normed)
    x = _norm(a, p["final_norm"], x)
    out = x @ (p["embedding"] if a.tied_head else p["head"]).T
    return out if a.logit_softcap is None else a.logit_softcap * np.tanh(out / a.logit_softcap)


def _norm(a: Architecture, p: dict, x: np.ndarray) -> np.ndarray:
    if a.norm == "rms":
        return _rms_norm(p["gain"], x, a.norm_epsilon)
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + a.norm_epsilon)
    return normed * p["gain"] + (p["bias"] if a.biases else 0)


def _rms_norm(gain: np.ndarray, x: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * gain


def _linear(p: dict, x: np.ndarray) -> np.ndarray:
    return x @ p["weight"] + p.get("bias", 0)


def _attention(a: Architecture, p: dict, x: np.ndarray) -> np.ndarray:
    length, size = len(x), a.head_dim
    q, k, v = (_linear(p[name], x) for name in ("query", "key", "value"))
    slopes = _alibi(a.heads)
    outputs = []
    for head in range(a.heads):
        kv_head = head * a.kv_heads // a.heads
        own = slice(head * size, (head + 1) * size)
        shared = slice(kv_head * size, (kv_head + 1) * size)
        query, key = q[:, own], k[:, shared]
        if a.qk_norm:
            query = _rms_norm(p["query_norm"]["gain"], query, a.norm_epsilon)
            key = _rms_norm(p["key_norm"]["gain"], key, a.norm_epsilon)
        if a.positions == "rope":
            query, key = (turned(item, np.arange(length), a.rope_theta) for item in (query, key))
        scores = query @ key.T / math.sqrt(size)
        if a.positions == "alibi":
            scores = scores - slopes[head] * (np.arange(length)[:, None] - np.arange(length))
        seen = np.tri(length, dtype=bool)
        if a.window is not None:
            seen &= ~np.tri(length, k=-a.window, dtype=bool)
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        outputs.append(weights / weights.sum(-1, keepdims=True) @ v[:, shared])
    return _linear(p["out"], np.concatenate(outputs, -1))


def turned(x: np.ndarray, positions: np.ndarray, theta: float) -> np.ndarray:
    """Rotary positions as RoFormer's equation 13 has them: complex numbers, turned. x [S, H]."""
    half = x.shape[-1] // 2
    numbers = x[:, :half] + 1j * x[:, half:]
    numbers = numbers * np.exp(
        1j * positions[:, None] * theta ** (-2 * np.arange(half) / x.shape[-1])
    )
    return np.concatenate([numbers.real, numbers.imag], -1)


def _alibi(heads: int) -> list[float]:
    """The slopes as the code of Press et al. makes them, by recursion."""
    if math.log2(heads).is_integer():
        return [2 ** (-8 * (n + 1) / heads) for n in range(heads)]
    power = 2 ** math.floor(math.log2(heads))
    return _alibi(power) + _alibi(2 * power)[0::2][: heads - power]


def _feed_forward(a: Architecture, p: dict, x: np.ndarray) -> np.ndarray:
    inner = _linear(p["up"], x)
    if a.feed_forward == "swiglu":
        gate = _linear(p["gate"], x)
        inner = gate / (1 + np.exp(-gate)) * inner
    elif a.feed_forward == "relu2":
        inner = np.maximum(inner, 0) ** 2
    else:
        inner = 0.5 * inner * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    return _linear(p["down"], inner)
