import pytest

from t5x_style.accounting import Architecture
from t5x_style.errors import UsageError


@pytest.mark.parametrize("window", [0, -3])
def test_a_window_without_a_key_is_refused(window):
    with pytest.raises(UsageError, match=f"window = {window}: must be 1 or more"):
        Architecture(40, 2, 24, 48, 4, window=window)


def test_a_dtype_that_no_product_has_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'int8'"):
        Architecture(40, 2, 24, 48, 4, matmul_dtype="int4")


@pytest.mark.parametrize("name", ["vocab_size", "layers", "d_model", "d_ff", "heads"])
def test_sizes_are_one_or_more(name):
    ones = {"vocab_size": 1, "layers": 1, "d_model": 2, "d_ff": 1, "heads": 1}
    assert Architecture(**ones).head_dim == 2
    with pytest.raises(UsageError, match=f"Architecture.{name} = 0: must be 1 or more"):
        Architecture(**ones | {name: 0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "kv_heads = 3 does not divide heads = 4"),
        ({"d_model": 26}, "d_model = 26 is not a multiple of heads = 4"),
        ({"positions": "learned"}, "'learned' needs max_length"),
        ({"head_dim": 5}, "head_dim = 5 is odd: rope rotates pairs"),
        ({"positions": "rotary"}, "Architecture.positions = 'rotary' is not one of alibi, rope"),
        ({"norm": "batch"}, "Architecture.norm = 'batch' is not one of layer, rms"),
    ],
)
def test_shapes_that_cannot_be_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        Architecture(
            **{"vocab_size": 40, "layers": 2, "d_model": 24, "d_ff": 48, "heads": 4} | change
        )


def test_what_is_not_given_is_derived_or_plain():
    plain = Architecture(40, 2, 24, 48, 4)
    assert (plain.kv_heads, plain.head_dim, plain.position_rows) == (4, 6, 0)
    assert plain == Architecture(
        vocab_size=40,
        layers=2,
        d_model=24,
        d_ff=48,
        heads=4,
        kv_heads=4,
        head_dim=6,
        positions="rope",
        max_length=None,
        rope_theta=10_000,
        window=None,
        norm="rms",
        norm_epsilon=1e-5,
        feed_forward="swiglu",
        biases=False,
        tied_head=True,
        embedding_norm=False,
        qk_norm=False,
        parallel_block=False,
        attention_softcap=None,
        logit_softcap=None,
        matmul_dtype=None,
        init_std=None,
    )
    # Nothing is rotated, so no pairs are needed; and a query may see itself alone.
    odd = Architecture(40, 2, 24, 48, 4, head_dim=5, positions="alibi", window=1)
    assert (odd.head_dim, odd.window) == (5, 1)


def test_a_table_of_positions_holds_a_sequence_of_its_length():
    learned = Architecture(40, 2, 24, 48, 4, positions="learned", max_length=16)
    assert learned.position_rows == 16
    learned.check_length(16)
    with pytest.raises(UsageError, match=r"max_length = 16 is shorter than .* = 17"):
        learned.check_length(17)
    Architecture(40, 2, 24, 48, 4).check_length(10**6)


def test_the_deviation_of_fresh_matrices():
    """1 / sqrt(3 D), BloombergGPT's appendix A; residual matrices sqrt(2 L) times less."""
    shape = Architecture(40, 8, 12, 48, 2)
    assert shape.matrix_std == pytest.approx(1 / 6)
    assert shape.residual_std == pytest.approx(1 / 24)
    chosen = Architecture(40, 8, 12, 48, 2, init_std=0.02)
    assert (chosen.matrix_std, chosen.residual_std) == (0.02, 0.005)
