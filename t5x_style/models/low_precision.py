"""Products with a weight in eight bits: rows are scaled by their largest entries, sums are exact.

qwix quantises. It is loaded with the first model that asks for it.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from t5x_style.errors import UsageError

# qwix would make it 127.5, a tie: the last bit of a quotient would then decide whether a row's
# largest entry is -127 or -128, 127 or a 128 that int8 has not.
_LARGEST_IS_127 = f"absmax,{127.5 / 127}"


def available_int8_product() -> Callable:
    """`int8_product`. Raises UsageError if qwix is not installed."""
    _qwix()
    return int8_product


@jax.custom_vjp
def int8_product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x [..., I] @ weight [I, O] in int8 with int32 sums; the result has x's dtype.

    Both are scaled by the largest magnitude along I: one scale a token, one an output. The gradient
    of x is computed in the same way along O, from the weight scaled again. The weight's gradient is
    computed in x's dtype. It sums over all tokens of the step, where one outlier would set the
    scale of thousands. A TPU also has to transpose both operands in memory for it, which costs what
    int8 gains there.
    """
    return _forward(x, weight)[0]


def _forward(x, weight):
    y = _scaled_dot(x, weight, contracted=(x.ndim - 1, 0))
    return y, (x, weight)


def _backward(residuals, cotangent):
    x, weight = residuals
    x_gradient = _scaled_dot(cotangent, weight, contracted=(x.ndim - 1, 1))
    tokens = tuple(range(x.ndim - 1))
    weight_gradient = jax.lax.dot_general(x, cotangent, ((tokens, tokens), ((), ())))
    return x_gradient, weight_gradient


int8_product.defvjp(_forward, _backward)


def _scaled_dot(left, right, contracted: tuple[int, int]) -> jax.Array:
    qwix = _qwix()
    scaled = [
        qwix.quantize(
            # The scales and quotients of a bfloat16 array would be rounded to eight bits first.
            array.astype(jnp.float32),
            jnp.int8,
            channelwise_axes=[other for other in range(array.ndim) if other != axis],
            calibration_method=_LARGEST_IS_127,
        )
        for array, axis in zip((left, right), contracted, strict=True)
    ]
    axes = tuple((axis,) for axis in contracted)
    return qwix.dot_general(*scaled, (axes, ((), ()))).astype(left.dtype)


@functools.cache
def _qwix():
    try:
        import qwix
    except ImportError:
        raise UsageError(
            "Architecture.matmul_dtype = 'int8' needs the package `qwix`: install the extra "
            "t5x_style[int8], or set None to multiply in the compute dtype"
        ) from None
    return qwix
