"""A format from a user's module, by gin alone: parts, records, fingerprint, and what is refused."""

import csv
import json
import pathlib
import random

import pytest

from t5x_style.__main__ import main
from t5x_style.data import Source
from t5x_style.data.formats.format import FileFormat, Split
from t5x_style.data.sources.documents import documents, kept_documents, parts
from t5x_style.errors import Fault, UsageError

# All that a user writes. A part is one file.
MODULE = """
import csv

from t5x_style.data import FileFormat, Record


class CsvFormat(FileFormat):
    def __init__(self, delimiter=","):
        self.delimiter = delimiter

    def records(self, split, part, on_read):
        with open(part.path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, delimiter=self.delimiter)
            for number, row in enumerate(rows, start=1):
                yield Record(f"{part.path} row {number}", row)
        on_read(part.size)


tabbed = CsvFormat("\\t")
"""

GIN = """
import t5x_style.data
case/Source.name = 'cases'
case/Source.format = 'my_team_csv.CsvFormat'
case/Source.splits = {'train': 'cases-*.csv'}
case/Source.id_field = 'id'
Tokenizer.path = 'small.model'
Corpus.tokenizer = @Tokenizer()
Corpus.sources = [@case/Source()]
Corpus.mixture_or_task_name = 'cases'
Corpus.cache_dir = 'stores'
Corpus.workers = 2
tokenizer.corpus = @Corpus()
cache.corpus = @Corpus()
"""

RANDOM = random.Random(0)
WORDS = ["".join(RANDOM.choices("aeioulnrst", k=RANDOM.randint(2, 9))) for _ in range(300)]
TEXTS = [f'Case {i}, "quoted",\n{" ".join(RANDOM.choices(WORDS, k=20))}' for i in range(90)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three files of 30 cases, the module on the Python path, and a gin file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "code")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_team_csv.py").write_text(MODULE)
    (tmp_path / "run.gin").write_text(GIN)
    for number in range(3):
        write_csv(tmp_path / f"cases-{number}.csv", range(30 * number, 30 * number + 30))
    return tmp_path


def write_csv(path, numbers, delimiter=","):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["id", "text"])
        writer.writerows([f"c{i}", TEXTS[i]] for i in numbers)


def call(capsys, verb, *flags):
    status = main([verb, "--gin_file=run.gin", *flags])
    written = capsys.readouterr()
    return status, written.out, written.err


def test_a_vocabulary_is_trained_on_it_and_stores_are_built_in_parts(folder, capsys):
    assert len([line for line in MODULE.splitlines() if line.strip()]) <= 30
    source = Source(
        name="cases", format="my_team_csv.CsvFormat", splits={"train": "cases-*.csv"}, id_field="id"
    )
    assert len(parts(source, "train", part_bytes=1)) == 3
    assert list(documents(source, "train")) == TEXTS
    status, _, err = call(capsys, "tokenizer", "--vocab_size=340", "--sample_bytes=10_000")
    assert status == 0, err
    status, out, err = call(capsys, "cache", "--json", "--verify")
    assert status == 0, err
    (store,) = json.loads(out)["stores"]
    assert store["documents"] == 90
    assert store["lost bytes"] == 0
    assert "every store is there" in call(capsys, "cache", "--dry_run")[1]
    # The code of the format is part of what the store was made from.
    module = folder / "code" / "my_team_csv.py"
    module.write_text(module.read_text() + "# changed\n")
    assert "would build cases train" in call(capsys, "cache", "--dry_run")[1]


def test_a_format_that_fails_at_a_record_names_the_record(folder):
    (folder / "code" / "my_fields.py").write_text(
        "from t5x_style.data import FileFormat, Record\n"
        "class Fragile(FileFormat):\n"
        "    def records(self, split, part, on_read):\n"
        "        yield Record(f'{part.path} row 7', b'x')\n"
        "    def fields(self, record):\n"
        "        return {'text': {}['body']}\n"
    )
    source = Source(
        name="a",
        format="my_fields.Fragile",
        splits={"train": "cases-0.csv"},
        on_bad_record="skip",
    )
    message = (
        r"'a': Source\.format = 'my_fields\.Fragile' failed on cases-0\.csv row 7: KeyError: 'body'"
    )
    with pytest.raises(Fault, match=message):
        list(documents(source, "train"))


def test_a_mark_at_the_head_is_no_part_of_the_first_column(folder):
    path = folder / "marked.csv"
    path.write_bytes(b"\xef\xbb\xbf" + (folder / "cases-0.csv").read_bytes())
    source = Source(
        name="a", format="my_team_csv.CsvFormat", splits={"train": "marked.csv"}, id_field="id"
    )
    assert [document.id for document in kept_documents(source, "train")] == [
        f"c{i}" for i in range(30)
    ]


def test_an_instance_has_options_of_its_own(folder):
    write_csv(folder / "cases.tsv", range(4), delimiter="\t")
    source = Source(name="cases", format="my_team_csv.tabbed", splits={"train": "cases.tsv"})
    assert list(documents(source, "train")) == TEXTS[:4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "my_team_csv.CsvFromat"}, "my_team_csv has no 'CsvFromat'.*'CsvFormat'"),
        ({"format": "my_taem.CsvFormat"}, "my_taem cannot be imported: ModuleNotFoundError"),
        ({"format": "json.JSONDecoder"}, "'json.JSONDecoder' is no Format: make it a subclass"),
        ({"tfds_name": "a:1.0.0"}, "format 'my_team_csv.CsvFormat' does not read it; tfds do"),
        (
            {"splits": {"train": "gs://bucket/a.csv"}},
            r"Source.splits\['train'\] of 'a' = 'gs://bucket/a.csv': gs:// is not a file system",
        ),
    ],
)
def test_declarations_that_cannot_be(folder, options, message):
    declared = {"name": "a", "format": "my_team_csv.CsvFormat", "splits": {"train": "*.csv"}}
    with pytest.raises(UsageError, match=message):
        Source(**declared | options)


def test_an_error_of_its_code_names_the_source_and_the_file(folder):
    pathlib.Path("cases-1.csv").write_bytes(b'id,text\nc1,"\xff"\n')
    source = Source(name="cases", format="my_team_csv.CsvFormat", splits={"train": "cases-*.csv"})
    message = r"'cases': Source.format = 'my_team_csv.CsvFormat' failed on cases-1.csv: Unicode"
    with pytest.raises(Fault, match=message):
        list(documents(source, "train"))


def test_parts_are_of_the_size_that_is_asked_for_and_lose_no_byte(tmp_path):
    class Cut(FileFormat):
        def cuts(self, path, part_bytes):
            return [(3, 30), (4, 10), (7, 40), (None, 5)]

        def records(self, split, part, on_read):
            return iter(())

    path = tmp_path / "a.bin"
    path.write_bytes(bytes(85))
    split = Split(str(path), "case/Source.splits", ("text",))
    found = [(part.start, part.stop, part.size) for part in Cut().parts(split, 40)]
    assert found == [(0, 4, 40), (4, 7, 40), (7, None, 5)]
    assert [(p.start, p.stop, p.size) for p in Cut().parts(split, 31)] == found
    assert [(p.stop, p.size) for p in Cut().parts(split, 100)] == [(None, 85)]
    assert [p.path for p in Cut().parts(split, 1)] == [str(path)] * 4
