"""The small parts of a block: parameters, matrix product, norms, positions, feed-forward."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from t5x_style.accounting.architecture import Architecture
from t5x_style.models.logical import (
    BATCH,
    EMBED,
    MLP,
    MLP_ROWS,
    NORM,
    SEQUENCE,
    constrain,
    in_mesh,
)
from t5x_style.models.low_precision import available_int8_product

# A name for the remat policies: the result of a weight matrix. It is kept by name and not as a
# product, which in eight bits is a sum in int32: twice the bytes of the result.
PRODUCT = "product"


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple, std: float) -> nnx.Param:
    """A float32 matrix drawn from N(0, std^2), annotated with its logical axes."""
    return _parameter(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes)


def constant(value: float, size: int, axis: str) -> nnx.Param:
    """A float32 vector of one value, annotated with its logical axis."""
    return _parameter(jnp.full((size,), value, jnp.float32), (axis,))


def _parameter(value: jax.Array, axes: tuple) -> nnx.Param:
    # Flax places a parameter when it is made, and refuses to make one outside of a mesh.
    return nnx.Param(value, out_sharding=axes, eager_sharding=None if in_mesh() else False)


class Linear(nnx.Module):
    """x [..., I] @ weight [I, O] (+ bias [O]), with the weight in x's dtype.

    All matrix products of the model but attention's and the head's are computed here.
    `matmul_dtype` is that of `Architecture`.
    """

    def __init__(self, inputs, outputs, *, axes, std, bias, matmul_dtype, rngs):
        self.product = _product_function(matmul_dtype)
        self.weight = normal(rngs, (inputs, outputs), axes, std)
        # The rows of a residual matrix carry two mesh axes, which leaves none for its columns.
        self.bias = constant(0.0, outputs, axes[1] or NORM) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = checkpoint_name(self.product(x, self.weight[...].astype(x.dtype)), PRODUCT)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def _product_function(matmul_dtype: str | None) -> Callable:
    return product if matmul_dtype is None else available_int8_product()


@jax.custom_vjp
def product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x [..., I] @ weight [I, O]; the weight's gradient transposes the narrower array.

    Either x or the gradient of the result has to be transposed for it. A CPU does that in memory,
    together with the elementwise operations that made the array, in the wrong order. It took a
    sixth of the step of a 30M model.
    """
    return x @ weight


def _product_forward(x, weight):
    return x @ weight, (x, weight)


def _product_backward(residuals, cotangent):
    x, weight = residuals
    # Two products read it. A TPU's compiler would compute a gradient of swiglu inside of both,
    # from the three arrays that it is made of, at two thirds of the speed.
    cotangent = jax.lax.optimization_barrier(cotangent)
    tokens = tuple(range(x.ndim - 1))
    contracted = ((tokens, tokens), ((), ()))
    if x.shape[-1] <= cotangent.shape[-1]:
        weight_gradient = jax.lax.dot_general(x, cotangent, contracted)
    else:
        weight_gradient = jax.lax.dot_general(cotangent, x, contracted).T
    return cotangent @ weight.T, weight_gradient


product.defvjp(_product_forward, _product_backward)


def _recomputed_in_backward(elementwise: Callable) -> Callable:
    """The function, for which the backward pass keeps the arguments alone.

    Otherwise the scan over the layers stores every factor of its derivative: six arrays instead of
    two for swiglu. Reading them back takes longer than computing them from the arguments.
    """
    return jax.checkpoint(elementwise, prevent_cse=False)


class Norm(nnx.Module):
    """Layer norm (Ba et al. 2016) or RMS norm (Zhang and Sennrich 2019) over the last axis.

    Statistics and gain are float32; the result has x's dtype.
    """

    def __init__(self, size: int, *, kind: str, bias: bool, epsilon: float):
        self.kind, self.epsilon = kind, epsilon
        self.gain = constant(1.0, size, NORM)
        self.bias = constant(0.0, size, NORM) if bias and kind == "layer" else None

    def __call__(self, x: jax.Array) -> jax.Array:
        gain, bias = self.gain[...], None if self.bias is None else self.bias[...]
        return _recomputed_in_backward(self._normalise)(x, gain, bias)

    def _normalise(self, x: jax.Array, gain: jax.Array, bias: jax.Array | None) -> jax.Array:
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        y = y * gain
        if bias is not None:
            y = y + bias
        return y.astype(x.dtype)


# Of the built-in kinds of `accounting.feed_forward`: from up, or from up and gate, [B, S, F].
_ACTIVATIONS: dict[str, Callable] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
    "relu2": lambda up: jnp.square(jax.nn.relu(up)),
    "swiglu": lambda up, gate: jax.nn.silu(gate) * up,
}


class FeedForward(nnx.Module):
    """Two matrices around an activation, or three where one makes a gate (Shazeer 2020); see
    `accounting.feed_forward`. [B, S, D] to [B, S, D]."""

    def __init__(self, architecture: Architecture, *, rngs: nnx.Rngs):
        a = architecture
        kind = a.feed_forward_kind
        self.activation = kind.activation or _ACTIVATIONS[a.feed_forward]
        options = {"bias": a.biases, "matmul_dtype": a.matmul_dtype, "rngs": rngs}
        wide = {"axes": (EMBED, MLP), "std": a.matrix_std, **options}
        self.up = Linear(a.d_model, a.d_ff, **wide)
        self.gate = Linear(a.d_model, a.d_ff, **wide) if kind.gated else None
        self.down = Linear(a.d_ff, a.d_model, axes=(MLP_ROWS, None), std=a.residual_std, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        linears = (self.up,) if self.gate is None else (self.up, self.gate)
        products = (constrain(linear(x), BATCH, SEQUENCE, MLP) for linear in linears)
        return self.down(_recomputed_in_backward(self.activation)(*products))


def alibi_slopes(heads: int) -> np.ndarray:
    """ALiBi's slope per head, float32 [N] (Press et al. 2022; BloombergGPT, appendix A).

    2^(-8 n / P) for the first P = 2^floor(log2 N) heads, then the odd steps of the table for 2P.
    """
    power = 2 ** math.floor(math.log2(heads))
    n = np.arange(heads)
    exponent = 1 + n % power - 0.5 * (n // power)
    # Past P the steps are 1/2, 3/2, ...: 1 + (n mod P) - 1/2.
    return (2.0 ** (-8 * exponent / power)).astype(np.float32)


def segment_positions(segments: jax.Array) -> jax.Array:
    """int32 [B, S]: how many tokens of its own segment are before each token.

    Args:
      segments: int32 [B, S], equal within a segment, whose tokens are consecutive.
    """
    positions = jnp.arange(segments.shape[1], dtype=jnp.int32)
    begins = jnp.diff(segments, axis=1, prepend=segments[:, :1] - 1) != 0
    return positions - jax.lax.cummax(jnp.where(begins, positions, 0), axis=1)


def rope(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary positions (Su et al. 2021), in the half-split layout of GPT-NeoX and Llama.

    Args:
      x: [B, S, N, H] with H even. positions: int32 [S]. theta: base of the frequencies.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[:, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles)[:, None, :], jnp.sin(angles)[:, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
