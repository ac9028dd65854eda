"""Text that is held out is not trained on: by file before any work, by document after the build."""

import dataclasses
import gzip
import json
import pathlib
import re

import numpy as np
import pytest

from t5x_style.data import (
    Contamination,
    Corpus,
    Duplicates,
    Source,
    Tokenizer,
    ensure_stores,
    missing_stores,
)
from t5x_style.errors import UsageError


def write(path, texts, **fields):
    """A line for each text; `fields` are lists of as many values."""
    rows = [{"text": text} for text in texts]
    for name, values in fields.items():
        for row, value in zip(rows, values, strict=True):
            row |= {} if value is None else {name: value}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def clauses(first, end):
    return [f"Clause {number} of the lease, as agreed." for number in range(first, end)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """`data/train.jsonl` and `data/val.jsonl`, which share no document."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("data").mkdir()
    write(pathlib.Path("data/train.jsonl"), clauses(0, 26))
    write(pathlib.Path("data/val.jsonl"), clauses(26, 30))
    return tmp_path


def corpus(*sources, **options):
    mixtures = {"blend": {source.name: 1 / len(sources) for source in sources}}
    fields = {"mixtures": mixtures, "mixture_or_task_name": "blend", "cache_dir": "stores"}
    return Corpus(Tokenizer("bytes"), sources=sources, workers=1, **fields | options)


def source(name="d", **fields):
    splits = {"train": "data/train.jsonl", "validation": "data/val.jsonl"}
    return Source(**{"name": name, "splits": splits} | fields)


ALL = {"train": "data/*.jsonl", "validation": "data/val.jsonl"}


@pytest.mark.parametrize(
    ("sources", "named"),
    [
        ([source(splits=ALL)], ["'d' train", "data/val.jsonl", "'d' validation"]),
        (
            [source(splits={"train": "data/val.jsonl", "validation": "data/val.jsonl"})],
            ["'d' train", "data/val.jsonl", "'d' validation"],
        ),
        (
            [source(), source("other", splits={"train": "data/val.jsonl"})],
            ["'other' train", "data/val.jsonl", "'d' validation"],
        ),
        # The same documents of the same file, chosen by the same dates.
        (
            [source(splits=ALL, date_field="day", dates=("2020", None))],
            ["'d' train", "data/val.jsonl", "'d' validation"],
        ),
    ],
)
def test_a_file_that_is_trained_on_and_held_out_is_refused_before_work(folder, sources, named):
    for ask in (missing_stores, ensure_stores, lambda it: ensure_stores(it, build=False)):
        with pytest.raises(UsageError) as refused:
            ask(corpus(*sources))
        for words in named:
            assert words in str(refused.value)
    assert not pathlib.Path("stores").exists() or not list(pathlib.Path("stores").glob("*/"))


def test_a_copy_of_a_file_is_that_file(folder):
    """Under another name, as a link, and in another folder."""
    pathlib.Path("more").mkdir()
    pathlib.Path("more/a copy.jsonl").write_bytes(pathlib.Path("data/val.jsonl").read_bytes())
    pathlib.Path("linked.jsonl").symlink_to("data/val.jsonl")
    for name in ("more/a copy.jsonl", "linked.jsonl"):
        splits = {"train": name, "validation": "data/val.jsonl"}
        with pytest.raises(UsageError, match=f"{name}.*data/val.jsonl"):
            missing_stores(corpus(source(splits=splits)))


def test_files_that_are_divided_by_date_are_shared_by_design(folder):
    days = [f"20{year}-01-01" for year in range(10, 20)]
    write(pathlib.Path("data/dated.jsonl"), clauses(0, 10), day=days)
    dated = source("a", splits={"train": "data/dated.jsonl"}, date_field="day")
    one = dataclasses.replace(dated, validation_from="2018")
    assert [len(stores.document_ends) for stores in opened(corpus(one))] == [8, 2]
    # A curriculum: two sources of the same file with other dates.
    old = dataclasses.replace(dated, dates=(None, "2014"), validation_from="2013")
    new = dataclasses.replace(dated, name="b", dates=("2014", None), validation_from="2018-06")
    counts = [len(store.document_ends) for store in opened(corpus(old, new))]
    assert counts == [3, 5, 1, 1]
    # The second trains on what the first holds out.
    late = dataclasses.replace(dated, name="b", dates=("2012", "2014"))
    with pytest.raises(UsageError, match=r"'b' train.*'a' validation"):
        missing_stores(corpus(old, late))


def opened(some):
    stores = ensure_stores(some)
    return [*stores.train.values(), *stores.validation.values()]


def test_an_empty_file_in_both_splits_holds_nothing_back(folder):
    for name in ("data/train", "data/val"):
        pathlib.Path(name).mkdir()
        pathlib.Path(name, "empty.txt").write_text("")
        pathlib.Path(name, "full.txt").write_text(name)
    texts = {"train": "data/train/*.txt", "validation": "data/val/*.txt"}
    assert len(opened(corpus(source(splits=texts, format="text")))) == 2


def test_files_that_are_read_twice_are_told(folder):
    original = pathlib.Path("data/train.jsonl")
    pathlib.Path("data/train.jsonl.gz").write_bytes(gzip.compress(original.read_bytes()))
    pathlib.Path("data/train_again.jsonl").write_bytes(original.read_bytes())
    pathlib.Path("data/train_link.jsonl").symlink_to("train.jsonl")
    twice = source(splits={"train": "data/train*", "validation": "data/val.jsonl"})
    notices = ensure_stores(corpus(twice)).notices
    (told,) = [notice for notice in notices if "twice" in notice]
    for name in ("train.jsonl.gz", "train_again.jsonl", "train_link.jsonl"):
        assert f"data/{name}" in told
    assert "'d' train" in told
    # A split that is cut out of the train files does not repeat it.
    divided = source(splits={"train": "data/train*"}, validation_share=0.2)
    notices = ensure_stores(corpus(divided)).notices
    assert len([notice for notice in notices if "twice" in notice]) == 1
    assert not ensure_stores(corpus(source())).notices
    # Another source that reads the file.
    told = ensure_stores(corpus(source(), source("e"))).notices
    for split, name in (("train", "train"), ("validation", "val")):
        assert re.search(f"'d' {split}.*'e' {split}.*data/{name}.jsonl", "\n".join(told))
    assert len(told) == 2


def test_a_document_that_is_trained_on_and_held_out_is_refused(folder):
    """Three of four are in another source's train split, one of them with other line breaks."""
    texts = [*clauses(50, 60), *clauses(27, 29), "Clause  29\nof the lease,\tas agreed. "]
    write(pathlib.Path("data/more.jsonl"), texts, id=[f"m{n}" for n in range(13)])
    more = source("more", splits={"train": "data/more.jsonl"}, id_field="id")
    some = corpus(source(), more)
    for _ in range(2):
        with pytest.raises(UsageError) as refused:
            ensure_stores(some)
        message = str(refused.value)
        for words in ("3 of the 4", "75 %", "'d' validation", "'more' train", "Clause 27 of"):
            assert words in message
        assert "Corpus.duplicates = @Duplicates()" in message
        assert "'d' train" not in message
    # What drops the copies from the train split also lets the run begin.
    exact = ensure_stores(dataclasses.replace(some, duplicates=Duplicates()))
    assert len(exact.train["more"].document_ends) == 10
    grams = Contamination(ngram=8)
    many = dataclasses.replace(some, contamination=grams, cache_dir="others")
    long = [" ".join(f"word{n}{k}" for k in range(20)) for n in range(5)]
    write(pathlib.Path("data/val.jsonl"), long[:3])
    write(pathlib.Path("data/more.jsonl"), long[2:], id=["a", "b", "c"])
    assert len(ensure_stores(many).train["more"].document_ends) == 2


def test_duplicates_within_each_source_leave_a_copy_in_another(folder):
    write(pathlib.Path("data/more.jsonl"), clauses(26, 40))
    more = source("more", splits={"train": "data/more.jsonl"})
    within = Duplicates(across_sources=False)
    with pytest.raises(UsageError, match=r"(?s)4 of the 4.*Duplicates\.across_sources = True"):
        ensure_stores(corpus(source(), more, duplicates=within))


def test_every_store_has_a_digest_for_each_document(folder):
    for store in opened(corpus(source())):
        digests = np.load(store.path / "digests.npy")
        assert digests.shape == (len(store.document_ends), 16)
        assert len(np.unique(digests, axis=0)) == len(digests)
        assert "digests.npy" in store.meta["checksums"]


def test_a_start_does_not_compare_again_what_it_knows_to_be_apart(folder, monkeypatch):
    from t5x_style.data.stores import held_out

    compared = []
    real = held_out.shared_documents
    monkeypatch.setattr(
        held_out, "shared_documents", lambda *paths: compared.append(paths) or real(*paths)
    )
    ensure_stores(corpus(source()))
    assert len(compared) == 1
    ensure_stores(corpus(source()))
    ensure_stores(corpus(source()), build=False)
    assert len(compared) == 1
    # A damaged note is made again, and a store that was made again is compared again.
    (note,) = pathlib.Path("stores").glob("held_out*.json")
    note.write_text("{")
    ensure_stores(corpus(source()))
    assert len(compared) == 2
    meta = next(pathlib.Path("stores").glob("d-train-*")) / "meta.json"
    meta.write_text(meta.read_text().replace('"source": "d"', '"source":  "d"'))
    ensure_stores(corpus(source()))
    assert len(compared) == 3


def test_documents_are_found_whatever_the_order_and_number(tmp_path):
    """Against Python's own sets, with digests that agree in one half alone."""
    from t5x_style.data.stores import held_out

    rng = np.random.default_rng(0)
    for trial in range(20):
        rows = rng.integers(0, 2, (50, 16), np.uint8) * (np.arange(16) % 8 == 0)
        train, validation = rows[: 10 + trial], rows[10 + trial :]
        for name, digests in (("train", train), ("validation", validation)):
            (tmp_path / name).mkdir(exist_ok=True)
            np.save(tmp_path / name / "digests.npy", digests)
        found = held_out.shared_documents(tmp_path / "train", tmp_path / "validation")
        known = {row.tobytes() for row in train}
        assert found.tolist() == [
            number for number, row in enumerate(validation) if row.tobytes() in known
        ]


def test_a_share_of_0_is_evaluated_and_not_trained_on(folder):
    """Train on the domain, watch the general text: the second needs no train files."""
    write(pathlib.Path("data/general.jsonl"), clauses(40, 47))
    general = source("general", splits={"validation": "data/general.jsonl"})
    some = corpus(source(), general, mixtures={"blend": {"d": 1.0, "general": 0}})
    stores = ensure_stores(some)
    assert list(stores.train) == ["d"]
    assert {name: len(store.document_ends) for name, store in stores.validation.items()} == {
        "d": 4,
        "general": 7,
    }
    assert [dict(phase.start) for phase in stores.phases] == [{"d": 1.0}]
    assert not list(pathlib.Path("stores").glob("general-train-*"))
    # Trained on in a later phase: its train files are needed after all.
    phases = [("d", 1000), ("blend", None)]
    later = dataclasses.replace(some, mixture_or_task_name=phases)
    assert list(ensure_stores(later).validation) == ["d", "general"]
    half = dataclasses.replace(some, mixtures={"blend": {"d": 0.5, "general": 0.5}})
    with pytest.raises(UsageError, match=r"'general' has no 'train'.*share of 0"):
        missing_stores(half)


def test_what_is_held_out_of_a_share_of_0_is_not_trained_on_either(folder):
    general = source("general", splits={"train": "data/val.jsonl", "validation": "data/val.jsonl"})
    some = corpus(source(splits={"train": "data/*.jsonl"}), general)
    watched = dataclasses.replace(some, mixtures={"blend": {"d": 1.0, "general": 0}})
    with pytest.raises(UsageError, match="'d' train and 'general' validation"):
        missing_stores(watched)


def test_sources_that_are_never_evaluated_are_told_once(folder):
    alone = source("alone", splits={"train": "data/train.jsonl"}, text_field="text")
    write(pathlib.Path("data/train.jsonl"), clauses(0, 26))
    write(pathlib.Path("data/other.jsonl"), clauses(100, 110))
    other = source("other", splits={"train": "data/other.jsonl"})
    held = source("held", splits={"validation": "data/val.jsonl"})
    shares = {"alone": 1.0, "held": 0, "other": 0}
    notices = ensure_stores(corpus(alone, held, other, mixtures={"blend": shares})).notices
    assert [re.match(r"'\w+'[^:]*", notice)[0] for notice in notices] == [
        "'alone' is trained on and never evaluated",
        "'other' has a share of 0 and no validation split",
    ]


def test_a_corpus_that_is_only_evaluated_needs_no_train_files_and_builds_no_train_store(folder):
    exam = source("exam", splits={"validation": "data/val.jsonl"})
    alone = corpus(exam, mixture_or_task_name="exam")
    stores = ensure_stores(alone, evaluate_only=True)
    assert (list(stores.validation), stores.train) == (["exam"], {})
    with pytest.raises(UsageError, match="'exam' has no 'train'"):
        ensure_stores(alone)
    # What a run may not do, an evaluation may: a file of both splits.
    both = corpus(source(splits=ALL), cache_dir="others")
    assert list(ensure_stores(both, evaluate_only=True).validation) == ["d"]
    assert not list(pathlib.Path("others").glob("d-train-*"))


def test_what_a_run_was_trained_on_is_known_by_its_stores(folder):
    """Of another corpus, vocabulary and cleaning; a store that is gone says nothing."""
    from t5x_style.data.stores.held_out import seen_by_run

    run = ensure_stores(corpus(source()))
    write(pathlib.Path("data/exam.jsonl"), [*clauses(24, 26), *clauses(80, 83)], id=list("abcde"))
    exam = source("exam", splits={"validation": "data/exam.jsonl"}, id_field="id")
    other = corpus(exam, mixture_or_task_name="exam", cache_dir="others", seed=3)
    held = ensure_stores(other, evaluate_only=True).validation
    trained_on = {"d": str(run.train["d"].path), "gone": "stores/nowhere"}
    (notice,) = seen_by_run(trained_on, held, other.tokenizer)
    for words in ("2 of the 5", "40 %", "'exam' validation", "'d' train", "a 'Clause 24"):
        assert words in notice
    assert seen_by_run(trained_on, run.validation, other.tokenizer) == []


def test_the_stores_of_a_plan_are_looked_for_in_a_folder_of_the_user(tmp_path):
    """The plan may be a stranger's: no folder that it names is opened."""
    from t5x_style.data.stores.held_out import stores_by_name

    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for folder in (mine / "law-train-1", theirs / "law-train-1", theirs / "web-train-2"):
        folder.mkdir(parents=True)
    named = {
        "law": str(theirs / "law-train-1"),
        "web": str(theirs / "web-train-2"),
        "gone": "/nowhere/gone-train-3",
        "up": "/nowhere/..",
    }
    found, notices = stores_by_name(named, mine)
    assert found == {
        "law": str(mine / "law-train-1"),
        "web": str(mine / "web-train-2"),
        "gone": str(mine / "gone-train-3"),
    }
    (notice,) = notices
    assert notice.startswith(
        f"{theirs / 'web-train-2'}, the text of 'web' that the run was trained"
    )
