"""Attention over a sequence whose tokens lie on several devices.

Each device has all keys and values gathered (few heads under grouped queries) and attends for its
share of the queries. A causal mask gives the last queries most of the work, so the devices trade:
of 2 n pieces of the sequence device d attends for pieces d and 2 n - 1 - d, which together see the
same number of keys on every device. Nothing else of the model knows: the result is traded back.
"""

import jax
import jax.numpy as jnp

from t5x_style.accounting.attention_blocks import piece_owner


def balanced(x: jax.Array, axes: tuple[str, ...], axis: int = 1) -> jax.Array:
    """From the tokens that lie here to those that this device attends for; inside a shard_map.

    Args:
      x: the device's consecutive tokens on `axis`, an even number of them.
      axes: mesh axes over which the sequence is split.
    """
    return _trade(x, axes, axis, back=False)


def in_order(x: jax.Array, axes: tuple[str, ...], axis: int = 1) -> jax.Array:
    """The inverse of `balanced`."""
    return _trade(x, axes, axis, back=True)


def _trade(x: jax.Array, axes: tuple[str, ...], axis: int, back: bool) -> jax.Array:
    shards = jax.lax.axis_size(axes)
    if shards == 1:
        return x
    halves = []
    # A device has one piece of even number and one of odd, before and after: two permutations.
    for odd, half in enumerate(jnp.split(x, 2, axis=axis)):
        ways = [(here, piece_owner(2 * here + odd, shards)) for here in range(shards)]
        if back:
            ways = [(there, here) for here, there in ways]
        halves.append(jax.lax.ppermute(half, axes, ways))
    return jnp.concatenate(halves, axis=axis)


def whole(x: jax.Array, axes: tuple[str, ...], axis: int = 1) -> jax.Array:
    """All tokens in order, on every device; the gradient is a reduce-scatter."""
    return jax.lax.all_gather(x, axes, axis=axis, tiled=True)
