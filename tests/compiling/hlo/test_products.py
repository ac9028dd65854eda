"""Multiply-adds of products, against arithmetics that does not read the program."""

import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.compiling.hlo import read_program
from tests.compiling.tpu import compiled_text


def test_batched_and_wide_products():
    left = jax.ShapeDtypeStruct((7, 8, 16), jnp.float32)
    right = jax.ShapeDtypeStruct((7, 16, 32), jnp.float32)
    program = read_program(compiled_text(lambda a, b: a @ b, left, right))
    assert program.matmul_flops == 2 * 7 * 8 * 16 * 32


def convolutions(number: int):
    """Shapes and windows drawn at random, with padding, strides and both dilations."""
    draw = random.Random(6)
    for _ in range(number):
        groups = draw.choice([1, 1, 2])
        yield {
            "input": (draw.randint(1, 3), 2 * groups, draw.randint(3, 9), draw.randint(3, 9)),
            "kernel": (3 * groups, 2, draw.randint(1, 3), draw.randint(1, 3)),
            "window_strides": (draw.randint(1, 3), draw.randint(1, 3)),
            "padding": tuple((draw.randint(0, 4), draw.randint(0, 4)) for _ in range(2)),
            "lhs_dilation": (draw.randint(1, 4), draw.randint(1, 4)),
            "rhs_dilation": (draw.randint(1, 2), draw.randint(1, 2)),
            "feature_group_count": groups,
        }


@pytest.mark.parametrize("case", list(convolutions(8)), ids=itertools.count())
def test_a_convolution_counts_what_it_multiplies(case):
    """With ones everywhere each result is the number of its multiply-adds: their sum is the count.

    A position of the window that lies on padding or in a gap multiplies a zero, and adds none.
    """

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, **case)

    ones = [jnp.ones(case.pop(name), jnp.float32) for name in ("input", "kernel")]
    multiply_adds = int(np.asarray(convolve(*ones)).sum())
    assert read_program(compiled_text(convolve, *ones)).matmul_flops == 2 * multiply_adds


def test_what_a_library_multiplies_is_named():
    """A product of a GPU is a call of cuBLAS: no figure may pass it over in silence."""
    text = """HloModule jit_f, is_scheduled=true

ENTRY %main (x: bf16[64,64]) -> bf16[64,64] {
  %x = bf16[64,64]{1,0} parameter(0)
  ROOT %custom-call.1 = (bf16[64,64]{1,0}, s8[4194304]{0}) custom-call(%x, %x), custom_call_target="__cublas$gemm"
}
"""  # noqa: E501
    program = read_program(text)
    assert program.library_calls == {"__cublas$gemm": 1}
    assert program.kernel_calls == {}
