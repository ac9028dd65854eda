"""Stores that change between two starts of a run, or under it."""

import dataclasses
import json
import shutil
import time

import numpy as np
import pytest

from t5x_style.data import TokenStore
from t5x_style.data.stores import verification
from t5x_style.data.stores.token_store import StoreChanged
from t5x_style.errors import UsageError
from t5x_style.training import train
from tests.data.store_helpers import write_store
from tests.model_dir import events
from tests.training.runs import VOCABULARY, FakeStores, constant, make_run


@pytest.fixture
def stores(tmp_path):
    """Stores with files; `make(name, seed)` builds one again from other text of the same length."""

    def make(name: str, seed: int) -> TokenStore:
        rng = np.random.default_rng(seed)
        documents = rng.integers(2, VOCABULARY, (500, 8)).tolist()
        path = tmp_path / "stores" / name
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(exist_ok=True)
        # As of a seqio Task, whose files are not in the fingerprint.
        ended = [[*ids, 1] for ids in documents]
        return write_store(path, ended, source=name, fingerprint=f"of {name}")

    return make


def run_on(folder, make, *, seed: int = 0, **changes):
    train_store, held_out = make("law-train", seed), make("law-validation", 7)
    made = FakeStores(
        phases=constant({"law": 1.0}), train={"law": train_store}, validation={"law": held_out}
    )
    return make_run(folder, stores=made, **changes)


def reopened(run):
    """The run, on its stores as they are now."""
    train_store = TokenStore.open(run.stores.train["law"].path)
    stores = dataclasses.replace(run.stores, train={"law": train_store})
    return dataclasses.replace(run, stores=stores)


def write_ids(store: TokenStore, place: int, ids) -> None:
    written = np.memmap(store.path / "tokens.bin", store.tokens.dtype, mode="r+")
    written[place : place + len(ids)] = ids
    written.flush()


def test_a_store_with_other_ids_of_the_same_origin_is_another_run(tmp_path, stores):
    folder = tmp_path / "run"
    train(run_on(folder, stores, steps=2))
    before = (folder / "plan.json").read_bytes()
    # Built again from the same text it is the same store.
    train(run_on(folder, stores, steps=3))
    with pytest.raises(UsageError, match=r"tokens\.law: the ids in its store are others"):
        train(run_on(folder, stores, steps=4, seed=1))
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["identity"]["tokens"] == json.loads(before)["identity"]["tokens"]
    # A run of a version that did not write down the ids goes on, and has them from then on.
    del plan["identity"]["tokens"]
    (folder / "plan.json").write_text(json.dumps(plan))
    train(run_on(folder, stores, steps=4, seed=1))
    assert set(json.loads((folder / "plan.json").read_text())["identity"]["tokens"]) == {"law"}
    with pytest.raises(UsageError, match=r"tokens\.law: the ids"):
        train(run_on(folder, stores, steps=5))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_run_on_ids_that_were_changed_ends_by_name(tmp_path, stores, split):
    """Ids of the vocabulary, which no other check can tell from those of the text."""
    folder = tmp_path / "run"
    never = {"checkpoint_period": 100_000, "eval_period": 100_000, "log_period": 1000}
    run = run_on(folder, stores, steps=100_000, max_epochs=1e9, **never)
    store = getattr(run.stores, split)["law"]
    write_ids(store, 100, store.tokens[100:200] ^ 1)
    with pytest.raises(StoreChanged) as refused:
        train(run)
    named = f"law-{split}/tokens.bin has changed since it was built in bytes 0 to"
    assert named in str(refused.value)
    (told,) = [event for event in events(folder) if event["event"] == "store_changed"]
    assert told["reason"] == str(refused.value)
    assert told["step"] < 100_000
    assert not list(folder.glob("checkpoint_*"))


def test_ids_past_the_vocabulary_end_the_run_before_their_step(tmp_path, stores):
    folder = tmp_path / "run"
    run = run_on(folder, stores, steps=400, checkpoint_period=1, eval_tokens=0)
    ids = run.stores.train["law"].tokens.copy()
    # In the row that step 5 is the first to read.
    row = run.reader.rows(np.arange(4 * 8, 5 * 8)).tokens[0]
    (place,) = np.flatnonzero(np.all(np.lib.stride_tricks.sliding_window_view(ids, 17) == row, 1))
    write_ids(run.stores.train["law"], int(place) + 8, [VOCABULARY])
    run = reopened(run)
    object.__setattr__(run.stores.train["law"], "opened", None)  # the check of ids alone
    with pytest.raises(StoreChanged, match=rf"token {place + 8:,}, in document .* of 'law-train'"):
        train(run)
    # A save that had begun before is ended.
    assert [e["step"] for e in events(folder) if e["event"] == "store_changed"] == [4]
    assert max(int(path.name[11:]) for path in folder.glob("checkpoint_*[0-9]")) <= 4


def test_a_store_that_is_removed_under_a_run_is_told_and_read_on(tmp_path, stores, monkeypatch):
    folder = tmp_path / "run"
    run = run_on(folder, stores, steps=3, eval_tokens=0)
    whole = train(run_on(tmp_path / "whole", stores, steps=3, eval_tokens=0))
    read = type(run.reader).rows

    def after_the_removal(reader, rows):
        shutil.rmtree(run.stores.train["law"].path, ignore_errors=True)
        time.sleep(0.1)
        return read(reader, rows)

    monkeypatch.setattr(verification, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(type(run.reader), "rows", after_the_removal)
    assert train(run)["line"]["loss"] == whole["line"]["loss"]
    (told,) = [event["reason"] for event in events(folder) if event["event"] == "warned"]
    assert "law-train was removed or replaced while the run reads it" in told
