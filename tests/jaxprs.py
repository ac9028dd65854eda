"""What a traced program computes and holds, read from its jaxpr: no device, no formula of ours."""

import math
from collections.abc import Iterator
from typing import Any

import jax


def equations(jaxpr, tiles: int = 1) -> Iterator[tuple[Any, int]]:
    """(equation, times that it runs) of a jaxpr and of all the jaxprs inside of it.

    A scan's body runs as often as the scan is long, a Pallas kernel's on `tiles` tiles; of a `cond`
    every branch is counted.
    """
    for equation in jaxpr.eqns:
        yield equation, 1
        repeats = {"scan": equation.params.get("length"), "pallas_call": tiles}.get(
            equation.primitive.name, 1
        )
        inner = jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns")
        )
        for value in inner:
            if hasattr(value, "eqns"):
                for each, times in equations(value, tiles):
                    yield each, repeats * times


def product_flops(jaxpr, tiles: int = 1) -> int:
    """2 M N K summed over every matrix product (`dot_general`) that runs."""
    total = 0
    for equation, times in equations(jaxpr, tiles):
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            outer = math.prod(equation.outvars[0].aval.shape)
            total += times * 2 * outer * math.prod(left[axis] for axis in contracted)
    return total


def shapes(jaxpr) -> set[tuple[int, ...]]:
    """The shape of every array that any equation makes."""
    return {
        variable.aval.shape
        for equation, _ in equations(jaxpr)
        for variable in equation.outvars
        if hasattr(variable.aval, "shape")
    }
