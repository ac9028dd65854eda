"""What seqio users bring: nested Mixtures, rate functions, caches, TFDS, their vocabularies."""

import dataclasses
import gzip
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from t5x_style.data import (
    BatchReader,
    Blend,
    Corpus,
    Source,
    Tokenizer,
    ensure_stores,
    missing_stores,
)
from t5x_style.errors import Fault
from tests.data.tokenizer_json import trained

FEW = ["One line.", "Another \u2581 line,  with spaces ", "é"]
SMALL = ["first \u2581 text", "second  text\n", "third\u00e9"]  # as seqio_checks.py has them
CACHED = [[100 + n] * (n + 1) + [1] for n in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtures")
    many = [f"line {n} of many" for n in range(27)]
    for name, lines in {
        "few": FEW,
        "many": many,
        "a": "a",
        "b": "b",
        "c": "c",
        "empty": [],
    }.items():
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    (folder / "cut.txt.gz").write_bytes(gzip.compress(bytes(range(256)) * 400)[:-500])
    (folder / "gin.jsonl").write_text(json.dumps({"text": "said in gin"}) + "\n")
    shutil.copy(pathlib.Path(__file__).with_name("their_mixtures.py"), folder / "user_module.py")
    return folder


@pytest.fixture(scope="module")
def corpus(folder):
    return Corpus(
        tokenizer=Tokenizer("bytes"),
        mixture_or_task_name="outer",
        mixture_or_task_module="user_module",
        cache_dir=str(folder / "stores"),
        sources=[Source(name="gin", splits={"train": str(folder / "gin.jsonl")})],
        cached_task_dirs=[str(folder / "cache")],
        mixtures={"gin_nests": {"inner": 0.5, "half": 0.5}, "half": {"few": 0.5, "gin": 0.5}},
        workers=1,
    )


@pytest.fixture(scope="module")
def found(folder, corpus, tokenizer, embedded):
    """What mixture_checks.py found."""
    texts = ["of the licence"] * 30
    tokenizer_json = folder / "tokenizer.json"
    tokenizer_json.write_text(json.dumps(trained(texts, "gpt 2")))
    vocabularies = [tokenizer.path, str(tokenizer_json), "bytes"]
    (folder / "vocabularies.json").write_text(json.dumps(vocabularies))
    (folder / "corpus.json").write_text(corpus.to_json())
    script = pathlib.Path(__file__).with_name("mixture_checks.py")
    path = os.pathsep.join([str(folder), str(script.parent), *filter(None, sys.path)])
    subprocess.run(
        [sys.executable, str(script), str(folder)],
        check=True,
        env=os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1"},
    )
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        # few : many = sqrt(3) : sqrt(27) = 1 : 3, and both together 3 of 6.
        ("outer", {"few": 1 / 8, "many": 3 / 8, "small": 1 / 6, "gin": 1 / 3}),
        # 3 examples, a rate of 1, and TFDS knows of its own that there are 3.
        ("by_default", {"few": 3 / 7, "many": 1 / 7, "small": 3 / 7}),
        # Once through the nested mixture and once by itself.
        ("twice", {"few": (1 / 4 + 1) / 2, "many": (3 / 4) / 2}),
        # Five documents of 1 to 5 tokens in the cache, against 5.
        ("by_tokens", {"cached": 15 / 20, "few": 5 / 20}),
        # sqrt(min(2 * 3, 9)) : sqrt(min(2 * 27, 9))
        ("clipped", {"few": 6**0.5 / (6**0.5 + 3), "many": 3 / (6**0.5 + 3)}),
        # What lies in a cache is counted there: 5 examples, and not the 3 of the source.
        ("of_function", {"cached": 5 / 8, "few": 3 / 8}),
        # Evaluated alone.
        ("nothing_of_small", {"few": 1, "small": 0}),
        # A mixture of gin that names one of its own and one of the module.
        ("gin_nests", {"few": 1 / 2 / 4 + 1 / 4, "many": 3 / 8, "gin": 1 / 4}),
    ],
)
def test_rates_are_those_of_seqio(found, name, shares):
    assert found["blends"][name][0] == pytest.approx(shares)


def test_seqio_draws_examples_by_the_rates_that_we_take_as_shares(found):
    """sqrt(1) : sqrt(4) : sqrt(9), to 4 standard deviations of 4000 draws."""
    shares = np.array([1, 2, 3]) / 6
    drawn = np.array(found["drawn by seqio"])
    assert drawn.sum() == 4000
    assert (np.abs(drawn - 4000 * shares) < 4 * np.sqrt(4000 * shares * (1 - shares))).all()


@pytest.mark.parametrize(
    ("where", "name", "message"),
    [
        (
            "refused",
            "no_counts",
            "UsageError: seqio Mixture 'no_counts': no rate of 'gin'.*num_input_examples of its "
            "source, or a cache in Corpus.cached_task_dirs",
        ),
        ("refused", "less_than_nothing", "the rate of 'small' is -1: it must be 0 or more"),
        ("refused", "nothing_at_all", "'nothing_at_all': every rate is 0"),
        ("refused", "nested_function", "no rate of 'few': ValueError: .*must be a number"),
        ("refused", "their_ids", r"a PassThroughVocabulary.*'bytes'\).seqio_vocabulary"),
        ("refused", "must_cache", "only be read from its cache: set Corpus.use_cached_tasks"),
        ("refused cached", "not_cached", "'not_cached' is not cached in '.*/cache'.*COMPLETED"),
        (
            "refused cached",
            "validation_not_cached",
            "'validation' of seqio Task 'validation_not_cached' is not in its cache: there is no",
        ),
        ("unreadable", "no_file", r"Fault: seqio Task 'no_file', split 'train'.*absent\.txt"),
        (
            "unreadable",
            "cut",
            r"Fault: seqio Task 'cut', split 'train': .*cut\.txt\.gz: .*ended before",
        ),
        (
            "unreadable",
            "sequence_length",
            "UsageError: .*opened: TypeError: 'NoneType' .*are given no sequence_length",
        ),
        (
            "unreadable",
            "breaks",
            "Fault: .*'breaks'.*after 1 examples: InvalidArgumentError: .*assertion failed",
        ),
    ],
)
def test_what_cannot_be_learnt_from_is_named(found, where, name, message):
    assert re.search(message, found[where][name], re.DOTALL), found[where][name]


def test_a_cached_task_is_read_from_its_cache(found, folder):
    assert found["cached blend"] == [{"cached": 1.0}, {"cached": ["train"]}]
    assert sorted(found["from the cache"]) == CACHED
    as_bytes = [[byte + 3 for byte in line.encode()] + [1] for line in FEW]
    assert found["from the source"] == as_bytes
    assert found["never cached"] == as_bytes, "it has no placeholder: there is no cache of it"
    assert found["no folder"] == "UsageError: Corpus.cached_task_dirs: there is no folder 'x/y'"
    assert re.search(r"Fault: .*'shard_gone'.*lists 2 shards, 1 are there", found["shard gone"])


def test_the_files_that_a_store_is_watched_by(found, folder):
    for files, where in (("files of the cache", "cache/cached"), ("files of tfds", "tfds/small")):
        assert found[files]
        for path, size, changed in found[files]:
            assert path.startswith(str(folder / where))
            assert [os.stat(path).st_size, os.stat(path).st_mtime_ns] == [size, changed]


def test_preprocessors_that_draw_at_random_draw_the_same_from_a_seed(found):
    assert found["noise of a seed"] == [True, False]


def test_vocabularies_of_seqio_give_our_ids(found):
    text = "the licence, é\u2581 of  it"
    assert len(found["vocabularies"]) == 3
    for path, seqio in found["vocabularies"].items():
        tokenizer = Tokenizer(path)
        assert seqio["ids"] == [tokenizer.encode(text)] * 2
        assert seqio["text"][0] == text
        assert seqio["text"][1] == text
        assert seqio["sizes"] == [tokenizer.vocab_size, tokenizer.eos_id]
        assert seqio["equal to another of it"] is True


def test_from_a_module_to_rows(found, folder, corpus, monkeypatch):
    """Nested, with functions and temperature, of bytes, TFDS and gin: exact in the rows."""
    monkeypatch.syspath_prepend(str(folder))
    stores = ensure_stores(corpus)
    shares = {"few": 1 / 8, "many": 3 / 8, "small": 1 / 6, "gin": 1 / 3}
    (phase,) = stores.phases
    assert phase.start == phase.end == pytest.approx(shares)
    assert set(stores.validation) == {"small"}
    small = stores.train["small"]
    documents = np.split(small.tokens, small.document_ends)[:-1]
    assert sorted(corpus.tokenizer.decode(ids) for ids in documents) == sorted(SMALL)
    blend = Blend.constant(phase.start)
    reader = BatchReader(blend, stores.train, sequence_lengths=[(0, 4)], seed=0)
    for rows in (1, 7, 24, 1000, 2399):
        tokens = dict(zip(reader.names, reader.tokens_by_source(rows), strict=True))
        for name, share in shares.items():
            assert abs(tokens[name] / 4 - share * rows) < 1 + 1e-9, (name, rows)


def test_a_cache_and_an_empty_task_on_the_way_to_stores(found, folder, corpus, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    both = dataclasses.replace(corpus, mixture_or_task_name="with_empty", use_cached_tasks=True)
    with pytest.raises(Fault, match="source 'empty', split 'train': not one document"):
        ensure_stores(both)

    def declared(_, request):
        assert request["action"] == "resolve", "the store of the cache stands already"
        return {"shares": {"cached": {"cached": 1.0}}, "splits": {"cached": ["train"]}}

    monkeypatch.setattr("t5x_style.data.stores.builder_client.Builder.ask", declared)
    cached = dataclasses.replace(both, mixture_or_task_name="cached")
    store = ensure_stores(cached).train["cached"]
    documents = np.split(store.tokens, store.document_ends)[:-1]
    assert sorted(ids.tolist() for ids in documents) == CACHED
    uncached = dataclasses.replace(cached, use_cached_tasks=False)
    assert [plan.task for plan in missing_stores(uncached)] == ["cached"], "another store"
    shard = folder / "cache" / "cached" / "train.tfrecord-00000-of-00002"
    os.utime(shard, ns=(1, 1))
    assert [plan.task for plan in missing_stores(cached)] == ["cached"], "the cache was made anew"


def test_a_cache_made_anew_changes_the_rates_that_count_by_it(found, folder, corpus, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    asked = []
    answer = {"shares": {"by_tokens": {"cached": 1.0}}, "splits": {"cached": []}}
    monkeypatch.setattr(
        "t5x_style.data.stores.builder_client.Builder.ask",
        lambda _, request: asked.append(request) or answer,
    )
    stats = folder / "cache" / "cached" / "stats.train.json"
    for tokens, times in ((45, 1), (45, 1), (54, 2)):
        stats.write_text(json.dumps({"examples": 5, "targets_tokens": tokens}))
        ensure_stores(dataclasses.replace(corpus, mixture_or_task_name="by_tokens"))
        assert len(asked) == times
