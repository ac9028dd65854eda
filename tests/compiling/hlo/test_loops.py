"""How often loops turn, with and without the compiler's word for it."""

import re

import jax
import jax.numpy as jnp
import pytest

from t5x_style.compiling.hlo import read_program
from tests.compiling.tpu import compiled_text

MATRIX = jax.ShapeDtypeStruct((16, 16), jnp.float32)
PRODUCT = 2 * 16**3


def without_trip_counts(text: str) -> str:
    """The program without the number of trips that the CPU's compiler writes and a TPU's not."""
    count = r'"known_trip_count":\{"n":"\d+"\},?'
    assert re.search(count, text)
    return re.sub(count, "", text)


def nested(x):
    def inner(x, _):
        return jnp.tanh(x @ x), None

    def outer(x, _):
        x, _ = jax.lax.scan(inner, x, length=3)
        return x @ x + 1, None

    return jax.lax.scan(outer, x, length=5)[0]


@pytest.mark.parametrize(
    "as_written", [lambda text: text, without_trip_counts], ids=["count", "without_trip_counts"]
)
def test_a_loop_in_a_loop_and_a_fused_product(as_written):
    program = read_program(as_written(compiled_text(nested, MATRIX)))
    assert program.matmul_flops == 5 * (3 + 1) * PRODUCT
    assert program.unknown_loops == ()


LOOP = """HloModule jit_f, is_scheduled=true, num_partitions=4

%step (param: s32[]) -> s32[] {{
  %param.9 = s32[]{{:T(128)}} parameter(0)
  %constant.9 = s32[]{{:T(128)}} constant({step})
  ROOT %add.9 = s32[]{{:T(128)}} {operation}(%param.9, %constant.9)
}}

%body (carried: (s32[], f32[8,8], s32[])) -> (s32[], f32[8,8], s32[]) {{
  %carried = (s32[]{{:T(128)}}, f32[8,8]{{1,0:T(8,128)}}, s32[]{{:T(128)}}) parameter(0)
  %element.0 = s32[]{{:T(128)}} get-tuple-element(%carried), index=0
  %copy.0 = s32[]{{:T(128)S(6)}} copy(%element.0)
  %fusion.0 = s32[]{{:T(128)}} fusion(%copy.0), kind=kLoop, calls=%step
  %element.1 = f32[8,8]{{1,0:T(8,128)}} get-tuple-element(%carried), index=1
  %product = f32[8,8]{{1,0:T(8,128)}} convolution(%element.1, %element.1), dim_labels=bf_io->bf
  %element.2 = s32[]{{:T(128)}} get-tuple-element(%carried), index=2
  ROOT %tuple.1 = (s32[]{{:T(128)}}, f32[8,8]{{1,0:T(8,128)}}, s32[]{{:T(128)}}) tuple(%fusion.0, %product, %element.2)
}}

%condition (carried: (s32[], f32[8,8], s32[])) -> pred[] {{
  %carried.2 = (s32[]{{:T(128)}}, f32[8,8]{{1,0:T(8,128)}}, s32[]{{:T(128)}}) parameter(0)
  %element.3 = s32[]{{:T(128)}} get-tuple-element(%carried.2), index=0
  %element.4 = s32[]{{:T(128)}} get-tuple-element(%carried.2), index=2
  ROOT %compare = pred[]{{:T(512)}} compare(%element.3, %element.4), direction={direction}
}}

ENTRY %main (x: f32[8,8]) -> f32[8,8] {{
  %x = f32[8,8]{{1,0:T(8,128)}} parameter(0)
  %first = s32[]{{:T(128)}} constant({first})
  %limit = s32[]{{:T(128)}} constant({limit})
  %tuple.2 = (s32[]{{:T(128)}}, f32[8,8]{{1,0:T(8,128)}}, s32[]{{:T(128)}}) tuple(%first, %x, %limit)
  %while.2 = (s32[]{{:T(128)}}, f32[8,8]{{1,0:T(8,128)}}, s32[]{{:T(128)}}) while(%tuple.2), condition=%condition, body=%body
  ROOT %result = f32[8,8]{{1,0:T(8,128)}} get-tuple-element(%while.2), index=1
}}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("first", "direction", "limit", "operation", "step"),
    [
        (0, "LT", 12, "add", 1),
        (0, "LT", 13, "add", 2),  # unrolled by two, as windowed einsums are
        (3, "LT", 12, "add", 4),
        (1, "LE", 12, "add", 3),
        (11, "GE", 0, "subtract", 1),
        (11, "GT", -1, "add", -2),
        (2, "NE", 14, "add", 4),
        (5, "LT", 5, "add", 1),
    ],
)
def test_trips_follow_from_the_counter(first, direction, limit, operation, step):
    compare = {
        "LT": lambda a, b: a < b,
        "LE": lambda a, b: a <= b,
        "GT": lambda a, b: a > b,
        "GE": lambda a, b: a >= b,
        "NE": lambda a, b: a != b,
    }[direction]
    counter, trips = first, 0
    while compare(counter, limit):
        counter += step if operation == "add" else -step
        trips += 1
    text = LOOP.format(
        first=first, direction=direction, limit=limit, operation=operation, step=step
    )
    program = read_program(text)
    assert program.matmul_flops == trips * 2 * 8**3
    assert program.unknown_loops == ()


@pytest.mark.parametrize(
    ("direction", "step"), [("LT", 0), ("GT", 1), ("NE", 5)], ids=["still", "away", "past it"]
)
def test_a_loop_that_would_never_end_is_listed(direction, step):
    text = LOOP.format(first=0, direction=direction, limit=12, operation="add", step=step)
    if direction == "GT":
        text = text.replace("constant(0)", "constant(13)")
    program = read_program(text)
    assert program.unknown_loops == ("while.2",)
    assert program.matmul_flops == 2 * 8**3


def test_a_loop_whose_end_depends_on_the_data_is_listed():
    def until_small(x):
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ x, x)

    program = read_program(compiled_text(until_small, MATRIX))
    assert len(program.unknown_loops) == 1
    assert program.matmul_flops == PRODUCT


def test_every_branch_of_a_conditional_counts():
    def either(which, x):
        return jax.lax.cond(which, lambda x: x @ x, lambda x: (x @ x) @ x, x)

    text = compiled_text(either, jax.ShapeDtypeStruct((), bool), MATRIX)
    assert read_program(text).matmul_flops == 3 * PRODUCT


def test_a_counter_that_grows_by_another_is_not_known():
    """Of 1 + another element of the loop's tuple only the 1 is constant."""
    text = LOOP.format(first=0, direction="LT", limit=12, operation="add", step=1)
    text = text.replace(
        "  ROOT %tuple.1 =", "  %sum = s32[]{:T(128)} add(%fusion.0, %element.2)\n  ROOT %tuple.1 ="
    ).replace("tuple(%fusion.0,", "tuple(%sum,")
    assert read_program(text).unknown_loops == ("while.2",)
