"""51 % legal and 49 % general text, read from the embedded corpora: counted batch by batch."""

import numpy as np
import pytest

from t5x_style.data import BatchReader, Blend, Corpus, Source, Tokenizer, ensure_stores, in_rows

SHARES = {"legal": 0.51, "general": 0.49}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    sources = [
        Source(name=name, splits={"train": f"package:{name}.validation.jsonl.gz"})
        for name in SHARES
    ]
    return ensure_stores(
        Corpus(
            tokenizer=Tokenizer("bytes"),
            mixture_or_task_name="both",
            cache_dir=str(tmp_path_factory.mktemp("stores")),
            sources=sources,
            mixtures={"both": SHARES},
            workers=1,
        )
    )


@pytest.mark.parametrize("batch_size", [1, 8, 33])
def test_every_span_of_100_steps_is_51_to_49(stores, batch_size):
    """For any sizes of the stores: within half a row of the share after every batch."""
    reader = BatchReader(
        Blend(in_rows(stores.phases, lambda tokens: tokens, [(0, 128)])),
        stores.train,
        sequence_lengths=[(0, 128)],
        seed=0,
    )
    steps = 2000
    legal = np.array(
        [
            (reader.rows(np.arange(step * batch_size, (step + 1) * batch_size)).source == 0).sum()
            for step in range(steps)
        ]
    )
    spans = np.convolve(legal, np.ones(100, int), "valid")
    assert len(spans) == steps - 99
    # Two borders, each off by half a row at most.
    assert np.abs(spans - 0.51 * 100 * batch_size).max() <= 1 + 1e-9
    from_start = np.cumsum(legal)
    assert np.abs(from_start - 0.51 * batch_size * np.arange(1, steps + 1)).max() <= 0.5 + 1e-9
    # Spans that begin at a whole number of periods are exact.
    np.testing.assert_array_equal(spans[::100], 51 * batch_size)
    # What the stores hold is another blend by far.
    held = {name: store.num_tokens for name, store in stores.train.items()}
    assert held["legal"] / sum(held.values()) > 0.6
