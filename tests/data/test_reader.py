"""Rows by index, read against the streams that they must be slices of."""

import subprocess
import sys
import time

import numpy as np
import pytest

from t5x_style.data import BatchReader
from t5x_style.data.reader import permuted
from t5x_style.errors import UsageError
from tests.data.stores import counting_stores

SHARES = {"legal": 0.51, "general": 0.49}
SIZES = {"legal": 50_003, "general": 7_785}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return counting_stores(tmp_path_factory.mktemp("stores"), SIZES, SHARES)


def test_a_row_is_a_window_of_its_source(stores):
    reader = BatchReader(stores, sequence_length=16, seed=3)
    tokens, source = reader.rows(np.arange(10_000))
    assert tokens.dtype == np.int32
    assert tokens.shape == (10_000, 17)
    assert source.dtype == np.int32
    assert reader.names == ("legal", "general")
    np.testing.assert_array_equal(np.diff(tokens), 1)
    np.testing.assert_array_equal(tokens[:, 0] // 10**7, source)


def test_an_epoch_predicts_each_token_once_but_for_the_last_few(stores):
    reader = BatchReader(stores, sequence_length=16, seed=3)
    windows = int(reader.windows[1])
    tokens, source = reader.rows(np.arange(10 * windows))
    rows_of_general = tokens[source == 1]
    seen = set()
    orders = []
    for epoch in range(3):
        rows = rows_of_general[epoch * windows : (epoch + 1) * windows]
        predicted = np.sort(rows[:, 1:].ravel())
        assert len(np.unique(predicted)) == windows * 16
        seen.update(predicted.tolist())
        orders.append(tuple(np.argsort(rows[:, 0])))
    assert len(set(orders)) == 3, "each epoch has an order of its own"
    assert len(seen) > windows * 16, "the offset changes from epoch to epoch"


def test_rows_depend_on_seed_and_index_alone(stores):
    reader = BatchReader(stores, sequence_length=16, seed=3)
    indices = np.random.default_rng(0).integers(0, 10**9, 300)
    together, source = reader.rows(indices)
    for i in range(0, 300, 37):
        alone, alone_source = BatchReader(stores, sequence_length=16, seed=3).rows(
            indices[i : i + 1]
        )
        np.testing.assert_array_equal(alone[0], together[i])
        assert alone_source[0] == source[i]
    other = BatchReader(stores, sequence_length=16, seed=4).rows(indices)[0]
    assert (other != together).any()
    empty, no_source = reader.rows(np.arange(0))
    assert empty.shape == (0, 17)
    assert no_source.shape == (0,)


def test_the_same_rows_in_another_process(stores, tmp_path):
    """No hash seed, no address, no count of cores may leak into the order."""
    reader = BatchReader(stores, sequence_length=16, seed=3)
    expected = reader.rows(np.arange(1000, 1100))[0]
    folder = stores.train["legal"].path.parent
    script = (
        "import sys, types, numpy as np\n"
        "from t5x_style.data import BatchReader, TokenStore\n"
        f"train = {{name: TokenStore.open(r'{folder}/' + name) for name in {list(SIZES)}}}\n"
        f"stores = types.SimpleNamespace(shares={SHARES}, train=train)\n"
        "reader = BatchReader(stores, sequence_length=16, seed=3)\n"
        f"np.save(r'{tmp_path}/rows.npy', reader.rows(np.arange(1000, 1100))[0])\n"
        "heavy = {'tensorflow', 'seqio', 'tensorflow_datasets', 'jax'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), expected)


def test_counts_of_tokens_and_epochs(stores):
    reader = BatchReader(stores, sequence_length=16, seed=3)
    _, source = reader.rows(np.arange(5000))
    np.testing.assert_array_equal(reader.tokens_by_source(5000), np.bincount(source) * 16)
    assert reader.epochs(5000)[1] == pytest.approx(2450 / ((7785 - 1) // 16))


def test_horizon(stores):
    reader = BatchReader(stores, sequence_length=16, seed=3)
    assert reader.check_horizon(1000) == []
    warnings = reader.check_horizon(8000)
    assert len(warnings) == 1
    assert "'general' will be read 8.1 times" in warnings[0]
    with pytest.raises(UsageError, match=r"'general' would be read 50.4 times .*cap is 40 epochs"):
        reader.check_horizon(50_000)
    capped = BatchReader(stores, sequence_length=16, seed=3, max_epochs={"legal": 1})
    with pytest.raises(UsageError, match="'legal' would be read"):
        capped.check_horizon(8000)
    with pytest.raises(UsageError, match="legl"):
        BatchReader(stores, sequence_length=16, seed=3, max_epochs={"legl": 1})


def test_a_source_shorter_than_a_row_is_refused(stores):
    with pytest.raises(UsageError, match=r"'general' has 7785 tokens.* needs 8193"):
        BatchReader(stores, sequence_length=8192, seed=0)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 63, 64, 65, 1000, 4097])
def test_permuted_is_a_permutation(size):
    seen = set()
    for key in range(4):
        order = permuted(np.arange(size), np.full(size, size), np.full(size, key, np.uint64))
        np.testing.assert_array_equal(np.sort(order), np.arange(size))
        seen.add(tuple(order))
    assert size < 64 or len(seen) == 4


def test_permuted_is_even():
    """Where position 0 goes, over many keys: chi-squared with 99 degrees of freedom."""
    keys = np.arange(20_000, dtype=np.uint64)
    places = permuted(np.zeros(20_000, np.int64), np.full(20_000, 100), keys)
    counts = np.bincount(places, minlength=100)
    assert ((counts - 200) ** 2 / 200).sum() < 160  # p = 1e-4


def test_permuted_reaches_sizes_of_trillions_of_windows():
    size = 3 * 10**12 + 1
    positions = np.random.default_rng(0).integers(0, size, 10_000)
    order = permuted(positions, np.full(10_000, size), np.zeros(10_000, np.uint64))
    assert order.min() >= 0
    assert order.max() < size
    assert len(np.unique(order)) == len(np.unique(positions))


def test_a_small_batch_costs_little_and_a_far_one_no_more(stores):
    """Generous bounds: the figures themselves come from tools/bench_reader."""
    reader = BatchReader(stores, sequence_length=4, seed=0)
    seconds = []
    for start in (0, 4 * 10**6):
        begun = time.perf_counter()
        for step in range(1000):
            reader.rows(np.arange(start + 4 * step, start + 4 * step + 4))
        seconds.append((time.perf_counter() - begun) / 1000)
    assert max(seconds) < 500e-6
    assert seconds[1] < 5 * seconds[0]
