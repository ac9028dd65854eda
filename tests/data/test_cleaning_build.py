"""Documents that repeat others, or hold text of evaluation sets, planted and found in stores."""

import dataclasses
import json
import pathlib
import re
import shutil

import numpy as np
import pyarrow.parquet
import pytest

from t5x_style import files
from t5x_style.data import (
    Contamination,
    Corpus,
    Duplicates,
    Source,
    Tokenizer,
    TokenStore,
    ensure_stores,
    missing_stores,
)
from t5x_style.data.building.decontaminate import ensure_index
from t5x_style.data.cleaning.contamination import Index
from t5x_style.data.cleaning.words import words_of_texts
from t5x_style.data.sources.normal_form import document_digest
from t5x_style.errors import Fault, UsageError
from tests.disk import RecordedOs

WORDS = [f"word{i}" for i in range(3000)]


def text(seed, words=200):
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def near(seed):
    """All but three words in the middle: most shingles of five words stay."""
    words = text(seed).split()
    return " ".join([*words[:100], "these", "are", "others", *words[103:]])


def write(path, documents):
    path.write_text(
        "".join(json.dumps({"text": t, "id": name}) + "\n" for name, t in documents.items())
    )
    return str(path)


@pytest.fixture
def corpus(tmp_path):
    """Two sources with a validation split each, and what is wrong with them planted."""
    planted = {
        "law held": {"held0": text(900), "held1": text(901)},
        "law": {
            "a0": text(0),
            "a1": text(1),
            "again a0": text(0),
            "spaced a1": text(1).replace(" ", " \n"),
            "near a0": near(0),
            "is held0": text(900),
            "quotes held1": text(2, 100) + " " + " ".join(text(901).split()[50:70]) + " end",
            "twelve of held1": text(3, 100) + " " + " ".join(text(901).split()[50:62]) + " end",
            "a4": text(4),
        },
        "web held": {"held2": text(902)},
        "web": {
            "law's a1": text(1),
            "near law's a4": near(4),
            "w0": text(5),
            "near w0": near(5),
            "quotes the exam": text(6, 50) + " " + " ".join(text(990).split()[:40]),
            "w1": text(7),
        },
        "exam": {"question": text(990, 60), "short": "too short a text"},
    }
    files = {name: write(tmp_path / f"{name}.jsonl", docs) for name, docs in planted.items()}
    sources = [
        Source(name=name, splits={"train": files[name], "validation": files[f"{name} held"]})
        for name in ("law", "web")
    ]
    return Corpus(
        tokenizer=Tokenizer("bytes"),
        mixture_or_task_name="both",
        cache_dir=str(tmp_path / "stores"),
        sources=[dataclasses.replace(source, id_field="id") for source in sources],
        mixtures={"both": {"law": 0.5, "web": 0.5}},
        workers=1,
        duplicates=Duplicates(near=True),
        contamination=Contamination(
            evaluation_sets=[Source(name="exam", splits={"train": files["exam"]}, id_field="id")]
        ),
    )


def kept(store):
    return set(pyarrow.parquet.read_table(store.path / "documents.parquet")["id"].to_pylist())


def dropped(store):
    rows = pyarrow.parquet.read_table(store.path / "dropped.parquet").to_pylist()
    return {row["id"]: (row["reason"], row["detail"]) for row in rows}


def test_what_is_said_twice_or_asked_in_an_exam_is_dropped_and_named(corpus):
    stores = ensure_stores(corpus)
    law, web = stores.train["law"], stores.train["web"]
    assert kept(law) == {"a0", "a1", "twelve of held1", "a4"}
    found = dropped(law)
    assert found["again a0"] == ("duplicate", "a0")
    assert found["spaced a1"] == ("duplicate", "a1")
    assert found["near a0"] == ("near_duplicate", "a0")
    reason, detail = found["is held0"]
    assert reason == "contaminated"
    assert detail == "100% of its words are in runs of law validation, most of them in held0"
    reason, detail = found["quotes held1"]
    assert reason == "contaminated"
    assert "17% of its words" in detail
    assert detail.endswith("held1")
    assert law.meta["filtered"] == {"duplicate": 2, "near_duplicate": 1, "contaminated": 2}
    # What is held out is not looked for in itself.
    held = stores.validation["law"]
    assert held.meta["filtered"] == {"duplicate": 0, "near_duplicate": 0}

    assert kept(web) == {"w0", "w1"}
    found = dropped(web)
    assert found["law's a1"] == ("duplicate", "a1 of law train")
    assert found["near law's a4"] == ("near_duplicate", "a4 of law train")
    assert found["near w0"] == ("near_duplicate", "w0")
    assert found["quotes the exam"][0] == "contaminated"
    assert found["quotes the exam"][1].endswith("of exam, most of them in question")
    for store in (law, web):
        # Nothing is lost on the way: what was read is kept or named.
        assert len(kept(store)) + len(dropped(store)) == {"law": 9, "web": 6}[store.meta["source"]]
        store.verify()
    assert stores.validation["law"].meta["documents"] == 2
    assert missing_stores(corpus) == []


def test_what_has_no_id_is_named_by_its_place(corpus, tmp_path):
    sources = [dataclasses.replace(source, id_field=None) for source in corpus.sources]
    stores = ensure_stores(dataclasses.replace(corpus, sources=sources, contamination=None)).train

    def details(store):
        rows = pyarrow.parquet.read_table(store.path / "dropped.parquet").to_pylist()
        return [row["detail"] for row in rows if row["reason"] == "duplicate"]

    second = len(json.dumps({"text": text(0), "id": "a0"})) + 1
    law = tmp_path / "law.jsonl"
    first = [f"{law} byte {at}" for at in (0, second)]
    *own, held = details(stores["law"])
    assert own == first
    assert re.fullmatch(r"document [01] of law validation", held)
    (repeated,) = details(stores["web"])
    assert re.fullmatch(r"document \d of law train", repeated)


def test_a_changed_byte_in_the_fingerprints_is_found(corpus):
    store = ensure_stores(corpus).train["law"]
    for name in ("digests.npy", "signatures.npy"):
        content = bytearray((store.path / name).read_bytes())
        content[-1] ^= 1
        (store.path / name).write_bytes(content)
        with pytest.raises(Fault, match=name):
            store.verify()
        content[-1] ^= 1
        (store.path / name).write_bytes(content)
    store.verify()


@pytest.mark.parametrize("name", ["digests.npy", "signatures.npy"])
def test_a_store_without_whole_fingerprints_is_named(corpus, name):
    stores = ensure_stores(corpus)
    shutil.rmtree(stores.train["web"].path)
    file = stores.train["law"].path / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(Fault, match=rf"law-train-.*{name} has changed since it was built"):
        ensure_stores(corpus)


def test_workers_and_a_kill_between_leave_no_trace(corpus, tmp_path):
    """Two workers, and a second builder that finds the first stores there, make the same bytes."""
    once = ensure_stores(corpus).train
    other = dataclasses.replace(corpus, cache_dir=str(tmp_path / "other"), workers=2)
    # As after a kill: the stores of what is held out stand, those of the first source, too.
    ensure_stores(dataclasses.replace(other, mixture_or_task_name="law"))
    twice = ensure_stores(other).train
    for name, store in once.items():
        assert twice[name].path.name == store.path.name
        for file in sorted(store.path.iterdir()):
            assert (twice[name].path / file.name).read_bytes() == file.read_bytes(), file.name


def test_an_index_is_of_what_is_looked_for_now(corpus, tmp_path):
    held = [store.path for store in ensure_stores(corpus).validation.values()]

    def index(against=held, **options):
        some = dataclasses.replace(corpus.contamination, **options)
        return ensure_index(against, dataclasses.replace(corpus, contamination=some))

    first = index()
    assert index() == first
    assert [path.name for path in first.parent.glob("ngrams-*")] == [first.name], "the build's own"
    others = [index(held[:1]), index(ngram=12), index(evaluation_sets=[])]
    write(tmp_path / "exam.jsonl", {"another": text(991)})
    meta = held[0] / "meta.json"
    changed = [index()]
    meta.write_text(meta.read_text() + "\n")
    changed.append(index())
    assert len({first, *others, *changed}) == 6
    assert share(changed[0], 991) == 1
    assert share(first, 991) == 0


@pytest.mark.parametrize(
    "name", ["documents.uint32", "filter.uint8", "hashes.uint64", "names.json"]
)
def test_an_index_that_was_cut_is_made_again_with_a_warning(name, corpus, capsys):
    """It would have found less than there is, and said nothing."""
    held = [store.path for store in ensure_stores(corpus).validation.values()]
    file = ensure_index(held, corpus) / name
    whole = file.read_bytes()
    for cut in (whole[: len(whole) // 16 * 8], b""):
        file.write_bytes(cut)
        assert ensure_index(held, corpus) == file.parent
        assert f"{file.parent} is broken, and is made again" in capsys.readouterr().err
        assert file.read_bytes() == whole


def test_bad_records_of_an_evaluation_set_are_told(corpus, tmp_path, capsys):
    """What an exam cannot say, nobody looks for."""
    (tmp_path / "odd.jsonl").write_text('{"text": 7}\n{"text": "' + text(992) + '"}\nbroken\n')
    splits = {"train": str(tmp_path / "odd.jsonl"), "validation": str(tmp_path / "exam.jsonl")}
    odd = Source(name="odd", splits=splits, on_bad_record="skip")
    some = dataclasses.replace(corpus.contamination, evaluation_sets=[odd])
    index = ensure_index([], dataclasses.replace(corpus, contamination=some))
    assert share(index, 992) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if "bad records" in line]
    assert told == [
        f"contamination: bad records of odd train skipped, and not looked for: 2, the first of "
        f"them {tmp_path}/odd.jsonl:1: field 'text' is a int, not a string"
    ]


def test_an_index_is_on_the_disk_before_it_has_its_name(corpus, monkeypatch):
    held = [store.path for store in ensure_stores(corpus).validation.values()]
    recorded = RecordedOs()
    monkeypatch.setattr(files, "os", recorded)
    alone = dataclasses.replace(corpus.contamination, evaluation_sets=[])
    index = ensure_index(held, dataclasses.replace(corpus, contamination=alone))
    names = ["documents.uint32", "filter.uint8", "hashes.uint64", "names.json"]
    named = recorded.named(index)
    building = index.with_name(f".building-{index.name}")
    assert recorded.events[named].held == names
    assert {building / name for name in names} < recorded.synced_before(named)
    assert recorded.synced_after(named) == {index.parent}


def test_a_share_that_may_be_quoted(corpus):
    """A sixth of one document is law's held1, a half of another is the exam."""
    some = dataclasses.replace(corpus.contamination, max_share=0.2)
    stores = ensure_stores(dataclasses.replace(corpus, duplicates=None, contamination=some)).train
    assert "quotes held1" in kept(stores["law"])
    assert set(dropped(stores["law"])) == {"is held0"}
    assert set(dropped(stores["web"])) == {"quotes the exam"}


def test_the_order_of_the_sources_decides_who_comes_first_and_that_of_the_blend_does_not(corpus):
    """`config.gin` is written with dictionaries sorted: a restart from it must find its stores."""
    web_first = dataclasses.replace(corpus, mixtures={"both": {"web": 0.5, "law": 0.5}})
    stores = ensure_stores(web_first)
    assert kept(stores.train["law"]) == {"a0", "a1", "twelve of held1", "a4"}
    assert dropped(stores.train["web"])["law's a1"] == ("duplicate", "a1 of law train")
    assert missing_stores(corpus) == []
    ramp = [("web", 1000), ("law", "both", 1000), ("both", None)]
    assert missing_stores(dataclasses.replace(corpus, mixture_or_task_name=ramp)) == []
    turned = ensure_stores(dataclasses.replace(corpus, sources=corpus.sources[::-1]))
    assert kept(turned.train["web"]) >= {"law's a1", "near law's a4"}
    assert dropped(turned.train["law"])["a1"] == ("duplicate", "law's a1 of web train")


def share(index, seed):
    """How much of a text is in the index in a folder."""
    (found,) = Index(index).overlaps(words_of_texts([text(seed)]))
    return found.share


def tokenised(corpus):
    """What changes if the ids of a part are written again."""
    files = pathlib.Path(corpus.cache_dir).glob("parts-*/*")
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


@pytest.mark.parametrize(
    "changed",
    [
        {"mixtures": {"both": {"law": 1.0}}},
        {"duplicates": Duplicates(near=True, threshold=0.95)},
        {"duplicates": Duplicates()},
        {"duplicates": None},
        {"contamination": Contamination(ngram=10, max_share=0.1)},
        {"contamination": None},
    ],
)
def test_other_cleaning_and_another_blend_tokenise_nothing(corpus, tmp_path, changed):
    ensure_stores(corpus)
    before = tokenised(corpus)
    assert len(before) == 4 * 3  # train and validation of two sources
    other = dataclasses.replace(corpus, **changed)
    assert missing_stores(other)
    again = ensure_stores(other)
    assert tokenised(corpus).items() <= before.items()
    # The stores are those of a builder that never saw the others.
    fresh = ensure_stores(dataclasses.replace(other, cache_dir=str(tmp_path / "fresh")))
    for name, store in again.train.items():
        assert store.meta["checksums"] == fresh.train[name].meta["checksums"]
        assert store.meta["filtered"] == fresh.train[name].meta["filtered"]


def test_tokenised_parts_that_are_damaged_or_gone_are_made_again(corpus):
    stores = ensure_stores(corpus).train
    (law,) = pathlib.Path(corpus.cache_dir).glob("parts-law-train-*/part-00000.tokens")
    whole = law.read_bytes()
    law.write_bytes(whole[:-2])
    (web,) = pathlib.Path(corpus.cache_dir).glob("parts-web-train-*")
    shutil.rmtree(web)
    assert missing_stores(corpus) == [], "the stores do not need them"
    stores["law"].verify()
    strict = dataclasses.replace(corpus, duplicates=Duplicates(near=True, threshold=0.95))
    ensure_stores(strict)
    assert law.read_bytes() == whole
    assert len(tokenised(corpus)) == 4 * 3


def han(seed, count):
    """Clauses of Han characters, as a text without spaces has them."""
    rng = np.random.default_rng(seed)
    clauses = [rng.integers(0x4E00, 0x9FA6, n) for n in rng.integers(12, 24, count)]
    return "，".join("".join(map(chr, clause)) for clause in clauses) + "。"


def test_chinese_held_out_text_is_found_in_quotations_and_under_other_line_breaks(corpus, tmp_path):
    short = {f"held{i}": han(i, 6) for i in range(20)}
    long = {f"long{i}": han(100 + i, 40) for i in range(20)}
    train = {
        f"quotes {name}": han(200 + i, 2)[:30] + text
        for i, (name, text) in enumerate(short.items())
    }
    for name, text in long.items():
        train[f"broken {name}"] = "\n".join(text[i : i + 20] for i in range(0, len(text), 20))
    train |= {f"own{i}": han(300 + i, 10) for i in range(20)}
    write(tmp_path / "law held.jsonl", short | long)
    write(tmp_path / "law.jsonl", train)
    alone = dataclasses.replace(corpus, mixture_or_task_name="law")
    exact = {"duplicates": Duplicates(), "contamination": None}
    for cleaning, found in (({"duplicates": None}, 40), (exact, 20)):
        law = ensure_stores(dataclasses.replace(alone, **cleaning)).train["law"]
        assert len(dropped(law)) == found
        assert kept(law) >= {f"own{i}" for i in range(20)}
    assert {reason for reason, _ in dropped(law).values()} == {"duplicate"}


def test_each_source_by_itself(corpus):
    alone = Duplicates(near=True, across_sources=False)
    web = ensure_stores(dataclasses.replace(corpus, duplicates=alone, contamination=None)).train[
        "web"
    ]
    assert kept(web) == {"law's a1", "near law's a4", "w0", "quotes the exam", "w1"}
    assert dropped(web) == {"near w0": ("near_duplicate", "w0")}


def test_a_store_depends_on_what_it_was_cleaned_against(corpus, tmp_path):
    """And one that is not cleaned on nothing of the kind."""
    plain = dataclasses.replace(corpus, duplicates=None, contamination=None)

    def fingerprints(corpus):
        return {(plan.task, plan.split): plan.fingerprint for plan in missing_stores(corpus)}

    before, plain_before = fingerprints(corpus), fingerprints(plain)
    with open(tmp_path / "law held.jsonl", "a") as file:
        file.write(json.dumps({"text": text(903), "id": "new"}) + "\n")
    after, plain_after = fingerprints(corpus), fingerprints(plain)
    assert [item for item in before if before[item] == after[item]] == []
    unchanged = [item for item in plain_before if plain_before[item] == plain_after[item]]
    assert unchanged == [("law", "train"), ("web", "train"), ("web", "validation")]
    # Web's validation split is held against law's only where that may share documents.
    assert before["web", "validation"] != plain_before["web", "validation"]


def test_the_fingerprint_of_an_uncleaned_store_is_what_it_was(tmp_path):
    """The order of documents follows from it: the quick start's numbers do."""
    write(tmp_path / "a.jsonl", {"x": "some text"})
    corpus = Corpus(
        tokenizer=Tokenizer("bytes"),
        mixture_or_task_name="a",
        cache_dir=str(tmp_path / "stores"),
        sources=[Source(name="a", splits={"train": str(tmp_path / "a.jsonl")})],
    )
    (plan,) = missing_stores(corpus)
    assert plan.fingerprint == "1fde7cf436adbf72d4d70a9dbc82add0cb9d284bf27148d80c134e091a1fdd91"


def test_a_store_that_was_made_again_is_looked_at_again(corpus):
    """What a Task of a module reads is not in its fingerprint: it may change under one name."""
    stores = ensure_stores(corpus)
    meta = stores.validation["law"].path / "meta.json"
    meta.write_text(meta.read_text().replace('"source": "law"', '"source":  "law"'))
    missing = {(plan.task, plan.split) for plan in missing_stores(corpus)}
    assert missing == {("law", "train"), ("web", "train"), ("web", "validation")}
    ensure_stores(corpus)
    assert missing_stores(corpus) == []


def test_what_follows_a_store_that_is_gone_is_built_with_it(corpus, tmp_path):
    """A file of a Task that changed tells of its own store alone: no meta.json is another."""
    path = ensure_stores(corpus).validation["web"].path
    watched = tmp_path / "watched"
    watched.write_text("as it was")
    meta = json.loads((path / "meta.json").read_text())
    stat = watched.stat()
    meta["files"] = [[str(watched), stat.st_size, stat.st_mtime_ns]]
    (path / "meta.json").write_text(json.dumps(meta))
    ensure_stores(corpus)
    assert missing_stores(corpus) == []
    watched.write_text("another length")
    missing = {(plan.task, plan.split) for plan in missing_stores(corpus)}
    assert missing == {("web", "validation"), ("law", "train"), ("web", "train")}


def test_a_vocabulary_that_loses_characters_hides_nothing(corpus, tmp_path):
    import sentencepiece

    model = tmp_path / "lossy.model"
    with open(model, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([text(0), text(1)] * 5),
            model_writer=file,
            vocab_size=40,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    strange = "\u4e00 \u4e8c \u4e09 \u56db " + " ".join(f"caf\u00e9{i}" for i in range(40))
    write(tmp_path / "law held.jsonl", {"held": strange})
    write(tmp_path / "law.jsonl", {"copy": strange + " more", "other": text(3)})
    lossy = dataclasses.replace(corpus, tokenizer=Tokenizer(str(model)), duplicates=None)
    law = ensure_stores(lossy).train["law"]
    assert law.meta["filtered"] == {"contaminated": 1}
    assert kept(law) == {"other"}


def test_nothing_to_look_for_and_nothing_left_are_said(corpus, tmp_path):
    nothing = dataclasses.replace(
        corpus,
        sources=[
            dataclasses.replace(source, splits={"train": source.splits["train"]})
            for source in corpus.sources
        ],
        contamination=Contamination(),
    )
    with pytest.raises(UsageError, match="contamination has nothing to look for"):
        missing_stores(nothing)
    write(tmp_path / "law.jsonl", {"copy": text(900)})
    with pytest.raises(
        Fault, match=r"'law', split 'train': not one document is left \(dropped: 1 c"
    ):
        ensure_stores(corpus)


def test_the_corpus_goes_through_json(corpus):
    again = Corpus.from_json(corpus.to_json())
    assert again.duplicates == corpus.duplicates
    assert again.contamination == dataclasses.replace(
        corpus.contamination, evaluation_sets=tuple(corpus.contamination.evaluation_sets)
    )
    assert again.to_json() == corpus.to_json()


def test_an_open_store_tells_of_its_fingerprints(corpus):
    store = ensure_stores(corpus).train["law"]
    digests = np.load(store.path / "digests.npy")
    signatures = np.load(store.path / "signatures.npy")
    assert digests.shape == (4, 16)
    assert signatures.shape == (4, 128)
    tokenizer = corpus.tokenizer
    opened = TokenStore.open(store.path)
    start = 0
    for end, digest, signature in zip(opened.document_ends, digests, signatures, strict=True):
        words = tokenizer.decode(opened.tokens[start : end - 1])
        assert digest.tobytes() == document_digest(words)
        (expected,) = corpus.duplicates.signatures([words], words_of_texts([words]))
        np.testing.assert_array_equal(signature, expected)
        start = end
