"""Stores that are built when they must be, reused when they may be, and never half there."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from t5x_style.data import Corpus, SharePhase, Source, ensure_stores, missing_stores
from t5x_style.data.build import locked
from t5x_style.data.records import documents
from t5x_style.data.vocabulary import train_tokenizer
from t5x_style.errors import Fault, UsageError


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def corpus(tokenizer, tmp_path):
    """Two small sources, one without a validation split."""
    legal = write_jsonl(
        tmp_path / "legal.jsonl", [f"Clause {i} of the licence." for i in range(300)]
    )
    general = write_jsonl(tmp_path / "general.jsonl", [f"Country {i}\n\u2581" for i in range(200)])
    return Corpus(
        tokenizer=tokenizer,
        mixture_or_task_name="blend",
        cache_dir=str(tmp_path / "stores"),
        sources=[
            Source(name="legal", splits={"train": legal, "validation": legal}),
            Source(name="general", splits={"train": general}),
        ],
        mixtures={"blend": {"legal": 0.51, "general": 0.49}},
        workers=1,
    )


def texts_of(store, tokenizer):
    assert (store.tokens[store.document_ends - 1] == tokenizer.eos_id).all()
    parts = np.split(store.tokens, store.document_ends)[:-1]
    return [tokenizer.decode(part[:-1]) for part in parts]


def builds_in(folder):
    """{store: time of its build}"""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/meta.json")}


def test_stores_hold_the_documents(corpus, tokenizer):
    stores = ensure_stores(corpus)
    shares = {"legal": 0.51, "general": 0.49}
    assert stores.phases == (SharePhase(None, shares, shares),)
    assert list(stores.train) == ["legal", "general"]
    assert list(stores.validation) == ["legal"]
    for source in corpus.sources:
        store = stores.train[source.name]
        expected = list(documents(source, "train"))
        found = texts_of(store, tokenizer)
        assert sorted(found) == sorted(expected)
        assert found != expected, "shuffled"
        assert store.meta["bytes"] == sum(len(text.encode()) for text in expected)
        assert store.meta["text_bytes"] == store.meta["bytes"]
        assert store.meta["documents"] == len(expected)
    heavy = {"tensorflow", "seqio", "tensorflow_datasets"} & set(sys.modules)
    assert not heavy, heavy


def test_a_pool_of_processes_builds_the_same(embedded, tokenizer, tmp_path):
    built = []
    for workers in (1, 2):
        corpus = Corpus(
            tokenizer=tokenizer,
            mixture_or_task_name="general",
            cache_dir=str(tmp_path / f"with {workers}"),
            sources=[embedded["general"]],
            workers=workers,
        )
        built.append(ensure_stores(corpus).train["general"].meta)
    assert built[0] == built[1]
    assert built[0]["documents"] == 2286
    assert built[0]["bytes"] == 5_945_240


def test_reused_as_long_as_it_matches(corpus, embedded, tmp_path):
    folder = pathlib.Path(corpus.cache_dir)
    assert [(plan.task, plan.split) for plan in missing_stores(corpus)] == [
        ("legal", "train"),
        ("legal", "validation"),
        ("general", "train"),
    ]
    assert not folder.exists(), "asking leaves nothing behind"
    with pytest.raises(UsageError, match=r"missing .*legal train, .*t5x-style cache"):
        ensure_stores(corpus, build=False)
    ensure_stores(corpus)
    first = builds_in(folder)
    ensure_stores(corpus, build=False)
    (tmp_path / "general.jsonl").touch()
    (tmp_path / "legal.jsonl").rename(tmp_path / "moved.jsonl")
    moved = Source(
        name="legal", splits={s: str(tmp_path / "moved.jsonl") for s in ("train", "validation")}
    )
    corpus = dataclasses.replace(corpus, sources=[moved, corpus.sources[1]])
    ensure_stores(corpus)
    assert builds_in(folder) == first, "touched and moved, but with the same content"

    content = (tmp_path / "general.jsonl").read_text().replace("Country 7\\n", "Kountry 7\\n")
    stamp = (tmp_path / "general.jsonl").stat()
    (tmp_path / "general.jsonl").write_text(content)
    os.utime(tmp_path / "general.jsonl", ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert [plan.task for plan in missing_stores(corpus)] == ["general"]

    for changed in ({"seed": 1}, {"tokenizer": another_tokenizer(embedded, tmp_path)}):
        assert len(missing_stores(dataclasses.replace(corpus, **changed))) == 3


def another_tokenizer(embedded, tmp_path):
    texts = {"a": documents(embedded["general"], "validation")}
    return train_tokenizer(
        texts, {"a": 1.0}, vocab_size=400, path=tmp_path / "other.model", sample_bytes=50_000
    )


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
    said = capfd.readouterr().err
    assert "a.jsonl:2: broken JSON" in said
    assert "a.jsonl:3: not UTF-8" in said


def test_a_document_of_100_megabytes(tokenizer, tmp_path):
    sentence = "The licensee may not, under clause 7.2, sublicense the covered work. "
    text = sentence * (100_000_000 // len(sentence) + 1)
    path = write_jsonl(tmp_path / "a.jsonl", ["before", text, "after"])
    source = Source(name="a", splits={"train": path})
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


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("victim", ["caller", "builder", "worker"])
def test_killed_while_building(embedded, tokenizer, tmp_path, victim):
    """No half store, nobody left behind, and the next start makes what it should."""
    folder = tmp_path / "stores"
    corpus = Corpus(
        tokenizer=tokenizer,
        mixture_or_task_name="legal",
        cache_dir=str(folder),
        sources=[embedded["legal"]],
        workers=2,
    )
    (tmp_path / "corpus.json").write_text(corpus.to_json())
    caller = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(tmp_path / "corpus.json")],
        stderr=subprocess.PIPE,
        text=True,
    )
    spool = lambda: list(folder.glob(".building-*/spool.bin"))  # noqa: E731
    until(lambda: spool() and spool()[0].stat().st_size > 0)
    family = children(caller.pid)
    names = {pid: pathlib.Path(f"/proc/{pid}/cmdline").read_text() for pid in family}
    builder = next(pid for pid, name in names.items() if "t5x_style.data.build" in name)
    worker = next(pid for pid, name in names.items() if "spawn_main" in name)
    os.kill({"caller": caller.pid, "builder": builder, "worker": worker}[victim], signal.SIGKILL)
    _, said = caller.communicate(timeout=60)
    assert caller.returncode != 0
    if victim != "caller":
        assert "t5x_style.errors.Fault: " in said, said
    until(lambda: not any(is_running(pid) for pid in family))
    assert builds_in(folder) == {}
    stores = ensure_stores(corpus)
    stores.train["legal"].verify()
    assert stores.train["legal"].meta["documents"] == 2374
    assert not list(folder.glob(".building-*"))


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
    with locked(missing_stores(corpus)[0].path):
        both = []
        for log in logs:
            with open(log, "w") as file:
                both.append(subprocess.Popen(command, stderr=file))
        waiting = "another process is building it, waiting"
        until(lambda: all(waiting in log.read_text() for log in logs))
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert sorted("2,286 documents" in log.read_text() for log in logs) == [False, True]
