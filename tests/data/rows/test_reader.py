"""Rows by index, checked against the streams that they must be slices of."""

import hashlib
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest

from t5x_style.data import BatchReader, Blend, BlendPhase, TokenStore
from t5x_style.data.blend.blend import ROW_ORDER
from t5x_style.data.rows.reader import permuted
from t5x_style.errors import Fault, UsageError
from tests.data.store_helpers import counting_stores, write_store

SHARES = {"legal": 0.51, "general": 0.49}
SIZES = {"legal": 50_003, "general": 7_785}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return counting_stores(tmp_path_factory.mktemp("stores"), SIZES)


def reader_of(stores, *, sequence_length, seed):
    """A reader of one blend and one sequence length."""
    return BatchReader(
        Blend.constant(SHARES), stores, sequence_lengths=[(0, sequence_length)], seed=seed
    )


def test_a_row_is_a_window_of_its_source(stores):
    reader = reader_of(stores, sequence_length=16, seed=3)
    tokens, source, split = reader.rows(np.arange(10_000))
    assert split is None
    assert tokens.dtype == np.int32
    assert tokens.shape == (10_000, 17)
    assert source.dtype == np.int32
    assert reader.names == ("legal", "general")
    np.testing.assert_array_equal(np.diff(tokens), 1)
    np.testing.assert_array_equal(tokens[:, 0] // 10**7, source)


def test_an_epoch_predicts_each_token_once_except_the_last_few(stores):
    reader = reader_of(stores, sequence_length=16, seed=3)
    windows = (SIZES["general"] - 1) // 16
    tokens, source, _ = reader.rows(np.arange(10 * windows))
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


def test_over_many_epochs_every_token_but_the_first_is_predicted(tmp_path):
    """Of 19 tokens, four windows of four leave two: the epochs begin at token 0, 1 or 2."""
    reader = BatchReader(
        Blend.constant({"only": 1.0}),
        counting_stores(tmp_path, {"only": 19}),
        sequence_lengths=[(0, 4)],
        seed=0,
    )
    epochs = reader.rows(np.arange(4 * 300)).tokens.reshape(300, 4, 5)
    begins = epochs[:, :, 0].min(axis=1)
    # 100 each are expected, with a standard deviation of eight.
    counts = np.bincount(begins)
    assert len(counts) == 3
    assert counts.min() > 60
    assert set(epochs[:50, :, 1:].ravel().tolist()) == set(range(1, 19))
    assert set(epochs[:50, :, :-1].ravel().tolist()) == set(range(18))


def test_the_rows_change_only_with_the_version_of_their_order(tmp_path):
    """A run holds ROW_ORDER in its identity: raise it when this digest has to change."""
    rng = np.random.default_rng(0)
    documents = [[*rng.integers(2, 99, n), 1] for n in rng.integers(1, 60, 200)]
    train = {name: write_store(tmp_path / name, documents, seed=i) for i, name in enumerate("ab")}
    mostly_a, mostly_b = {"a": 0.7, "b": 0.3}, {"a": 0.2, "b": 0.8}
    constant = BlendPhase(None, mostly_a, mostly_a)
    changes = [(500, [BlendPhase(None, mostly_b, mostly_b)]), (1500, [constant])]
    digest = hashlib.sha256()
    for document_starts in (False, True):
        reader = BatchReader(
            Blend([BlendPhase(300, mostly_a, mostly_b), constant], changes),
            train,
            sequence_lengths=[(0, 5), (1000, 26), (2231, 60)],
            seed=3,
            document_starts=document_starts,
        )
        for first, end in ((0, 1000), (1000, 2231), (2231, 4000)):
            for array in reader.rows(np.arange(first, end)):
                digest.update(b"" if array is None else array.astype("<i4").tobytes())
    assert (ROW_ORDER, digest.hexdigest()[:16]) == (2, "fab23604657db1d2")


def test_rows_depend_on_seed_and_index_alone(stores):
    reader = reader_of(stores, sequence_length=16, seed=3)
    indices = np.random.default_rng(0).integers(0, 10**9, 300)
    together, source, _ = reader.rows(indices)
    for i in range(0, 300, 37):
        alone, alone_source, _ = reader_of(stores, sequence_length=16, seed=3).rows(
            indices[i : i + 1]
        )
        np.testing.assert_array_equal(alone[0], together[i])
        assert alone_source[0] == source[i]
    other = reader_of(stores, sequence_length=16, seed=4).rows(indices)[0]
    assert (other != together).any()
    empty, no_source, _ = reader.rows(np.arange(0))
    assert empty.shape == (0, 17)
    assert no_source.shape == (0,)


def test_the_same_rows_in_another_process(stores, tmp_path):
    """The order depends on no hash seed, no address and no number of cores."""
    reader = reader_of(stores, sequence_length=16, seed=3)
    expected = reader.rows(np.arange(1000, 1100))[0]
    folder = stores["legal"].path.parent
    script = (
        "import sys, numpy as np\n"
        "from t5x_style.data import BatchReader, Blend, TokenStore\n"
        f"train = {{name: TokenStore.open(r'{folder}/' + name) for name in {list(SIZES)}}}\n"
        f"blend = Blend.constant({SHARES})\n"
        "reader = BatchReader(blend, train, sequence_lengths=[(0, 16)], seed=3)\n"
        f"np.save(r'{tmp_path}/rows.npy', reader.rows(np.arange(1000, 1100))[0])\n"
        "heavy = {'tensorflow', 'seqio', 'tensorflow_datasets', 'jax'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), expected)


def test_counts_of_tokens_and_epochs(stores):
    reader = reader_of(stores, sequence_length=16, seed=3)
    source = reader.rows(np.arange(5000)).source
    np.testing.assert_array_equal(reader.tokens_by_source(5000), np.bincount(source) * 16)
    assert reader.epochs(5000)[1] == pytest.approx(2450 / ((7785 - 1) // 16))
    # 3,125 and 486 windows of 16 tokens; 1,562 and 243 of 32; 781 and 121 of 64.
    assert reader.tokens_of_epoch().tolist() == [50_000, 7_776]
    blend = Blend.constant(SHARES)
    lengths = [(0, 16), (100, 64), (200, 32)]
    several = BatchReader(blend, stores, sequence_lengths=lengths, seed=0)
    assert several.tokens_of_epoch().tolist() == [49_984, 7_744]


def test_horizon(stores):
    reader = reader_of(stores, sequence_length=16, seed=3)
    caps = {"legal": 40, "general": 40}
    assert reader.check_horizon(1000, caps) == []
    warnings = reader.check_horizon(8000, caps)
    assert len(warnings) == 1
    assert "'general' will be read 8.1 times" in warnings[0]
    with pytest.raises(UsageError, match=r"'general' would be read 50.4 times .*cap is 40 epochs"):
        reader.check_horizon(50_000, caps)
    with pytest.raises(UsageError, match="'legal' would be read"):
        reader.check_horizon(8000, {"legal": 1, "general": 40})
    assert "read 50.4 times" in reader.check_horizon(50_000, None)[1]


def test_four_epochs_and_a_cap_may_just_be_reached(stores):
    """Muennighoff et al. (2023): up to four epochs teach almost as much as fresh tokens."""
    only = {"general": stores["general"]}
    reader = BatchReader(Blend.constant({"general": 1.0}), only, sequence_lengths=[(0, 16)], seed=0)
    windows = (SIZES["general"] - 1) // 16
    assert reader.check_horizon(4 * windows, {"general": 4.0}) == []
    assert len(reader.check_horizon(4 * windows + 1, {"general": 5.0})) == 1
    with pytest.raises(UsageError, match="the cap is 4 epochs"):
        reader.check_horizon(4 * windows + 1, {"general": 4.0})


def test_sequence_length_by_phase_reads_no_token_twice_in_an_epoch(stores):
    """Three lengths within the first epochs of both sources, counted token by token."""
    blend = Blend([BlendPhase(700, SHARES, SHARES), BlendPhase(None, SHARES, SHARES)])
    lengths = [(0, 16), (301, 64), (403, 7), (900, 32)]
    reader = BatchReader(blend, stores, sequence_lengths=lengths, seed=5)
    ends = [301, 403, 900, 1500]
    seen = {name: [] for name in SIZES}
    predicted = np.zeros(2, np.int64)
    for (first, length), end in zip(lengths, ends, strict=True):
        tokens, source, _ = reader.rows(np.arange(first, end))
        assert tokens.shape == (end - first, length + 1)
        np.testing.assert_array_equal(np.diff(tokens), 1)
        predicted += np.bincount(source, minlength=2) * length
        np.testing.assert_array_equal(reader.tokens_by_source(end), predicted)
        for i, name in enumerate(SIZES):
            seen[name] += tokens[source == i][:, 1:].ravel().tolist()
    # The smaller source is in its second epoch; the first one ends with its windows.
    epochs = reader.epochs(1500)
    assert epochs[0] < 1 < epochs[1]
    assert len(set(seen["legal"])) == len(seen["legal"])
    # Before general repeats its first token, it has predicted a whole epoch, except less than a
    # window at each change of length and at the end.
    again = next(k for k, token in enumerate(seen["general"]) if token in seen["general"][:k])
    assert again > SIZES["general"] - 4 * 64
    with pytest.raises(ValueError, match="several sequence lengths"):
        reader.rows(np.arange(300, 302))


def test_a_window_run_may_end_anywhere(stores):
    """Random lengths, borders and epochs: each token is read once an epoch, to within one."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        borders = np.cumsum(rng.integers(1, 1500, 4))
        lengths = [(0, 5), *zip(borders.tolist(), rng.integers(3, 90, 4).tolist(), strict=True)]
        reader = BatchReader(Blend.constant(SHARES), stores, sequence_lengths=lengths, seed=1)
        end = int(borders[-1]) + 300
        times = np.zeros(SIZES["general"] + 1, np.int64)
        for (first, _), stop in zip(lengths, [*borders.tolist(), end], strict=True):
            tokens, source, _ = reader.rows(np.arange(first, stop))
            np.add.at(times, tokens[source == 1][:, 1:].ravel() - 10**7, 1)
        begun = np.ceil(reader.epochs(end)[1])
        assert times.max() <= begun
        # An epoch leaves out tokens at an end of the store alone.
        inner = inner_times(times, lengths)
        assert ((inner == begun) | (inner == begun - 1)).all(), (lengths, np.bincount(inner), begun)


def inner_times(times, lengths):
    """How often tokens are read that are further than a window from both ends of the store."""
    longest = max(length for _, length in lengths)
    return times[longest : SIZES["general"] - longest]


def rows_of_all(reader, end):
    """{row: its source and tokens}, of any sequence lengths."""
    borders = [*(first for first, _ in reader.sequence_lengths), end]
    found = []
    for first, stop in itertools.pairwise(borders):
        rows = reader.rows(np.arange(first, stop))
        found += zip(rows.source.tolist(), rows.tokens.tolist(), strict=True)
    return found


def test_a_change_of_the_blend_inside_of_a_sequence_length(stores):
    """Rows before it stay, and none of their windows is repeated in the first epoch."""
    lengths = [(0, 16), (600, 32)]
    change = (
        300,
        [BlendPhase(None, {"legal": 0.9, "general": 0.1}, {"legal": 0.9, "general": 0.1})],
    )
    constant = [BlendPhase(None, SHARES, SHARES)]
    old, new = (
        BatchReader(Blend(constant, changes), stores, sequence_lengths=lengths, seed=1)
        for changes in ([], [change])
    )
    rows = rows_of_all(new, 900)
    assert rows[:300] == rows_of_all(old, 900)[:300]
    predicted = [token for _, tokens in rows for token in tokens[1:]]
    assert len(set(predicted)) == len(predicted)
    tokens_of = np.bincount([source for source, _ in rows], [len(read) - 1 for _, read in rows])
    np.testing.assert_array_equal(new.tokens_by_source(900), tokens_of)
    # One call may have rows on both sides of the change.
    together = new.rows(np.arange(599, 250, -1))
    assert together.tokens.tolist() == [tokens for _, tokens in rows[599:250:-1]]


def test_any_changes_of_the_blend_among_any_sequence_lengths(stores):
    """Changed several times, with sources that come, over several epochs."""
    rng = np.random.default_rng(0)
    for _ in range(25):
        borders = np.cumsum(rng.integers(1, 1500, 3)).tolist()
        lengths = [(0, 5), *zip(borders, rng.integers(3, 90, 3).tolist(), strict=True)]
        end = borders[-1] + 300
        at = sorted(rng.choice(np.arange(1, end), 4, replace=False).tolist())
        blends = [{"general": share, "legal": 1 - share} for share in rng.uniform(0.01, 1, 5)]
        blends[0] = {"general": 1.0}
        phases = [[BlendPhase(None, blend, blend)] for blend in blends]
        changes = list(zip(at, phases[1:], strict=True))
        readers = [
            BatchReader(Blend(phases[0], changes[:n]), stores, sequence_lengths=lengths, seed=1)
            for n in range(5)
        ]
        rows = rows_of_all(readers[-1], end)
        # The rows before each change are the same with and without it.
        for row, reader in zip(at, readers[:-1], strict=True):
            assert rows_of_all(reader, end)[:row] == rows[:row]
        times = np.zeros(SIZES["general"] + 1, np.int64)
        for source, tokens in rows:
            if readers[-1].names[source] == "general":
                times[np.array(tokens[1:]) - 10**7] += 1
        epochs = readers[-1].epochs(end)[readers[-1].names.index("general")]
        # A change may put off windows of an epoch to the next one.
        inner = inner_times(times, lengths)
        assert inner.min() >= np.floor(epochs) - 2, (lengths, changes, np.bincount(inner), epochs)
        assert inner.max() <= np.ceil(epochs) + 1, (lengths, changes, np.bincount(inner), epochs)


def test_within_an_epoch_no_change_of_blend_or_length_brings_a_token_again(stores):
    """With short rows the first epoch of the larger source lasts through all changes."""
    rng = np.random.default_rng(1)
    for _ in range(12):
        borders = np.cumsum(rng.integers(20, 400, 4)).tolist()
        lengths = [(0, 5), *zip(borders, rng.integers(3, 24, 4).tolist(), strict=True)]
        end = borders[-1] + 100
        at = sorted(rng.choice(np.arange(1, end), 6, replace=False).tolist())
        blends = [{"legal": share, "general": 1 - share} for share in rng.uniform(0.1, 1, 7)]
        first, *changed = [[BlendPhase(None, blend, blend)] for blend in blends]
        blend = Blend(first, list(zip(at, changed, strict=True)))
        reader = BatchReader(blend, stores, sequence_lengths=lengths, seed=1)
        predicted = [
            token
            for source, tokens in rows_of_all(reader, end)
            for token in tokens[1:]
            if reader.names[source] == "legal"
        ]
        assert len(set(predicted)) == len(predicted), (lengths, at, blends)


def test_windows_that_begin_where_a_document_does(tmp_path):
    rng = np.random.default_rng(0)
    eos = 1
    documents = [[*rng.integers(2, 99, n), eos] for n in rng.integers(1, 120, 400)]
    store = write_store(tmp_path / "only", documents)
    reader = BatchReader(
        Blend.constant({"only": 1.0}),
        {"only": store},
        sequence_lengths=[(0, 32)],
        seed=0,
        document_starts=True,
    )
    plain = BatchReader(
        Blend.constant({"only": 1.0}), {"only": store}, sequence_lengths=[(0, 32)], seed=0
    )
    tokens, _, split = reader.rows(np.arange(1000))
    windows = plain.rows(np.arange(1000)).tokens
    assert tokens.shape == (1000, 34)
    assert ((split > 0) & (split <= 32)).all()
    rotated = 0
    begins = {0, *store.document_ends.tolist()}
    places = {store.tokens[a : a + 33].tobytes(): a for a in range(len(store.tokens) - 32)}
    for z, j, window in zip(tokens, split, windows, strict=True):
        position = np.arange(32)
        inputs = np.where(position < j, z[:32], z[1:33])
        targets = np.where(position < j, z[1:33], z[2:34])
        # The same predictions as in the window, each after the same token.
        pairs = sorted(zip(window[:-1].tolist(), window[1:].tolist(), strict=True))
        assert sorted(zip(inputs.tolist(), targets.tolist(), strict=True)) == pairs
        begins_document = places[window.astype(store.tokens.dtype).tobytes()] in begins
        if j < 32:
            rotated += 1
            assert inputs[0] == eos
            first = int(np.flatnonzero(window == eos)[0])
            assert first > 0
            assert not begins_document
            np.testing.assert_array_equal(inputs, [*window[first:-1], *window[:first]])
        else:
            np.testing.assert_array_equal(inputs, window[:-1])
            assert begins_document or window[0] == eos or eos not in window[1:-1]
    assert rotated > 300


def test_a_source_shorter_than_a_row_is_refused(stores):
    with pytest.raises(UsageError, match=r"'general' has 7785 tokens.* needs 8193"):
        reader_of(stores, sequence_length=8192, seed=0)
    with pytest.raises(UsageError, match=r"'general' has 7785 tokens.* needs 7786"):
        reader_of(stores, sequence_length=7785, seed=0)
    reader = reader_of(stores, sequence_length=7784, seed=0)
    tokens, source, _ = reader.rows(np.arange(10))
    assert (tokens[source == 1] == 10**7 + np.arange(7785)).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 63, 64, 65, 1000, 4097])
def test_permuted_is_a_permutation(size):
    seen = set()
    for key in range(4):
        order = permuted(np.arange(size), np.full(size, size), np.full(size, key, np.uint64))
        np.testing.assert_array_equal(np.sort(order), np.arange(size))
        seen.add(tuple(order))
    assert size < 64 or len(seen) == 4


def test_permuted_is_even():
    """The image of position 0 over many keys: chi-squared with 99 degrees of freedom."""
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


@pytest.fixture
def located(monkeypatch):
    """(first, end) of the rows whose places are computed while the test runs."""
    found = []
    locate = Blend.locate

    def recorded(blend, first, end):
        found.append((first, end))
        return locate(blend, first, end)

    monkeypatch.setattr(Blend, "locate", recorded)
    return found


@pytest.mark.parametrize("start", [0, 4 * 10**6])
def test_places_are_computed_once_for_many_small_batches(stores, located, start):
    """For 4,096 rows at a time, also far into a run."""
    reader = reader_of(stores, sequence_length=4, seed=0)
    for step in range(1000):
        reader.rows(np.arange(start + 4 * step, start + 4 * step + 4))
    begin = start // 4096 * 4096
    assert located == [
        (first, first + 4096) for first in (begin, begin + 4096) if first < start + 4000
    ]


def test_places_are_computed_for_no_row_of_another_sequence_length(stores, located):
    changes = [(0, 4), (100, 8), (10**7, 16)]
    reader = BatchReader(Blend.constant(SHARES), stores, sequence_lengths=changes, seed=0)
    for row in (0, 100, 10**7):
        reader.rows(np.array([row]))
    block = 10**7 // 4096 * 4096
    assert located == [(0, 100), (100, 4096), (10**7, block + 4096)]


def test_the_places_of_the_last_four_blocks_are_kept(stores, located):
    reader = reader_of(stores, sequence_length=4, seed=0)
    for block in (0, 1, 2, 3, 3, 0, 1, 2, 4, 4, 1, 2, 3, 0):
        reader.rows(np.array([4096 * block]))
    assert [first // 4096 for first, _ in located] == [0, 1, 2, 3, 4, 0]


@pytest.mark.parametrize("document_starts", [False, True])
@pytest.mark.parametrize(("place", "document", "id_"), [(8, 0, 64), (37, 3, 2**32 - 1)])
def test_an_id_past_the_vocabulary_is_refused_by_place(
    tmp_path, document_starts, place, document, id_
):
    """The embedding would take its last row for it. An int32 of the largest is negative."""
    documents = [[*range(2, 11), 1] for _ in range(40)]
    path = write_store(tmp_path / "legal-train-0", documents, source="legal").path
    ids = np.memmap(path / "tokens.bin", "<u4", mode="r+")
    before, ids[place] = ids[place], id_
    ids.flush()
    reader = BatchReader(
        Blend.constant({"legal": 1.0}),
        {"legal": TokenStore.open(path)},
        sequence_lengths=[(0, 8)],
        seed=0,
        document_starts=document_starts,
        vocab_size=64,
    )
    epoch = np.arange(49)
    with pytest.raises(Fault) as refused:
        reader.rows(epoch)
    message = str(refused.value)
    match = re.fullmatch(
        rf"{path}/tokens.bin has changed since it was built: token {place}, in document {document} "
        rf"of 'legal' and row (\d+) of the run, is {id_:,}, and the vocabulary has 64 ids: "
        "remove the store",
        message,
    )
    assert match, message
    (row,) = match.groups()
    # Rows without it are read as before, and so are all once it is repaired.
    others = [n for n in range(49) if n < int(row)]
    reader.rows(np.array(others, np.int64))
    ids[place] = before
    assert reader.rows(epoch).tokens.max() == 10
