"""What is asked of cuDNN, and what is refused. No GPU has run it for these tests.

That XLA takes what is asked is tested in tests/partitioning/test_described_gpus.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.errors import UsageError
from t5x_style.kernels import AttentionInputs, cudnn_attention
from tests.kernels.formula import attention, random_qkv

LENGTH = 24
POSITIONS = np.arange(LENGTH)
WHERE = {"query_positions": POSITIONS, "key_positions": POSITIONS}


@pytest.mark.parametrize(("kv_heads", "window"), [(2, None), (1, None), (1, 7)])
def test_the_numbers_that_are_asked_for(kv_heads, window, monkeypatch):
    """The same question put to XLA, in cuDNN's place."""
    ask = jax.nn.dot_product_attention

    def attention_by_xla(*operands, implementation, **asked):
        assert implementation == "cudnn"
        return ask(*operands, implementation="xla", **asked)

    monkeypatch.setattr("jax.nn.dot_product_attention", attention_by_xla)
    operands = random_qkv(queries=LENGTH, keys=LENGTH, heads=2, kv_heads=kv_heads)
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in operands)
    expected = attention(*(np.asarray(x, np.float64) for x in (q, k, v)), **WHERE, window=window)
    got = cudnn_attention(AttentionInputs(q, k, v, **WHERE, window=window))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=2e-2, atol=2e-2)


def operands(*, keys=LENGTH, head_dim=8, dtype=jnp.bfloat16):
    shapes = (1, LENGTH, 2, head_dim), (1, keys, 2, head_dim), (1, keys, 2, head_dim)
    return (jnp.zeros(shape, dtype) for shape in shapes)


@pytest.mark.parametrize(
    ("given", "asked", "message"),
    [
        ({}, {"slopes": np.ones(2, np.float32)}, "positions = 'alibi'"),
        ({}, {"segments": (POSITIONS[None], POSITIONS[None])}, "attend_across_documents = False"),
        ({}, {"softcap": 30.0}, "attention_softcap = 30.0"),
        ({"keys": 2 * LENGTH}, {}, "Topology.sequence > 1"),
        ({"dtype": jnp.float32}, {}, "compute_dtype = 'float32'"),
        ({"head_dim": 136}, {}, "head_dim = 136"),
        ({"head_dim": 20}, {}, "head_dim = 20"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_kernels_that_can(given, asked, message):
    with pytest.raises(
        UsageError, match=f"does not support .*{message}.*use 'blockwise' or 'plain'"
    ):
        cudnn_attention(AttentionInputs(*operands(**given), **WHERE, **asked))


@pytest.mark.parametrize("head_dim", [8, 128])
def test_heads_of_8_to_128_are_asked_for(head_dim, monkeypatch):
    asked = []

    def recorded(q, k, v, **options):
        asked.append(options)
        return q

    monkeypatch.setattr("jax.nn.dot_product_attention", recorded)
    cudnn_attention(AttentionInputs(*operands(head_dim=head_dim), **WHERE, window=7))
    assert asked == [
        {"scale": 1.0, "is_causal": True, "local_window_size": (6, 0), "implementation": "cudnn"}
    ]


def test_a_missing_library_is_named(monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr("jax.nn.dot_product_attention", missing)
    with pytest.raises(UsageError, match=r"cuDNN is not detected.*tools/setup gpu"):
        cudnn_attention(AttentionInputs(*operands(), **WHERE))
