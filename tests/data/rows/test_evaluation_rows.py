"""Every token of the store is predicted once, from what precedes it."""

import math

import numpy as np
import pytest

from t5x_style.data import TokenStore, evaluation_set
from t5x_style.errors import Fault
from tests.data.store_helpers import write_store


class FakeTokenizer:
    """Id n stands for n % 5 bytes."""

    eos_id = 1

    def token_bytes(self):
        return np.arange(1000, dtype=np.int32) % 5


@pytest.mark.parametrize(("size", "length"), [(100, 10), (101, 10), (9, 10), (1, 1), (57, 8)])
def test_each_token_once(tmp_path, size, length):
    stream = [*list(range(2, 2 + size - 1)), 1]
    store = write_store(tmp_path / "store", [stream])
    rows = evaluation_set(store, FakeTokenizer(), length)
    assert rows.tokens.shape == (math.ceil(size / length), length + 1)
    assert rows.tokens.dtype == np.int32
    assert rows.weights.dtype == np.float32
    predicted = rows.tokens[:, 1:][rows.weights == 1]
    np.testing.assert_array_equal(predicted, stream)
    context = rows.tokens[:, :-1][rows.weights == 1]
    np.testing.assert_array_equal(context, [1, *stream[:-1]])
    assert rows.bytes == sum(token % 5 for token in stream)


def test_the_first_tokens_only(tmp_path):
    store = write_store(tmp_path / "store", [[*list(range(2, 500)), 1]])
    rows = evaluation_set(store, FakeTokenizer(), 16, max_tokens=50)
    assert rows.weights.sum() == 50
    assert rows.bytes == sum(token % 5 for token in range(2, 52))


@pytest.mark.parametrize("wrong", [1000, 2**32 - 1])
def test_an_id_past_the_vocabulary_is_named(tmp_path, wrong):
    path = write_store(tmp_path / "store", [[5, 6, 1], [7, 8, 1]], source="legal").path
    ids = np.memmap(path / "tokens.bin", "<u4", mode="r+")
    ids[4] = wrong
    named = rf"token 4, in document 1 of 'legal', is {wrong:,}, and the vocabulary has 1,000 ids"
    with pytest.raises(Fault, match=named):
        evaluation_set(TokenStore.open(path), FakeTokenizer(), 16)
    # It is not among those that are evaluated here.
    evaluation_set(TokenStore.open(path), FakeTokenizer(), 16, max_tokens=4)
