"""One set of files divided into train and validation: by a share of the documents, or by date."""

import dataclasses
import json
import math

import pytest

from t5x_style.data import Corpus, Rewrite, Source, Tokenizer, ensure_stores
from t5x_style.data.sources.documents import documents
from t5x_style.data.sources.sample import sample
from t5x_style.errors import Fault, UsageError

COUNT = 4000


def write(path, texts, days=None):
    rows = [{"text": text} for text in texts]
    for row, day in zip(rows, days or (), strict=False):
        row |= {} if day is None else {"day": day}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def source(where, **fields):
    return Source(**{"name": "d", "splits": {"train": where}} | fields)


def texts_of(source):
    return {split: list(documents(source, split)) for split in ("train", "validation")}


def shout(text):
    return text.upper()


def test_a_share_of_the_documents_is_held_out(tmp_path):
    """Each once, in one split; the numbers are within 4 standard deviations of the share."""
    texts = [f"document {number} of them" for number in range(COUNT)]
    where = write(tmp_path / "a.jsonl", texts)
    for share in (0.01, 0.25, 0.5):
        found = texts_of(source(where, validation_share=share))
        assert sorted(found["train"] + found["validation"]) == sorted(texts)
        deviation = math.sqrt(COUNT * share * (1 - share))
        assert abs(len(found["validation"]) - share * COUNT) < 4 * deviation
    # A larger share holds out what a smaller one does, and more.
    quarter, half = (
        set(texts_of(source(where, validation_share=s))["validation"]) for s in (0.25, 0.5)
    )
    assert quarter < half


def test_the_choice_follows_from_the_text_and_the_seed_alone(tmp_path):
    texts = [f"document {number}" for number in range(500)]
    one = write(tmp_path / "one.jsonl", texts)
    other = write(tmp_path / "other.jsonl", texts[::-1])
    held = set(texts_of(source(one, validation_share=0.2))["validation"])
    assert set(texts_of(source(other, name="e", validation_share=0.2))["validation"]) == held
    assert set(texts_of(source(one, validation_share=0.2, validation_seed=1))["validation"]) != held
    assert 0 < len(held) < 200


def test_a_text_that_stands_there_twice_is_on_one_side(tmp_path):
    """Also with other line breaks, and where a filter makes two texts the same."""
    texts = [f"document {number} of them" for number in range(200)]
    again = [text.replace(" ", "\n ") for text in texts] + [text.title() for text in texts]
    where = write(tmp_path / "a.jsonl", texts + again)
    function = f"{__name__}:shout"
    whole = source(where, validation_share=0.3, filters=[Rewrite(function=function)])
    found = {
        split: {" ".join(t.split()) for t in texts} for split, texts in texts_of(whole).items()
    }
    assert found["train"].isdisjoint(found["validation"])
    assert len(found["train"] | found["validation"]) == 200
    stores = ensure_stores(corpus(tmp_path, whole))
    assert stores.train["d"].meta["documents"] + stores.validation["d"].meta["documents"] == 600


def corpus(tmp_path, *sources, **options):
    mixtures = {"blend": {source.name: 1 / len(sources) for source in sources}}
    fields = {"mixtures": mixtures, "mixture_or_task_name": "blend", "workers": 1}
    cache = str(tmp_path / "stores")
    return Corpus(Tokenizer("bytes"), cache_dir=cache, sources=sources, **fields | options)


def test_the_stores_hold_each_document_once_and_count_each_once(tmp_path):
    texts = [f"document {number} of them" for number in range(300)] + ["", " "]
    where = tmp_path / "a.jsonl"
    write(where, texts)
    where.write_text(where.read_text() + '{"no": "text"}\n')
    divided = source(str(where), validation_share=0.2, on_bad_record="skip")
    stores = ensure_stores(corpus(tmp_path, divided))
    train, held = stores.train["d"].meta, stores.validation["d"].meta
    assert train["documents"] + held["documents"] == 300
    assert held["documents"] == len(texts_of(divided)["validation"])
    assert train["skipped"] + held["skipped"] == 1
    assert train["dropped"] + held["dropped"] == 2
    for one, other in ((train, held), (held, train)):
        assert one["filtered"]["other_split"] == other["documents"] + other["dropped"]
    assert stores.notices == ()


def test_two_sources_of_one_file_agree_on_what_is_held_out(tmp_path):
    where = write(tmp_path / "a.jsonl", [f"document {number}" for number in range(300)])
    one = source(where, validation_share=0.2)
    same = dataclasses.replace(one, name="e")
    assert len(ensure_stores(corpus(tmp_path, one, same)).validation) == 2
    for other in ({"validation_share": 0.1}, {"validation_seed": 5}):
        with pytest.raises(UsageError, match=r"'e' train and 'd' validation.*a\.jsonl"):
            ensure_stores(corpus(tmp_path, one, dataclasses.replace(same, **other)))


def test_a_vocabulary_is_not_trained_on_what_a_share_holds_out(tmp_path):
    texts = [f"document {number} of them" for number in range(300)]
    divided = source(write(tmp_path / "a.jsonl", texts), validation_share=0.5)
    found = texts_of(divided)
    assert set(sample(divided, "train", 10**6).texts) == set(found["train"])
    assert set(sample(divided, "validation", 10**6).texts) == set(found["validation"])


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, math.nan])
def test_a_share_that_divides_nothing_is_refused(share):
    with pytest.raises(UsageError, match=r"Source\.validation_share = .*above 0 and below 1"):
        source("x", validation_share=share)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"splits": {"train": "a", "validation": "b"}, "validation_share": 0.1},
            "files for 'validation' and validation_share: which of them",
        ),
        (
            {"validation_from": "2020", "date_field": "day", "validation_share": 0.1},
            "validation_from and validation_share: which of them",
        ),
        ({"splits": {"validation": "b"}, "validation_share": 0.1}, "divides files of 'train'"),
        ({"validation_seed": 3}, "validation_seed of 'd' = 3: .*validation_share"),
        ({"undated": "train"}, "undated of 'd' = 'train': .*no date"),
        ({"undated": "trian", "date_field": "d", "validation_from": "2020"}, "mean 'train'"),
    ],
)
def test_declarations_that_contradict_themselves_are_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        source("a", **{"splits": {"train": "a"}} | fields)


DAYS = ["2020-05-01", None, "2023-01-01", "", " ", "2022-12-31"]


def test_undated_documents_are_trained_on_if_that_is_said(tmp_path):
    where = write(tmp_path / "a.jsonl", [f"document {n}" for n in range(6)], DAYS)
    dated = source(where, date_field="day", validation_from="2023")
    with pytest.raises(Fault, match=r"a\.jsonl:2: day = None.*undated = 'train'"):
        texts_of(dated)
    undated = dataclasses.replace(dated, undated="train")
    found = texts_of(undated)
    assert found["validation"] == ["document 2"]
    assert found["train"] == [f"document {n}" for n in (0, 1, 3, 4, 5)]
    stores = ensure_stores(corpus(tmp_path, undated))
    assert [stores.train["d"].meta["documents"], stores.validation["d"].meta["documents"]] == [5, 1]
    # Files of their own for validation: what has no date is in the train split alone.
    own = write(tmp_path / "b.jsonl", [f"held out {n}" for n in range(6)], DAYS)
    two = {"train": where, "validation": own}
    cut = source(where, splits=two, date_field="day", dates=("2022", None), undated="train")
    assert texts_of(cut) == {
        "train": [f"document {n}" for n in (1, 2, 3, 4, 5)],
        "validation": ["held out 2", "held out 5"],
    }


def test_a_date_that_is_none_is_a_bad_record_all_the_same(tmp_path):
    where = write(tmp_path / "a.jsonl", ["a", "b"], ["2020", "0000-00-00"])
    undated = source(where, date_field="day", validation_from="2023", undated="train")
    with pytest.raises(Fault, match="'0000-00-00' is no date"):
        texts_of(undated)
