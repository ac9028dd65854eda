"""A worker and its part: odd names, empty files, bad records, errors that nobody foresaw."""

import json
import os
import pathlib
import subprocess
import sys

import pyarrow.parquet
import pytest

from t5x_style.data import Corpus, Source, Tokenizer, ensure_stores
from t5x_style.data.building import parts as part_module
from t5x_style.data.building.parts import Job, build_part
from t5x_style.data.sources.documents import parts
from t5x_style.errors import Fault


def corpus_of(source, folder):
    return Corpus(Tokenizer("bytes"), source.name, str(folder / "stores"), [source], workers=1)


def jobs_of(source, folder, split="train"):
    text = corpus_of(source, folder).to_json()
    return [
        Job(text, source.name, split, str(folder), number, part)
        for number, part in enumerate(parts(source, split))
    ]


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def rows_of(job):
    with open(job.file("documents"), "rb") as file, pyarrow.ipc.open_stream(file) as stream:
        return stream.read_all().to_pylist()


def test_names_and_keys_that_are_no_characters_are_written(tmp_path):
    """The name of a file in Latin-1, and a key and an id that are half a surrogate pair."""
    path = pathlib.Path(str(tmp_path), "caf\udce9.jsonl")
    path.write_text('{"\\ud800": 1}\n{"text": "good"}\n')
    source = Source(name="a", splits={"train": f"{tmp_path}/*.jsonl"}, on_bad_record="skip")
    (job,) = jobs_of(source, tmp_path)
    build_part(job)
    bad, good = rows_of(job)
    name = rf"{tmp_path}/caf\udce9.jsonl"
    assert bad["where"] == f"{name} byte 0"
    assert bad["detail"].startswith(rf"{name}:1: no field 'text'; it has \ud800")
    assert (good["where"], good["tokens"]) == (f"{name} byte 14", 5)


class Panic(BaseException):
    """As libraries in Rust raise: no Exception, and no pickle brings it back."""

    def __init__(self, what, where):
        super().__init__(f"{what} at {where}")


@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), Panic("index", "bpe.rs:7")])
def test_an_error_that_nobody_foresaw_names_the_file(error, tmp_path, monkeypatch, capsys):
    def fail(source, record):
        raise error

    monkeypatch.setattr(part_module, "document_of", fail)
    (tmp_path / "a.jsonl").write_text(lines({"text": "x"}))
    source = Source(name="a", splits={"train": str(tmp_path / "a.jsonl")})
    (job,) = jobs_of(source, tmp_path)
    with pytest.raises(Fault) as raised:
        build_part(job)
    told = f"{type(error).__name__}: {error}".removesuffix(": ")
    assert str(raised.value) == f"source 'a', split 'train', {tmp_path}/a.jsonl: {told}"
    errors = capsys.readouterr().err
    assert errors.count("Traceback (most recent call last)") == 1
    assert errors.rstrip().endswith(told)
    # Nothing of it is left; the parts that are whole stay.
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_an_interruption_is_none(tmp_path, monkeypatch):
    def stop(source, record):
        raise KeyboardInterrupt

    monkeypatch.setattr(part_module, "document_of", stop)
    (tmp_path / "a.jsonl").write_text(lines({"text": "x"}))
    source = Source(name="a", splits={"train": str(tmp_path / "a.jsonl")})
    (job,) = jobs_of(source, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        build_part(job)


FORMAT = """
from t5x_style.data import FileFormat, Record

class Panic(BaseException):
    def __init__(self, what, where):
        super().__init__(f"{what} at {where}")

class Fragile(FileFormat):
    def records(self, split, part, on_read):
        if part.path.endswith("b.x"):
            raise Panic("index", "bpe.rs:7")
        yield Record(part.path, {"text": "x"})
"""


def test_a_pool_shows_the_error_of_its_worker_and_leaves_nothing(tmp_path):
    """One traceback, the error by its name, and no complaint of Python about semaphores."""
    (tmp_path / "fragile.py").write_text(FORMAT)
    for name in ("a.x", "b.x"):
        (tmp_path / name).write_text("")
    program = (
        "import sys; from t5x_style.data import *\n"
        "source = Source('a', {'train': sys.argv[1] + '/*.x'}, format='fragile.Fragile')\n"
        "corpus = Corpus(Tokenizer('bytes'), 'a', sys.argv[1] + '/stores', [source], workers=2)\n"
        "ensure_stores(corpus)"
    )
    path = os.pathsep.join([os.getcwd(), str(tmp_path)])
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1
    told = f"source 'a', split 'train', {tmp_path}/b.x: Panic: index at bpe.rs:7"
    assert run.stderr.rstrip().endswith(f"t5x_style.errors.Fault: {told}")
    assert run.stderr.count("fragile.Panic: index at bpe.rs:7\n") == 1
    assert "semaphore" not in run.stderr
    assert "un-serialize" not in run.stderr
    # The part that was finished is kept.
    assert len(list(tmp_path.glob("stores/.building-*/part-00000.json"))) == 1


def dated(folder, *rows, **options):
    (folder / "a.jsonl").write_text(lines(*rows))
    return Source(
        name="a",
        splits={"train": str(folder / "*.jsonl")},
        date_field="date",
        validation_from="2020",
        on_bad_record="skip",
        **options,
    )


def test_a_bad_record_is_counted_in_train_alone_where_both_splits_read_a_file(tmp_path, capfd):
    source = dated(
        tmp_path,
        {"text": "old", "date": "2019"},
        {"text": 7, "date": "2019"},
        {"text": "undated"},
        {"text": "new", "date": "2021"},
    )
    (tmp_path / "b.jsonl").write_text("")
    stores = ensure_stores(corpus_of(source, tmp_path))
    train, validation = stores.train["a"], stores.validation["a"]
    assert (train.meta["skipped"], validation.meta["skipped"]) == (2, 0)
    dropped = pyarrow.parquet.read_table(train.path / "dropped.parquet").to_pylist()
    assert [row["detail"].rpartition("/")[2].partition(": ")[0] for row in dropped] == [
        "a.jsonl:2",
        "a.jsonl:3",
    ]
    assert not (validation.path / "dropped.parquet").exists()
    errors = capfd.readouterr().err
    for told in ("a.jsonl:2: ", "a.jsonl:3: ", "b.jsonl holds no record\n"):
        assert errors.count(told) == 1
    listed = f"a train: bad records skipped: 2, listed in {train.path}/dropped.parquet\n"
    assert errors.count(listed) == 1


def test_bad_records_of_two_splits_with_files_of_their_own_are_counted_in_each(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(lines({"text": split}, {"text": 7}))
    source = Source(
        name="a",
        splits={split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")},
        on_bad_record="skip",
    )
    stores = ensure_stores(corpus_of(source, tmp_path))
    for store in (stores.train["a"], stores.validation["a"]):
        assert store.meta["skipped"] == 1


@pytest.mark.parametrize("content", ["", "\n \n\r\n"])
def test_a_file_without_a_record_is_told(content, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(lines({"text": "x"}))
    (tmp_path / "b.jsonl").write_text(content)
    source = Source(name="a", splits={"train": str(tmp_path / "*.jsonl")})
    for job in jobs_of(source, tmp_path):
        build_part(job)
    assert capsys.readouterr().err == f"a train: {tmp_path}/b.jsonl holds no record\n"


def test_the_middle_of_a_long_line_is_no_file_without_a_record(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(lines({"text": "x" * 1000}))
    source = Source(name="a", splits={"train": str(tmp_path / "*.jsonl")})
    text = corpus_of(source, tmp_path).to_json()
    for number, part in enumerate(parts(source, "train", 100)):
        build_part(Job(text, "a", "train", str(tmp_path), number, part))
    assert number == 10
    assert capsys.readouterr().err == ""
