"""Stores that are built when they must be, reused when they may be, and never half there."""

import dataclasses
import json
import os
import pathlib
import sys

import numpy as np
import pyarrow.parquet
import pytest

from t5x_style import files
from t5x_style.data import (
    Contamination,
    Corpus,
    Duplicates,
    Length,
    SharePhase,
    Source,
    ensure_stores,
    missing_stores,
)
from t5x_style.data.building.parts import Job, build_part
from t5x_style.data.building.pool import run_in_pool
from t5x_style.data.building.worker_process import build_stores
from t5x_style.data.formats.format import Part
from t5x_style.data.sources.documents import documents
from t5x_style.data.stores import needed, planned
from t5x_style.data.stores.builder_client import Builder
from t5x_style.data.stores.needed import planned_stores
from t5x_style.data.tokenizers.train import train_tokenizer
from t5x_style.errors import Fault, UsageError
from tests.data.store_helpers import write_jsonl
from tests.disk import RecordedOs


@pytest.fixture
def corpus(tokenizer, tmp_path):
    """Two small sources, one without a validation split."""
    legal = write_jsonl(
        tmp_path / "legal.jsonl", [f"Clause {i} of the licence." for i in range(300)]
    )
    held = write_jsonl(tmp_path / "held.jsonl", [f"Article {i} of it." for i in range(20)])
    general = write_jsonl(tmp_path / "general.jsonl", [f"Country {i}\n\u2581" for i in range(200)])
    return Corpus(
        tokenizer=tokenizer,
        mixture_or_task_name="blend",
        cache_dir=str(tmp_path / "stores"),
        sources=[
            Source(name="legal", splits={"train": legal, "validation": held}),
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
    held = corpus.sources[0].splits["validation"]
    splits = {"train": str(tmp_path / "moved.jsonl"), "validation": held}
    moved = Source(name="legal", splits=splits)
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


def test_what_names_a_document_is_not_what_is_learnt(corpus, tmp_path):
    """Another id_field: the names are there, in a store with the same tokens in the same order."""
    before = ensure_stores(corpus).train["general"]
    sources = [corpus.sources[0], dataclasses.replace(corpus.sources[1], id_field="text")]
    named = dataclasses.replace(corpus, sources=sources)
    assert [plan.task for plan in missing_stores(named)] == ["general"]
    after = ensure_stores(named).train["general"]
    assert after.meta["fingerprint"] == before.meta["fingerprint"]
    np.testing.assert_array_equal(after.tokens, before.tokens)
    names = pyarrow.parquet.read_table(after.path / "documents.parquet")["id"].to_pylist()
    assert names == texts_of(after, corpus.tokenizer)
    assert missing_stores(corpus) == [], "the other one stands, too"


CHANGES = {
    Source: {
        "format": "parquet",
        "text_field": "body",
        "id_field": "key",
        "date_field": "when",
        "license_field": "terms",
        "dates": ("1990", None),
        "validation_from": "2021",
        "undated": "train",
        "on_bad_record": "skip",
        "filters": [Length(min_characters=3)],
    },
    Duplicates: {
        "exact": False,
        "near": False,
        "threshold": 0.7,
        "shingle_words": 4,
        "permutations": 64,
        "across_sources": False,
    },
    Contamination: {
        "ngram": 12,
        "against_validation": False,
        "evaluation_sets": [],
        "max_share": 0.1,
    },
}
# A name is the folder's own; the files count by their content, those of TFDS by where they lie. The
# limit of a record counts where bad records are skipped.
NO_OPTIONS = {
    Source: {
        "name",
        "splits",
        "tfds_name",
        "tfds_data_dir",
        "max_record_bytes",
        "validation_share",
        "validation_seed",
    }
}


def test_every_option_that_changes_a_store_makes_another(tokenizer, tmp_path):
    """A new option has to be put among `CHANGES`, and into what a store is made from."""
    files = {"train": write_jsonl(tmp_path / "a.jsonl", ["some text"])}
    exam = Source(name="exam", splits=files)

    def path_of(changed=None, **options):
        def made(kind, **own):
            return kind(**own | (options if changed is kind else {}))

        source = made(Source, name="a", splits=files, date_field="day", validation_from="2020")
        corpus = Corpus(
            tokenizer=tokenizer,
            mixture_or_task_name="a",
            cache_dir=str(tmp_path / "stores"),
            sources=[source],
            duplicates=made(Duplicates, near=True),
            contamination=made(Contamination, evaluation_sets=[exam]),
        )
        return missing_stores(corpus)[0].path.name

    paths = [
        path_of(),
        path_of(Contamination, evaluation_sets=[dataclasses.replace(exam, id_field="n")]),
        # In the place of validation_from.
        *(
            path_of(Source, validation_from=None, validation_share=share, validation_seed=seed)
            for share, seed in ((0.2, 0), (0.3, 0), (0.2, 1))
        ),
    ]
    for kind, options in CHANGES.items():
        known = {field.name for field in dataclasses.fields(kind)} - NO_OPTIONS.get(kind, set())
        assert known == set(options)
        paths += [path_of(kind, **{name: value}) for name, value in options.items()]
    assert len(set(paths)) == len(paths)


def test_a_part_is_reused_only_as_it_would_be_made_now(corpus, tmp_path):
    part = Part(str(tmp_path / "general.jsonl"), 0, 3000, 3000)
    (tmp_path / "parts").mkdir()
    job = Job(corpus.to_json(), "general", "train", str(tmp_path / "parts"), 0, part)
    assert not job.is_done()
    build_part(job)
    assert job.is_done()
    for changed in (
        {"part": dataclasses.replace(part, stop=2000)},
        {"part": dataclasses.replace(part, path=str(tmp_path / "legal.jsonl"))},
        {"index": str(tmp_path / "ngrams")},
    ):
        assert not dataclasses.replace(job, **changed).is_done(), changed


@pytest.mark.parametrize("suffix", ["tokens", "documents", "json"])
def test_a_part_that_a_power_cut_spoilt_is_made_again(corpus, tmp_path, suffix):
    """Its files have names, and blocks of zeros for what never reached the disk."""
    part = Part(str(tmp_path / "general.jsonl"), 0, 3000, 3000)
    (tmp_path / "parts").mkdir()
    job = Job(corpus.to_json(), "general", "train", str(tmp_path / "parts"), 0, part)
    build_part(job)
    whole = {item: job.file(item).read_bytes() for item in ("tokens", "documents", "json")}
    job.file(suffix).write_bytes(bytes(len(whole[suffix])))
    assert not job.is_done()
    build_part(job)
    assert job.is_done()
    assert {item: job.file(item).read_bytes() for item in whole} == whole


def plans_of(corpus):
    with Builder(corpus) as builder:
        return planned_stores(corpus, builder, remember=True)[1]


def test_what_failed_once_is_tried_again(corpus):
    """Of two sources that fail, the first is named; the other is not remembered for it."""
    path = plans_of(corpus)[0].path
    building = path.with_name(f".building-{path.name}")
    building.mkdir(parents=True)
    (building / "part-00000.failed").write_text('{"fault": "the network was away"}')
    assert ensure_stores(corpus).train["legal"].meta["documents"] == 300


def test_killed_between_the_last_byte_and_the_name(corpus):
    """What was put together is taken as it is, and what it was put together from goes."""
    stores = ensure_stores(corpus)
    path = stores.train["legal"].path
    building = path.with_name(f".building-{path.name}")
    building.mkdir()
    (building / "part-00000.tokens").write_bytes(b"left over")
    path.rename(building / "store")
    first = (building / "store" / "meta.json").stat()
    again = ensure_stores(corpus).train["legal"]
    again.verify()
    assert (again.path / "meta.json").stat().st_mtime_ns == first.st_mtime_ns
    assert not building.exists()


def test_what_was_put_together_from_other_files_is_made_again(corpus, tmp_path):
    """Those of a module's Task are known by size and time alone: an older store, not yet named."""
    path = ensure_stores(corpus).train["legal"].path
    building = path.with_name(f".building-{path.name}")
    building.mkdir()
    path.rename(building / "store")
    meta = building / "store" / "meta.json"
    stamped = json.loads(meta.read_text()) | {"files": [[str(tmp_path / "legal.jsonl"), 1, 1]]}
    meta.write_text(json.dumps(stamped))
    assert ensure_stores(corpus).train["legal"].meta["files"] == []
    assert not building.exists()


@pytest.mark.parametrize("when", ["planned", "read"])
def test_a_file_that_changes_while_it_is_read_makes_no_store(corpus, tmp_path, when):
    """Its fingerprint would be that of other text."""
    plans = plans_of(corpus)

    def grow():
        with open(tmp_path / "general.jsonl", "a") as file:
            file.write('{"text": "a country more"}\n')

    def engine(jobs):
        for job in run_in_pool(jobs, 1):
            if when == "read" and job.task == "general":
                grow()
            yield job

    if when == "planned":
        grow()
    with pytest.raises(Fault, match=r"'general', split 'train': files of .* changed while"):
        build_stores(plans, corpus, engine)
    assert not plans[2].is_built()
    assert not list(pathlib.Path(corpus.cache_dir).glob(".building-*"))
    ensure_stores(corpus)


def test_every_file_is_on_the_disk_before_the_store_has_its_name(corpus, monkeypatch):
    """Or a store could be there after a power cut of which a file is not."""
    recorded = RecordedOs()
    monkeypatch.setattr(files, "os", recorded)
    plans = plans_of(corpus)
    build_stores(plans, corpus, lambda jobs: run_in_pool(jobs, 1))
    for plan in plans:
        building = plan.path.with_name(f".building-{plan.path.name}") / "store"
        names = {file.name for file in plan.path.iterdir()}
        # A builder that finds meta.json takes the store for whole.
        whole = recorded.named(building / "meta.json")
        others = {building / name for name in names - {"meta.json"}}
        assert others <= recorded.synced_before(whole)
        named = recorded.named(plan.path)
        assert {building, building / "meta.json"} <= recorded.synced_before(named)
        assert recorded.events[named + 1][:2] == ("synced", plan.path.parent)


def test_the_shares_of_a_module_are_whole_or_not_there(corpus, monkeypatch, capsys):
    """A later start reads them from the file instead of asking the module."""
    monkeypatch.setattr(needed, "module_digest", lambda *_, **__: "0" * 64)
    theirs = dataclasses.replace(
        corpus, mixture_or_task_module="theirs", mixture_or_task_name="theirs"
    )
    answer = {"shares": {"theirs": {"legal": 0.75, "general": 0.25}}, "splits": {}}

    class Asked:
        requests = 0

        def ask(self, request):
            assert request == {"action": "resolve"}
            self.requests += 1
            return answer

    builder, recorded = Asked(), RecordedOs()
    monkeypatch.setattr(files, "os", recorded)
    for remember, requests in ((False, 1), (True, 2), (True, 2)):
        (phase,), plans = planned_stores(theirs, builder, remember=remember)
        assert builder.requests == requests
        assert phase.start == phase.end == {"legal": 0.75, "general": 0.25}
        assert [plan.task for plan in plans] == ["legal", "legal", "general"]
    (kept,) = pathlib.Path(corpus.cache_dir).glob("blend-*.json")
    named = recorded.named(kept)
    assert recorded.events[named - 1][::2] == ("synced", json.dumps(answer).encode())
    assert recorded.events[named + 1][:2] == ("synced", kept.parent)
    for broken in ("", '{"shares": ', '{"shares": {}}', "[]"):
        kept.write_text(broken)
        requests = builder.requests
        (phase,), _ = planned_stores(theirs, builder, remember=True)
        assert phase.start == {"legal": 0.75, "general": 0.25}
        assert builder.requests == requests + 1
        assert f"{kept} is broken, and is made again" in capsys.readouterr().err
        assert json.loads(kept.read_text()) == answer


@pytest.mark.parametrize("cached", [False, True])
def test_the_store_of_a_task_depends_on_the_caches_that_it_is_read_from(
    corpus, monkeypatch, cached
):
    monkeypatch.setattr(planned, "module_digest", lambda *_, **__: "0" * 64)
    theirs = [
        planned.plan_store(
            dataclasses.replace(
                corpus,
                mixture_or_task_module="theirs",
                use_cached_tasks=cached,
                cached_task_dirs=[folder],
            ),
            "a task",
            "train",
            [],
            remember=False,
        )
        for folder in ("one", "two", str(pathlib.Path("one").absolute()))
    ]
    assert (theirs[0].fingerprint != theirs[1].fingerprint) == cached
    assert theirs[0].fingerprint == theirs[2].fingerprint, "config.gin has paths absolute"


def test_a_source_without_a_share_is_not_trained_on(corpus):
    without = dataclasses.replace(corpus, mixtures={"blend": {"legal": 1.0, "general": 0.0}})
    (phase,), plans = planned_stores(without, Builder(without), remember=False)
    assert phase.start == {"legal": 1.0}
    assert "general" not in {plan.task for plan in plans if plan.split == "train"}


def another_tokenizer(embedded, tmp_path):
    texts = {"a": documents(embedded["general"], "validation")}
    return train_tokenizer(
        texts, {"a": 1.0}, vocab_size=400, path=tmp_path / "other.model", sample_bytes=50_000
    )
