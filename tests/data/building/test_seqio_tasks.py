"""seqio on both sides: our sources as its Tasks, a user's Tasks and TFDS datasets as our stores."""

import dataclasses
import gzip
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from t5x_style.data import Corpus, Source, ensure_stores, missing_stores
from t5x_style.data.building.seqio_tasks import _check_gzip
from t5x_style.data.sources.documents import documents
from t5x_style.data.tokenizers.train import train_tokenizer
from t5x_style.errors import Fault, UsageError

THEIR_TASKS = """
import seqio
import tensorflow as tf
from t5x_style.data import Tokenizer

vocabulary = Tokenizer({model!r}).seqio_vocabulary()


def rekeyed(dataset):
    return dataset.map(lambda line: {{"targets": line}})


def wild(dataset):
    return dataset.map(lambda line: {{"targets": tf.constant([5, 100_000])}})


def add(name, vocabulary=vocabulary, split="train", features=("targets",), last=()):
    seqio.TaskRegistry.add(
        name,
        source=seqio.TextLineDataSource({{split: {lines!r}}}),
        preprocessors=[rekeyed, seqio.preprocessors.tokenize, *last],
        output_features={{feature: seqio.Feature(vocabulary) for feature in features}},
    )


add("their_lines", last=[seqio.preprocessors.append_eos])
add("plain", seqio.SentencePieceVocabulary({model!r}))
add("wild", last=[wild])
add("two_features", features=("inputs", "targets"))
add("extra_ids", seqio.SentencePieceVocabulary({model!r}, extra_ids=100))
add("bytes", seqio.ByteVocabulary())
add("no_train", split="validation")
add("other_vocabulary", seqio.SentencePieceVocabulary({other!r}))
seqio.MixtureRegistry.add("theirs", [("their_lines", 3), ("legal", 2), ("small", 1)])
"""
LINES = ["One line.", "Another \u2581 line,  with spaces ", "A third"]
SMALL = ["first \u2581 text", "second  text\n", "third\u00e9"]


@pytest.fixture(scope="module")
def user(tmp_path_factory, embedded, tokenizer):
    """A user's folder with a module, its data and a TFDS dataset; the corpus that names them."""
    folder = tmp_path_factory.mktemp("user")
    lines = folder / "lines.txt"
    lines.write_text("".join(line + "\n" for line in LINES))
    texts = {"a": documents(embedded["general"], "validation")}
    other = train_tokenizer(
        texts, {"a": 1.0}, vocab_size=400, path=folder / "other.model", sample_bytes=50_000
    )
    (folder / "their_tasks.py").write_text(
        THEIR_TASKS.format(model=tokenizer.path, lines=str(lines), other=other.path)
    )
    (folder / "broken.py").write_text("import nothing_of_that_name")
    legal = Source(name="legal", splits={"train": "package:legal.validation.jsonl.gz"})
    corpus = Corpus(
        tokenizer=tokenizer,
        mixture_or_task_name="theirs",
        mixture_or_task_module="their_tasks",
        cache_dir=str(folder / "stores"),
        sources=[legal],
        workers=1,
    )
    (folder / "corpus.json").write_text(corpus.to_json())
    script = pathlib.Path(__file__).parents[1] / "seqio_checks.py"
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    subprocess.run(
        [sys.executable, str(script), str(folder)],
        check=True,
        env=os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1"},
    )
    small = Source(
        name="small",
        format="tfds",
        tfds_name="small:1.0.0",
        tfds_data_dir=str(folder / "tfds"),
        splits={"train": "train", "validation": "validation"},
    )
    return folder, dataclasses.replace(corpus, sources=[legal, small])


@pytest.fixture(scope="module")
def found(user):
    """What seqio_checks.py found."""
    return json.loads((user[0] / "found.json").read_text())


def ids(tokenizer, texts):
    return [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]


def test_a_seqio_task_of_a_source_gives_the_same_tokens(found, tokenizer, embedded):
    texts = list(documents(embedded["legal"], "validation"))
    assert found["legal by seqio"] == ids(tokenizer, texts)
    assert sorted(found["small texts"]) == sorted(SMALL)
    assert found["small by seqio"] == ids(tokenizer, found["small texts"])
    assert found["a mixture is seqio's too"] == 10


def test_a_task_of_a_module(found, tokenizer):
    assert found["their lines"] == ids(tokenizer, LINES)
    # seqio's own vocabulary folds U+2581 into a space; everything else is alike.
    assert found["plain vocabulary"] == ids(
        tokenizer, [line.replace("\u2581", " ") for line in LINES]
    )
    assert found["vocabulary"] == [512, 1, 0]


def test_rates_are_shares_of_tokens(found):
    shares, splits = found["blend"]
    assert shares == pytest.approx({"their_lines": 1 / 2, "legal": 1 / 3, "small": 1 / 6})
    assert splits == {
        "their_lines": ["train"],
        "legal": ["train"],
        "small": ["train", "validation"],
    }


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ("misspelt", "MIXTURE_OR_TASK_NAME = 'thiers'.*did you mean 'theirs'"),
        ("no module", "'broken' cannot be imported: ModuleNotFoundError: .*nothing_of_that_name"),
        ("two_features", r"has the features \['inputs', 'targets'\].*learns from 'targets' alone"),
        ("extra_ids", "adds 100 ids.*set extra_ids=0"),
        ("bytes", r"has a ByteVocabulary.*seqio_vocabulary\(\)"),
        ("no_train", r"'no_train' has no split 'train'; it has \['validation'\]"),
        ("other_vocabulary", "another vocabulary than Tokenizer.path"),
        ("no such field", "no field 'txt'; it has text; did you mean 'text'"),
        ("no such split", r"Source.splits\['train'\] of 'small' = 'tran'"),
        ("ids out of range", "example 0: ids from 5 to 100000, the tokenizer has 0 to 511"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(found, check, message):
    assert re.search(message, found[check], re.DOTALL), found[check]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"Task 'x': .*a\.gz is empty"),
        (gzip.compress(b"text", mtime=0)[:-1], r"Task 'x': .*a\.gz: Compressed file ended"),
        (gzip.compress(b"text", mtime=0) + b"rest", r"Task 'x': .*a\.gz: Not a gzipped file"),
    ],
    ids=["empty", "cut", "followed by more"],
)
def test_an_archive_that_is_not_whole_is_refused_before_tensorflow_reads_it(
    content, message, tmp_path
):
    (tmp_path / "a.gz").write_bytes(content)
    with pytest.raises(Fault, match=message):
        _check_gzip(str(tmp_path / "a.gz"), "Task 'x'")


def test_stores_of_a_module_a_source_and_tfds(user, tokenizer, monkeypatch):
    """One child process imports TensorFlow, once; this one never does."""
    folder, corpus = user
    monkeypatch.syspath_prepend(str(folder))
    stores = ensure_stores(corpus)
    assert list(stores.train) == ["legal", "small", "their_lines"]
    assert list(stores.validation) == ["small"]
    for name, texts in (("their_lines", LINES), ("small", SMALL)):
        store = stores.train[name]
        parts = np.split(store.tokens, store.document_ends)[:-1]
        assert sorted(tokenizer.decode(part[:-1]) for part in parts) == sorted(texts)
        assert store.meta["bytes"] == sum(len(text.encode()) for text in texts)
    assert not {"tensorflow", "seqio", "their_tasks"} & set(sys.modules)

    def no_child(*_):
        raise AssertionError("a second start asks nobody")

    monkeypatch.setattr("t5x_style.data.stores.builder_client.Builder.ask", no_child)
    assert missing_stores(corpus) == []
    (folder / "lines.txt").write_text("Other lines now.\n")
    assert [plan.task for plan in missing_stores(corpus)] == ["their_lines"]


GROWING = """
import os
import seqio
from t5x_style.data import Tokenizer


def while_it_is_read(dataset):
    os.utime({lines!r}, (10**9, 10**9))
    return dataset.map(lambda line: {{"targets": line}})


seqio.TaskRegistry.add(
    "growing",
    source=seqio.TextLineDataSource({{"train": {lines!r}}}),
    preprocessors=[while_it_is_read, seqio.preprocessors.tokenize],
    output_features={{"targets": seqio.Feature(Tokenizer({model!r}).seqio_vocabulary())}},
)
"""


def test_a_file_that_changes_while_a_task_is_read_is_read_again(tokenizer, tmp_path, monkeypatch):
    lines = tmp_path / "lines.txt"
    lines.write_text("A line.\n")
    module = GROWING.format(lines=str(lines), model=tokenizer.path)
    (tmp_path / "growing_task.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    corpus = Corpus(
        tokenizer=tokenizer,
        mixture_or_task_name="growing",
        mixture_or_task_module="growing_task",
        cache_dir=str(tmp_path / "stores"),
    )
    assert ensure_stores(corpus).train["growing"].meta["documents"] == 1
    assert [plan.task for plan in missing_stores(corpus)] == ["growing"]


def test_a_module_that_is_not_there(user):
    _, corpus = user
    absent = dataclasses.replace(corpus, mixture_or_task_module="no_package.tasks")
    with pytest.raises(UsageError, match=r"'no_package\.tasks': no module 'no_package'"):
        missing_stores(absent)
