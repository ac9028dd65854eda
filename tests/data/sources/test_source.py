"""Records in, texts out; and of each way in which a corpus can be bad, who says so and how."""

import gzip
import hashlib
import json
import os

import pytest

from t5x_style.data import Source
from t5x_style.data.formats import files
from t5x_style.data.sources.documents import documents, parts, records
from t5x_style.errors import Fault, UsageError


def jsonl(path, *lines):
    path.write_bytes(b"\n".join(lines) + b"\n")
    return Source(name="a", splits={"train": str(path)})


def all_records(source, split="train", *, part_bytes=1 << 25, on_read=lambda size: None):
    for part in parts(source, split, part_bytes):
        yield from records(source, split, part, on_read)


def line(text, **fields):
    return json.dumps({"text": text} | fields).encode()


def test_jsonl_plain_and_zipped_in_the_order_of_names(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(line("third") + b"\n\n" + line("fourth"))
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(
            line("first") + b"\r\n" + line("  ") + b"\n" + line("s\u00e9cond \u2028 x") + b"\n"
        )
    source = Source(name="a", splits={"train": str(tmp_path / "*.jsonl*")})
    assert list(documents(source, "train")) == ["first", "s\u00e9cond \u2028 x", "third", "fourth"]
    assert [record.place.rsplit("/", 1)[1] for record in all_records(source)] == [
        "a.jsonl.gz:1",
        "a.jsonl.gz:2",
        "a.jsonl.gz:3",
        "b.jsonl:1",
        "b.jsonl:3",
    ]


def test_text_files_are_one_document_each(tmp_path):
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "two.txt").write_text("two\n\ntwo")
    with gzip.open(tmp_path / "folder" / "one.txt.gz", "wt") as file:
        file.write("one\r\n")
    pattern = str(tmp_path / "**" / "*.txt*")
    source = Source(name="a", format="text", splits={"train": pattern})
    assert list(documents(source, "train")) == ["two\n\ntwo", "one\r\n"]


def test_what_was_read_is_counted(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", *[line("x" * 50)] * 1000)
    sizes = []
    list(all_records(source, on_read=sizes.append))
    assert sum(sizes) == (tmp_path / "a.jsonl").stat().st_size


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b'{"text": "cut off', r"a\.jsonl:2: broken JSON: Unterminated string"),
        (b'{"text": "\xff\xfe"}', r"a\.jsonl:2: not UTF-8 \(byte 10 of the record is 0xff\)"),
        (b'{"txt": "x", "id": 7}', r"a\.jsonl:2: no field 'text'.*did you mean 'txt'"),
        (b'["x"]', r"a\.jsonl:2: a JSON list, not an object"),
        (b'{"text": 3}', r"a\.jsonl:2: field 'text' is a int, not a string"),
        (b'{"text": "\\ud800"}', r"a\.jsonl:2: half a surrogate pair at character 0"),
        (b"[" * 100_000, r"a\.jsonl:2: broken JSON"),
    ],
)
def test_a_bad_record_is_named_or_skipped(tmp_path, bad, message):
    path = tmp_path / "a.jsonl"
    source = jsonl(path, line("good"), bad, line("good too"))
    with pytest.raises(Fault, match=message):
        list(documents(source, "train"))
    forgiving = Source(name="a", splits={"train": str(path)}, on_bad_record="skip")
    assert list(documents(forgiving, "train")) == ["good", "good too"]


def test_a_bad_record_is_named_by_its_id_too(tmp_path):
    jsonl(tmp_path / "a.jsonl", b'{"body": "x", "key": "gpl-3"}')
    source = Source(name="a", splits={"train": str(tmp_path / "a.jsonl")}, id_field="key")
    with pytest.raises(Fault, match=r"a\.jsonl:1 \(key 'gpl-3'\): no field 'text'"):
        list(documents(source, "train"))


def test_an_archive_that_was_cut_short_is_never_skipped(tmp_path):
    whole = gzip.compress(b"\n".join([line("x" * 1000 + str(i)) for i in range(1000)]))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    source = Source(name="a", splits={"train": str(tmp_path / "a.jsonl.gz")}, on_bad_record="skip")
    with pytest.raises(Fault, match=r"a\.jsonl\.gz cannot be read"):
        list(documents(source, "train"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "a b"}, "'a b': letters"),
        ({"format": "json"}, r"'json' is not one of jsonl, .*tfds, or .* mean 'jsonl'"),
        ({"on_bad_record": "skipp"}, "did you mean 'skip'"),
        ({"splits": {"train": "x", "validaton": "x"}}, "did you mean 'validation'"),
        ({"splits": {}}, "splits of 'a' names no split"),
        ({"format": "tfds"}, "set tfds_name and tfds_data_dir"),
        ({"tfds_name": "x:1.0.0"}, "tfds_name of 'a': format 'jsonl' does not read it; tfds do"),
        ({"format": "tfds", "tfds_name": "x", "tfds_data_dir": "/x"}, "write 'x:1.0.0'"),
        ({"format": "tfds", "tfds_name": "x:1.0.0", "tfds_data_dir": "/x"}, "/x/x/1.0.0"),
    ],
)
def test_declarations_that_cannot_be(arguments, message):
    with pytest.raises(UsageError, match=message):
        Source(**{"name": "a", "splits": {"train": "x"}} | arguments)


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "corpus.jsonl").write_bytes(line("x"))
    near = Source(name="a", splits={"train": str(tmp_path / "corpsu.jsonl")})
    with pytest.raises(UsageError, match=r"no file matches; did you mean .*corpus\.jsonl"):
        near.files("train")
    far = Source(name="a", splits={"train": str(tmp_path / "absent" / "*.jsonl")})
    with pytest.raises(UsageError, match="there is no folder"):
        far.files("train")
    any_folder = Source(name="a", splits={"train": str(tmp_path / "absent*" / "*.jsonl")})
    with pytest.raises(UsageError, match="no file matches"):
        any_folder.files("train")
    embedded = Source(name="a", splits={"train": "package:legal.trian.jsonl.gz"})
    with pytest.raises(UsageError, match=r"did you mean 'package:legal\.train\.jsonl\.gz'"):
        embedded.files("train")


def test_a_file_is_read_once_for_its_digest_as_long_as_it_is_not_touched(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    read = []
    digest = files.file_digest
    monkeypatch.setattr(files, "file_digest", lambda path: read.append(path.name) or digest(path))
    cache = tmp_path / "cache"

    def digests(**options):
        read.clear()
        found = files.content_digests(paths, cache, **options)
        assert found == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        return sorted(read)

    assert digests(remember=False) == ["a", "b", "c"]
    assert not cache.exists()
    assert digests(remember=True) == ["a", "b", "c"]
    assert digests(remember=True) == []
    # Another content of the same size, and the same content at another time.
    paths[1].write_text("B")
    stamp = paths[1].stat()
    os.utime(paths[1], ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert digests(remember=False) == ["b"]
    assert digests(remember=True) == ["b"]
    assert digests(remember=False) == []
    # A larger one at the same time.
    stamp = paths[2].stat()
    paths[2].write_text("longer")
    os.utime(paths[2], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert digests(remember=True) == ["c"]


def test_the_limit_of_a_record_is_part_of_a_store_only_where_bad_records_are_skipped(tmp_path):
    """Where they are refused, a limit that was raised rebuilds nothing."""
    (tmp_path / "a.jsonl").write_bytes(line("x") + b"\n")

    def made_from(**options):
        source = Source(name="a", splits={"train": str(tmp_path / "a.jsonl")}, **options)
        return source.made_from("train", tmp_path, remember=False)

    assert made_from(max_record_bytes=100) == made_from()
    skipping = made_from(on_bad_record="skip")
    assert made_from(on_bad_record="skip", max_record_bytes=100) != skipping


BROKEN = ["", "{", '{"a": [1, 2', "[]", '{"/a/b": "digest"}', '{"/a/b": [1]}', "\0", "\xff\xfe"]


@pytest.mark.parametrize("content", BROKEN)
def test_digests_that_were_cut_are_made_again_with_a_warning(content, tmp_path, capsys):
    path = tmp_path / "a"
    path.write_text("text")
    kept = tmp_path / "cache" / "content_digests.json"
    kept.parent.mkdir()
    kept.write_bytes(content.encode("latin-1"))
    expected = [hashlib.sha256(b"text").hexdigest()]
    assert files.content_digests([path], kept.parent, remember=True) == expected
    assert f"{kept} is broken, and is made again" in capsys.readouterr().err
    assert files.content_digests([path], kept.parent, remember=True) == expected
    assert capsys.readouterr().err == ""
