"""The files that a split names: globs, lists of them, folders, and names that look like globs."""

import json
import os
import pathlib
import random

import pyarrow
import pyarrow.ipc
import pytest

from t5x_style.data import Corpus, FileFormat, Source, Tokenizer
from t5x_style.data.sources.documents import documents
from t5x_style.errors import UsageError, did_you_mean
from tests.data.store_helpers import write_jsonl


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with files of one text each: their names."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "in/a.jsonl",
        "in/b.jsonl",
        "in/[1] law.jsonl",
        "in/1 law.jsonl",
        "in [x]/deep/a.jsonl",
        "in [x]/b.jsonl",
        "{a,b}.jsonl",
    ):
        path = pathlib.Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, [name])
    return tmp_path


def source(where, **options):
    return Source(name="a", splits={"train": where}, **options)


def names(where, **options):
    return [str(path) for path in source(where, **options).files("train")]


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("in/a.jsonl", ["in/a.jsonl"]),
        ("in/[ab].jsonl", ["in/a.jsonl", "in/b.jsonl"]),
        # The order is that of the list, and by name within a glob.
        (["in/b.jsonl", "in/a.jsonl"], ["in/b.jsonl", "in/a.jsonl"]),
        (["in/b*", "in/a*"], ["in/b.jsonl", "in/a.jsonl"]),
        (("in/a.jsonl",), ["in/a.jsonl"]),
        # A file of two globs is read once, however it is written.
        (["in/b.jsonl", "in/?.jsonl", "./in/../in/a.jsonl"], ["in/b.jsonl", "in/a.jsonl"]),
        # What exists comes before what its name means as a glob.
        ("in/[1] law.jsonl", ["in/[1] law.jsonl"]),
        ("in [x]/*.jsonl", ["in [x]/b.jsonl"]),
        ("in [x]/**/*.jsonl", ["in [x]/b.jsonl", "in [x]/deep/a.jsonl"]),
        ("{a,b}.jsonl", ["{a,b}.jsonl"]),
        ("in/[12] law.jsonl", ["in/1 law.jsonl"]),
        # A folder is all files of the format in it.
        ("in [x]", ["in [x]/b.jsonl", "in [x]/deep/a.jsonl"]),
        ("in [x]/", ["in [x]/b.jsonl", "in [x]/deep/a.jsonl"]),
        (["in [x]", "in/a.jsonl"], ["in [x]/b.jsonl", "in [x]/deep/a.jsonl", "in/a.jsonl"]),
    ],
)
def test_the_files_of_a_split_and_their_order(folder, where, found):
    assert names(where) == found
    assert list(documents(source(where), "train")) == found


def test_a_file_that_is_named_like_a_glob_hides_no_other_file(folder):
    """As a shell makes it: `gzip -c x > *.jsonl` in an empty folder."""
    write_jsonl(pathlib.Path("in/*.jsonl"), ["odd"])
    assert names("in/*.jsonl") == [
        "in/*.jsonl",
        "in/1 law.jsonl",
        "in/[1] law.jsonl",
        "in/a.jsonl",
        "in/b.jsonl",
    ]


def test_an_absolute_path_and_a_relative_one_are_one_file(folder):
    assert names(["in/a.jsonl", str(folder / "in" / "a.jsonl")]) == ["in/a.jsonl"]


def test_the_order_does_not_depend_on_the_file_system(folder, monkeypatch):
    """Whatever order a folder is listed in."""
    for number in random.Random(0).sample(range(30), 30):
        path = pathlib.Path(f"in/{number % 3}/{number}.jsonl")
        path.parent.mkdir(exist_ok=True)
        write_jsonl(path, ["x"])
    expected = names("in"), names("in/**/*.jsonl")
    scandir, listdir = os.scandir, os.listdir

    class Backwards:
        def __init__(self, *arguments):
            with scandir(*arguments) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __iter__(self):
            return iter(self.entries)

        def __next__(self):
            if not self.entries:
                raise StopIteration
            return self.entries.pop()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def close(self):
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    monkeypatch.setattr(os, "listdir", lambda *path: sorted(listdir(*path), reverse=True))
    assert (names("in"), names("in/**/*.jsonl")) == expected
    assert len(expected[0]) == 34


def test_a_folder_as_spark_and_others_leave_it(tmp_path):
    """Part files of the format are read; droppings, hidden files and other kinds are not."""
    out = tmp_path / "out"
    for name in (
        "part-00000.jsonl",
        "part-00001.json.gz",
        "day=2022-01-01/part-00000.ndjson",
        "day=2022-01-01/part-00001.JSONL.ZST",
    ):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("")
    wanted = sorted(path for path in out.rglob("*") if path.is_file())
    for name in (
        "_SUCCESS",
        ".part-00000.jsonl.crc",
        "part-00000.jsonl.crc",
        ".hidden.jsonl",
        "_temporary/0/part-00002.jsonl",
        ".git/a.jsonl",
        "_metadata.jsonl",
        "README.md",
        "a.parquet",
        "a.jsonl~",
    ):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("")
    assert source(str(out)).files("train") == wanted


def test_each_format_has_files_of_its_own_in_a_folder(tmp_path):
    kinds = {
        "jsonl": ["a.jsonl"],
        "text": ["a.txt", "b.txt.gz"],
        "parquet": ["a.parquet", "train-00000-of-00002.parquet"],
        "array_record": ["a.array_record", "b.array_record-00000-of-00010"],
        "array_record_example": ["a.array_record", "b.array_record-00000-of-00010"],
    }
    for files in kinds.values():
        for name in files:
            (tmp_path / name).write_text("")
    for kind, files in kinds.items():
        found = source(str(tmp_path), format=kind).files("train")
        assert [path.name for path in found] == files


def test_links_in_a_folder_are_followed_once(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "data").mkdir()
    elsewhere.mkdir()
    write_jsonl(elsewhere / "a.jsonl", ["x"])
    (tmp_path / "data" / "more").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(tmp_path / "data")
    assert names(str(tmp_path / "data")) == [str(tmp_path / "data" / "more" / "a.jsonl")]


def test_several_hugging_face_folders_are_read_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        pathlib.Path(name).mkdir()
        table = pyarrow.table({"text": [f"{name}{i}" for i in range(2)]})
        with pyarrow.ipc.new_stream(f"{name}/data.arrow", table.schema) as stream:
            stream.write_table(table)
        listed = {"_data_files": [{"filename": "data.arrow"}]}
        pathlib.Path(name, "state.json").write_text(json.dumps(listed))
    several = source(["b", "a", "./b"], format="hf")
    assert list(documents(several, "train")) == ["b0", "b1", "a0", "a1"]
    with pytest.raises(UsageError, match=r"= 'c' is no dataset that save_to_disk wrote"):
        source(["a", "c"], format="hf").files("train")


class Unnamed(FileFormat):
    """A user's format that says nothing about the names of its files."""

    def records(self, split, part, on_read):
        return iter(())


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("in/c.jsonl", r"no file matches; did you mean 'in/[ab]\.jsonl'\?$"),
        (["in/a.jsonl", "in/x*.jsonl"], r"\['train'\] of 'a' = 'in/x\*\.jsonl': no file matches"),
        (["in", "gs://b/a.jsonl"], r"= 'gs://b/a\.jsonl': gs:// is not a file system"),
        ("~/a.jsonl", r"~ is not expanded: write '/data/me/a\.jsonl'"),
        (["in", "~/in"], r"~ is not expanded: write '/data/me/in'"),
        ("$CORPUS/a.jsonl", r"\$CORPUS is not expanded: write '/corpus/a\.jsonl'"),
        (
            "in/{a,b}.jsonl",
            r"braces are not expanded: write the list \['in/a\.jsonl', 'in/b\.jsonl'\]$",
        ),
        (
            "{in,out}/{a,b}.jsonl",
            r"write the list \['in/a\.jsonl', 'in/b\.jsonl', 'out/a\.jsonl', 'out/b\.jsonl'\]$",
        ),
        ("in/a.jsonl,in/b.jsonl", r"write the list \['in/a\.jsonl', 'in/b\.jsonl'\]$"),
        ("in/a.jsonl, in/*.jsonl", r"write the list \['in/a\.jsonl', 'in/\*\.jsonl'\]$"),
        ("in/a.jsonl in/b.jsonl", r"write the list \['in/a\.jsonl', 'in/b\.jsonl'\]$"),
        ("i*", r"only folders match, in and in \[x\]: name the files, 'i\*/\*'"),
        ("empty", r"the folder has no file that ends in \.jsonl, .*write a glob, 'empty/\*\*/\*'"),
        ("dangling.jsonl", r"a link to 'gone\.jsonl', which is not there$"),
        ("pipe", "neither a file nor a folder$"),
        ("absent/a.jsonl", "there is no folder 'absent'$"),
    ],
)
def test_a_name_that_is_no_file_is_refused_with_the_way_out(folder, monkeypatch, where, message):
    monkeypatch.setenv("HOME", "/data/me")
    monkeypatch.setenv("CORPUS", "/corpus")
    (folder / "empty").mkdir()
    (folder / "empty" / "a.txt").write_text("")
    (folder / "dangling.jsonl").symlink_to("gone.jsonl")
    os.mkfifo(folder / "pipe")
    with pytest.raises(UsageError, match=message):
        source(where).files("train")


def test_a_folder_of_a_format_without_suffixes_is_refused(folder):
    with pytest.raises(UsageError, match=r"= 'in': a folder, and .* no suffixes.*'in/\*\*/\*'"):
        source("in", format=f"{__name__}.Unnamed").files("train")


class Named(Unnamed):
    """One that does."""

    suffixes = (".csv",)


def test_a_format_of_a_user_reads_a_folder_once_it_names_its_suffixes(folder):
    for name in ("in/x/b.CSV", "in/a.csv"):
        pathlib.Path(name).parent.mkdir(exist_ok=True)
        pathlib.Path(name).write_text("")
    assert names("in", format=f"{__name__}.Named") == ["in/a.csv", "in/x/b.CSV"]


@pytest.mark.parametrize("where", ["", [], [""], ["a.jsonl", 3], 3, None, [["a.jsonl"]], {"a": 1}])
def test_a_split_is_a_string_or_a_list_of_them(where):
    with pytest.raises(UsageError, match=r"Source\.splits\['train'\] of 'a' = .*write a glob"):
        source(where)


def test_a_hint_never_is_what_was_typed():
    assert did_you_mean("data", ["data", "date"]) == "; did you mean 'date'?"
    assert did_you_mean("data", ["data"]) == ""


def test_a_split_of_tfds_is_one_expression(tmp_path):
    options = {"tfds_name": "x:1.0.0", "tfds_data_dir": str(tmp_path)}
    with pytest.raises(UsageError, match=r"one expression: write 'train\[:10%\]\+test'"):
        source(["train[:10%]", "test"], format="tfds", **options)


def test_the_builder_gets_the_list(folder):
    written = source(["in/a.jsonl", "in/b.jsonl"])
    corpus = Corpus(Tokenizer("bytes"), "a", "stores", [written])
    (read,) = Corpus.from_json(corpus.to_json()).sources
    assert read.files("train") == written.files("train")
    assert dict(read.splits) == {"train": ["in/a.jsonl", "in/b.jsonl"]}
    as_glob = source("in/[ab].jsonl")
    assert written.made_from("train", folder / "c", remember=False) == as_glob.made_from(
        "train", folder / "c", remember=False
    )
