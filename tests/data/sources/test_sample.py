"""A sample comes from the whole of a split, at a bounded cost, and holds some texts out."""

import collections
import dataclasses
import gzip
import json
import pathlib
import unicodedata

import pytest

from t5x_style.data import Length, Source
from t5x_style.data.sources import sample as sampling
from t5x_style.data.sources.sample import sample, stretches
from t5x_style.errors import Fault

KINDS, DOCUMENTS = 8, 2000


def kind(text):
    """The letter that a text of `texts` repeats."""
    return text.split()[1][0]


@pytest.fixture(scope="module")
def texts():
    """A sorted corpus: eight kinds one after the other, a different text each, of 101 bytes."""
    return [f"{n:05} " + "abcdefgh"[n * KINDS // DOCUMENTS] * 95 for n in range(DOCUMENTS)]


@pytest.fixture(scope="module", params=["jsonl", "gz", "zst", "text", "parquet", "array_record"])
def source(request, texts, tmp_path_factory):
    """The corpus in a format."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path_factory.mktemp(request.param)
    file, name = folder / f"a.{request.param}", request.param
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    if name == "jsonl":
        file.write_bytes(lines)
    elif name == "gz":
        # A level of 0: it has the size of the text, and still cannot be entered in the middle.
        file.write_bytes(gzip.compress(lines, 0))
    elif name == "zst":
        with pyarrow.CompressedOutputStream(str(file), "zstd") as output:
            output.write(lines)
    elif name == "text":
        for n, text in enumerate(texts):
            (folder / f"{n:05}.text").write_text(text)
    elif name == "parquet":
        table = pyarrow.table({"text": texts})
        pyarrow.parquet.write_table(table, file, row_group_size=50, compression=None)
    else:
        array_record = pytest.importorskip("array_record.python.array_record_module")
        writer = array_record.ArrayRecordWriter(str(file), "group_size:1")
        for line in lines.splitlines():
            writer.write(line)
        writer.close()
    reader = "jsonl" if name in ("gz", "zst") else name
    where = folder / "*.text" if name == "text" else file
    return Source(name="a", splits={"train": str(where)}, format=reader)


def test_every_kind_of_a_sorted_corpus_has_its_share(source):
    found = sample(source, "train", 40_000)
    counts = collections.Counter(map(kind, found.texts))
    # 400 of 2,000 texts, some 50 of each kind.
    assert len(counts) == KINDS
    assert len(set(found.texts)) == len(found.texts) == 397
    assert min(counts.values()) > 25
    assert max(counts.values()) < 80
    assert found.read == found.size


def test_of_a_large_corpus_a_part_is_read_at_places_over_all_of_it(source, monkeypatch):
    """A tenth of it. A compressed file is read from its beginning, in large pieces."""
    monkeypatch.setattr(sampling, "PLACES", 40)
    whole = sample(source, "train", 1)
    monkeypatch.setattr(sampling, "READ_BYTES", whole.size // 10)
    found = sample(source, "train", 8_000)
    counts = collections.Counter(map(kind, found.texts))
    name = pathlib.Path(source.splits["train"]).suffix
    if name in (".gz", ".zst"):
        assert set(counts) <= set("abcdefgh")
        return
    elif name == ".array_record":
        # It is cut after 1,024 records.
        assert set(counts) == {"a", "e"}
    else:
        assert set(counts) == set("abcdefgh")
        assert max(counts.values()) < 30
    assert found.size == whole.size
    assert found.read < whole.size / 3
    assert "looked at" in str(found)


def test_the_wanted_bytes_in_random_order(tmp_path, texts):
    source = write(tmp_path, texts)
    for wanted in (1, 101, 102, 5_000):
        found = sample(source, "train", wanted).texts
        assert wanted <= sum(map(len, found)) < wanted + 101
    order = list(sample(source, "train", 5_000).texts)
    assert order != sorted(order)
    # Not enough: all there are, once.
    assert sorted(sample(source, "train", 10**7).texts) == texts


def test_seeds_of_any_size_choose_differently_and_always_the_same(tmp_path, texts):
    source = write(tmp_path, texts)
    seeds = (0, 1, -1, 2**32, 2**32 + 1, 2**64, 2**64 + 1, 10**60)
    chosen = {seed: tuple(sample(source, "train", 2_000, seed=seed).texts) for seed in seeds}
    assert len(set(chosen.values())) == len(seeds)
    assert all(tuple(sample(source, "train", 2_000, seed=s).texts) == chosen[s] for s in seeds)


def test_what_is_held_out_is_in_no_sample_of_any_seed_or_size(tmp_path, texts):
    source = write(tmp_path, texts)
    trained, held_out = set(), set()
    for seed, wanted in ((0, 10**7), (1, 50_000), (2, 5_000)):
        found = sample(source, "train", wanted, seed=seed, held_out_bytes=10**6)
        trained |= set(found.texts)
        held_out |= set(found.held_out)
    assert not trained & held_out
    assert trained | held_out == set(texts)
    # One in twenty, of every kind.
    assert 60 < len(held_out) < 140
    assert set(map(kind, held_out)) == set("abcdefgh")
    few = sample(source, "train", 5_000, held_out_bytes=300).held_out
    assert set(few) < held_out
    assert 300 <= sum(map(len, few)) < 401


def test_a_text_that_stands_twice_is_not_held_out_from_itself(tmp_path, texts):
    source = write(tmp_path, texts * 2)
    found = sample(source, "train", 10**7, held_out_bytes=10**6)
    assert not set(found.texts) & set(found.held_out)


def test_a_copy_in_another_normal_form_is_held_out_with_the_text(tmp_path):
    """A reader sees no difference: composed or not, and a zero-width space more."""
    composed = [f"caf\u00e9 {n}" for n in range(400)]
    other = [unicodedata.normalize("NFD", text) + "\u200b" for text in composed]
    found = sample(write(tmp_path, composed + other), "train", 10**7, held_out_bytes=10**6)
    numbers = [
        {text.split()[1].strip("\u200b") for text in texts}
        for texts in (found.texts, found.held_out)
    ]
    assert numbers[0] | numbers[1] == set(map(str, range(400)))
    assert not numbers[0] & numbers[1]


def test_of_two_documents_one_is_held_out_and_of_one_none(tmp_path, texts):
    for first in range(0, 120, 2):
        for count, held_out in ((2, 1), (1, 0)):
            source = write(tmp_path, texts[first : first + count])
            found = sample(source, "train", 10**6, held_out_bytes=10**6)
            assert (len(found.texts), len(found.held_out)) == (1, held_out)
            assert not set(found.texts) & set(found.held_out)
    assert len(sample(source, "train", 10**6).texts) == 1


def test_a_book_is_many_texts_and_not_the_whole_sample(tmp_path):
    """One document of 10,000 lines among 100 short ones: its pieces come from all over it."""
    book = "".join(f"line {n:05} of the book, which is long\n" for n in range(10_000))
    source = write(tmp_path, [book, *(f"short {n}" for n in range(100))])
    found = sample(source, "train", 10**7, held_out_bytes=10**6)
    pieces = [text for text in (*found.texts, *found.held_out) if "book" in text]
    assert sorted(pieces, key=lambda piece: int(piece.split()[1])) == list(
        stretches(book, sampling.TEXT_CHARACTERS)
    )
    assert max(map(len, pieces)) <= 65_536
    part = sample(source, "train", 60_000).texts
    assert "short" in "".join(part)
    assert sum(map(len, part)) < 60_000 + 65_536


def test_only_documents_of_the_split_after_the_filters(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [{"text": "word " * (n % 40), "day": f"20{n % 30:02}"} for n in range(400)]
    file.write_text("\n".join(map(json.dumps, rows)))
    source = Source(
        name="a",
        splits={"train": str(file)},
        date_field="day",
        validation_from="2020",
        filters=[Length(min_characters=50)],
    )
    found = {split: sample(source, split, 10**6).texts for split in ("train", "validation")}
    for split, years in (("train", range(20)), ("validation", range(20, 30))):
        expected = [r["text"] for r in rows if int(r["day"][2:]) in years and len(r["text"]) >= 50]
        assert sorted(found[split]) == sorted(expected)


def test_documents_that_are_rare_are_looked_for_everywhere(tmp_path, texts, monkeypatch):
    """The last of 2,000 is the validation split, and a tenth is read."""
    file = tmp_path / "a.jsonl"
    rows = [{"text": text, "day": str(2000 + (n == 1999))} for n, text in enumerate(texts)]
    file.write_text("\n".join(map(json.dumps, rows)))
    dated = {"date_field": "day", "validation_from": "2001"}
    source = Source(name="a", splits={"train": str(file)}, **dated)
    monkeypatch.setattr(sampling, "READ_BYTES", file.stat().st_size // 10)
    monkeypatch.setattr(sampling, "PLACES", 10)
    assert list(sample(source, "validation", 1000).texts) == [texts[-1]]


def test_bad_records_are_refused_or_skipped(tmp_path, texts):
    source = write(tmp_path, texts[:3])
    with open(source.splits["train"], "a") as file:
        file.write("{\n")
    with pytest.raises(Fault, match=r"a\.jsonl:4: broken JSON"):
        sample(source, "train", 10**6)
    skipping = dataclasses.replace(source, on_bad_record="skip")
    assert len(sample(skipping, "train", 10**6).texts) == 3


def test_for_people(tmp_path, texts):
    found = sample(write(tmp_path, texts), "train", 20_000)
    assert str(found) == "19.6 KiB of text sampled over 223 KiB on disk in 1 part"


def write(folder, texts):
    """A source of one file, a document a line."""
    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Source(name="a", splits={"train": str(file)})
