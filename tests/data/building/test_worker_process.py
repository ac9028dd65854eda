"""Builds that end with the same bytes however they went: pools, parts, kills, bad records."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet
import pytest

from t5x_style.data import Corpus, Source, ensure_stores, missing_stores
from t5x_style.data.building import worker_process
from t5x_style.data.sources.documents import documents
from t5x_style.data.stores.token_store import store_lock
from t5x_style.errors import Fault
from tests.data.store_helpers import write_jsonl, write_store

FILES = 8


@pytest.fixture(scope="module")
def in_files(embedded, tmp_path_factory):
    """The embedded legal corpus in several files: so many parts."""
    folder = tmp_path_factory.mktemp("legal")
    texts = list(documents(embedded["legal"], "train"))
    for i in range(FILES):
        write_jsonl(
            folder / f"{i}.jsonl", texts[i * len(texts) // FILES : (i + 1) * len(texts) // FILES]
        )
    return Source(name="legal", splits={"train": str(folder / "*.jsonl")})


def corpus_of(source, tokenizer, folder, workers):
    return Corpus(
        tokenizer=tokenizer,
        mixture_or_task_name=source.name,
        cache_dir=str(folder),
        sources=[source],
        workers=workers,
    )


@pytest.fixture(scope="module")
def built(in_files, tokenizer, tmp_path_factory):
    """Its store, made in one process."""
    folder = tmp_path_factory.mktemp("one process")
    return ensure_stores(corpus_of(in_files, tokenizer, folder, 1)).train["legal"]


def test_parts_leave_no_trace(embedded, built, in_files, tokenizer, tmp_path):
    """The order of documents follows from the seed and nothing else."""
    texts = list(documents(embedded["legal"], "train"))
    seed = int(built.meta["fingerprint"][:16], 16)
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(texts))
    ids = [np.append(tokenizer.encode_array(texts[i]), tokenizer.eos_id) for i in order]
    np.testing.assert_array_equal(built.tokens, np.concatenate(ids))
    np.testing.assert_array_equal(
        built.document_ends, np.cumsum([len(document) for document in ids])
    )
    assert built.meta["bytes"] == built.meta["text_bytes"] == sum(len(t.encode()) for t in texts)
    built.verify()


def test_a_pool_of_processes_builds_the_same(built, in_files, tokenizer, tmp_path):
    pooled = ensure_stores(corpus_of(in_files, tokenizer, tmp_path, 2)).train["legal"]
    assert pooled.meta == built.meta
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".building")] == []


@pytest.mark.parametrize(
    ("content", "message", "workers"),
    [
        (b"", "'a', split 'train': not one document", 1),
        (b'{"text": "  "}\n', "'a', split 'train': not one document", 1),
        (b'{"text": "x"}\n{"text": \n', r"a\.jsonl:2: broken JSON", 1),
        (b'{"text": "x"}\n{"text": \n', r"a\.jsonl:2: broken JSON", 2),
        (b'{"text": "x"}\n{"text": "\xff"}\n', r"a\.jsonl:2: not UTF-8", 1),
        (b'{"body": "x"}\n', r"a\.jsonl:1: no field 'text'.*it has body", 1),
    ],
    ids=["empty", "blank", "broken JSON", "broken JSON in a pool", "not UTF-8", "no field"],
)
def test_bad_input_stops_the_build(tokenizer, tmp_path, content, message, workers):
    (tmp_path / "a.jsonl").write_bytes(content)
    source = Source(name="a", splits={"train": str(tmp_path / "a.jsonl")})
    corpus = Corpus(tokenizer, "a", str(tmp_path / "stores"), [source], workers=workers)
    with pytest.raises(Fault, match=message):
        ensure_stores(corpus)
    left = {path.name for path in (tmp_path / "stores").iterdir()}
    assert all(name.startswith(".lock") or name == "content_digests.json" for name in left), left


def test_bad_records_are_skipped_and_counted_when_asked(tokenizer, tmp_path, capfd):
    lines = [b'{"text": "good"}', b'{"text": ', b'{"text": "\xff"}', b'{"text": ""}', b"[]"]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    source = Source(name="a", splits={"train": str(tmp_path / "a.jsonl")}, on_bad_record="skip")
    corpus = Corpus(tokenizer, "a", str(tmp_path / "stores"), [source], workers=1)
    meta = ensure_stores(corpus).train["a"].meta
    assert (meta["documents"], meta["skipped"], meta["dropped"]) == (1, 3, 1)
    errors = capfd.readouterr().err
    assert "a.jsonl:2: broken JSON" in errors
    assert "a.jsonl:3: not UTF-8" in errors


@pytest.mark.parametrize(("bad", "printed"), [(0, 0), (1, 1), (20, 20), (1025, 20)])
def test_bad_records_are_counted_with_their_list_and_the_first_twenty_are_printed(
    tmp_path, capsys, bad, printed
):
    rows = [{"reason": "bad_record", "detail": f"line {i} is bad"} for i in range(bad)]
    rows.insert(3, {"reason": "length", "detail": "too long"})
    store = write_store(tmp_path / "a", [*[[]] * len(rows), [5, 1]], rows=[*rows, {}])
    assert store.meta["skipped"] == bad
    worker_process._print_skipped("a train", store.path, tmp_path / "place", bad)
    lines = capsys.readouterr().err.splitlines()
    listed = f"a train: bad records skipped: {bad:,}, listed in {tmp_path}/place/dropped.parquet"
    assert lines == [listed][: bad > 0] + [
        f"a train: skipped: line {i} is bad" for i in range(printed)
    ]


def test_a_document_of_100_megabytes(tokenizer, tmp_path):
    sentence = "The licensee may not, under clause 7.2, sublicense the covered work. "
    text = sentence * (100_000_000 // len(sentence) + 1)
    path = write_jsonl(tmp_path / "a.jsonl", ["before", text, "after"])
    source = Source(name="a", splits={"train": path}, max_record_bytes=1 << 28)
    corpus = Corpus(tokenizer, "a", str(tmp_path / "stores"), [source], workers=1)
    store = ensure_stores(corpus).train["a"]
    assert store.meta["documents"] == 3
    assert store.meta["bytes"] == len(text) + len("beforeafter")
    lengths = np.diff(store.document_ends, prepend=0)
    begin = int(store.document_ends[lengths.argmax()] - lengths.max())
    assert text.startswith(tokenizer.decode(store.tokens[begin : begin + 1000]))


BUILD = """
import sys
from t5x_style.data import Corpus, ensure_stores
ensure_stores(Corpus.from_json(open(sys.argv[1]).read()))
"""


def children(pid):
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*"):
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *children(child)]
    return found


def is_running(pid):
    try:
        return "\nState:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("victim", ["caller", "builder", "worker"])
def test_killed_while_building(built, in_files, tokenizer, tmp_path, capfd, victim):
    """No half store, nobody left behind, and the next start goes on with what was finished."""
    folder = tmp_path / "stores"
    corpus = corpus_of(in_files, tokenizer, folder, 2)
    (tmp_path / "corpus.json").write_text(corpus.to_json())
    caller = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(tmp_path / "corpus.json")],
        stderr=subprocess.PIPE,
        text=True,
    )
    finished = lambda: list(folder.glob(".building-*/part-*.json"))  # noqa: E731
    until(lambda: len(finished()) >= 2)
    family = children(caller.pid)
    names = {pid: pathlib.Path(f"/proc/{pid}/cmdline").read_text() for pid in family}
    builder = next(pid for pid, name in names.items() if "data.building.worker_process" in name)
    worker = next(pid for pid, name in names.items() if "spawn_main" in name)
    os.kill({"caller": caller.pid, "builder": builder, "worker": worker}[victim], signal.SIGKILL)
    _, errors = caller.communicate(timeout=60)
    assert caller.returncode != 0
    if victim != "caller":
        assert "t5x_style.errors.Fault: " in errors, errors
        ending = "signal SIGKILL" if victim == "builder" else "was terminated abruptly"
        assert ending in errors, errors
    until(lambda: not any(is_running(pid) for pid in family))
    assert list(folder.glob("*/meta.json")) == []
    left = len(finished())
    assert 2 <= left < FILES
    store = ensure_stores(corpus).train["legal"]
    assert f"{left} parts are there from an earlier start" in capfd.readouterr().err
    store.verify()
    assert store.meta == built.meta
    assert list(folder.glob(".building-*")) == []


def test_two_builders_at_once_build_once(embedded, tokenizer, tmp_path):
    corpus = Corpus(
        tokenizer=tokenizer,
        mixture_or_task_name="general",
        cache_dir=str(tmp_path / "stores"),
        sources=[embedded["general"]],
        workers=1,
    )
    (tmp_path / "corpus.json").write_text(corpus.to_json())
    command = [sys.executable, "-c", BUILD, str(tmp_path / "corpus.json")]
    logs = [tmp_path / "one.log", tmp_path / "other.log"]
    with store_lock(missing_stores(corpus)[0].path):
        both = []
        for log in logs:
            with open(log, "w") as file:
                both.append(subprocess.Popen(command, stderr=file))
        waiting = "another process is building it, waiting"
        until(lambda: all(waiting in log.read_text() for log in logs))
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert sorted("2,286 documents" in log.read_text() for log in logs) == [False, True]


def test_dates_and_licenses_go_into_the_store(tokenizer, tmp_path):
    lines = [
        json.dumps(
            {
                "text": f"page {i}",
                "day": f"2020-01-{i:02}",
                "terms": "MIT" if i % 3 else None,
                "n": i,
            }
        )
        for i in range(1, 31)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"text": "undated", "n": 31}']))
    source = Source(
        name="a",
        splits={"train": str(tmp_path / "a.jsonl")},
        id_field="n",
        date_field="day",
        license_field="terms",
        validation_from="2020-01-25",
        on_bad_record="skip",
    )
    stores = ensure_stores(corpus_of(source, tokenizer, tmp_path / "stores", 1))
    train, validation = stores.train["a"], stores.validation["a"]
    assert train.meta["dates"] == ["2020-01-01", "2020-01-24"]
    assert validation.meta["dates"] == ["2020-01-25", "2020-01-30"]
    assert [row[:2] for row in train.meta["licenses"]] == [["MIT", 16], [None, 8]]
    assert sum(row[2] for row in train.meta["licenses"]) == train.num_tokens
    assert (train.meta["filtered"], train.meta["skipped"]) == ({"date": 6}, 1)
    assert (validation.meta["filtered"], validation.meta["skipped"]) == ({"date": 24}, 0)
    for store in (train, validation):
        store.verify()
        table = pyarrow.parquet.read_table(store.path / "documents.parquet").to_pylist()
        parts = np.split(store.tokens, store.document_ends)[:-1]
        assert [f"page {row['id']}" for row in table] == [tokenizer.decode(p[:-1]) for p in parts]
    # Both splits read the file: what is bad in it is counted and listed once.
    dropped = pyarrow.parquet.read_table(train.path / "dropped.parquet").to_pylist()
    assert [row["reason"] for row in dropped] == ["bad_record"]
    assert "a.jsonl:31" in dropped[0]["detail"]


def test_a_disk_that_is_full_is_a_fault(in_files, tokenizer, tmp_path, monkeypatch):
    def fail(plans, corpus, engine):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker_process, "build_stores", fail)
    corpus = corpus_of(in_files, tokenizer, tmp_path, 1)
    request = {"action": "build", "corpus": corpus.to_json(), "plans": [], "beam_options": None}
    with pytest.raises(Fault, match=r"No space left on device; finished parts are kept$"):
        worker_process.answer(request)
