"""Tables as other programs write them: the same texts as from JSONL, and broken files by name."""

import json
import os

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from t5x_style.data import Corpus, Source, ensure_stores
from t5x_style.data.sources.documents import documents, parts, records
from t5x_style.errors import Fault, UsageError

TEXTS = [f"document {i} of the table, \u00e9\n" * (1 + i % 3) for i in range(3000)]
ROWS = [{"id": f"d{i}", "body": text, "other": i} for i, text in enumerate(TEXTS)]


def as_jsonl(folder):
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {"format": "jsonl", "splits": {"train": str(folder / "a.jsonl")}}


def as_zst(folder):
    half = len(ROWS) // 2
    frames = [
        pyarrow.compress("".join(json.dumps(row) + "\n" for row in part).encode(), "zstd", True)
        for part in (ROWS[:half], ROWS[half:])
    ]
    (folder / "a.jsonl.zst").write_bytes(b"".join(frames))
    return {"format": "jsonl", "splits": {"train": str(folder / "a.jsonl.zst")}}


def as_parquet(folder):
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=700)
    return {"format": "parquet", "splits": {"train": str(folder / "*.parquet")}}


def as_hf(folder):
    """The layout of `datasets.Dataset.save_to_disk` (datasets 4): Arrow streams and state.json."""
    split = folder / "dataset" / "train"
    split.mkdir(parents=True)
    table = pyarrow.Table.from_pylist(ROWS)
    for number, part in enumerate((table[:1300], table[1300:])):
        path = split / f"data-0000{number}-of-00002.arrow"
        with pyarrow.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(part)
    files = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]
    (split / "state.json").write_text(json.dumps({"_data_files": files, "_split": "train"}))
    return {"format": "hf", "splits": {"train": str(split)}}


def as_array_record(folder):
    writer = ArrayRecordWriter(str(folder / "a.array_record"), "group_size:16")
    for row in ROWS:
        writer.write(json.dumps(row).encode())
    writer.close()
    return {"format": "array_record", "splits": {"train": str(folder / "a.array_record")}}


KINDS = (as_jsonl, as_zst, as_parquet, as_hf, as_array_record)


def source_of(kind, folder, **options):
    return Source(name="a", text_field="body", id_field="id", **kind(folder), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_texts_in_order_and_counts_its_bytes(kind, tmp_path):
    source = source_of(kind, tmp_path)
    assert list(documents(source, "train")) == TEXTS
    read = []
    count = sum(
        1
        for part in parts(source, "train", 1000)
        for _ in records(source, "train", part, read.append)
    )
    assert count == len(TEXTS)
    on_disk = sum(path.stat().st_size for path in source.files("train"))
    assert sum(read) == pytest.approx(on_disk, rel=0.01)


def test_the_stores_of_all_formats_hold_the_same_documents(tokenizer, tmp_path):
    found = []
    for kind in KINDS:
        folder = tmp_path / kind.__name__
        folder.mkdir()
        corpus = Corpus(
            tokenizer=tokenizer,
            mixture_or_task_name="a",
            cache_dir=str(folder / "stores"),
            sources=[source_of(kind, folder)],
            workers=2,
        )
        store = ensure_stores(corpus).train["a"]
        assert store.meta["text_bytes"] == sum(len(text.encode()) for text in TEXTS)
        texts = tokenizer.decode(store.tokens[: store.document_ends[0]])
        assert texts in TEXTS
        found.append((store.num_tokens, len(store.document_ends)))
    assert len(set(found)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_short_is_refused_by_its_name(kind, tmp_path):
    source = source_of(kind, tmp_path)
    file = source.files("train")[-1]
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2 + 1])
    with pytest.raises(Fault, match=file.name.replace(".", r"\.")):
        list(documents(source, "train"))


@pytest.mark.parametrize("kind", [as_zst, as_parquet, as_hf, as_array_record])
def test_a_file_of_something_else_is_refused_by_its_name(kind, tmp_path):
    source = source_of(kind, tmp_path)
    file = source.files("train")[0]
    file.write_bytes(b"this is something else\n" * 5000)
    with pytest.raises(Fault, match=file.name.replace(".", r"\.")):
        list(documents(source, "train"))


@pytest.mark.parametrize("kind", [as_parquet, as_hf])
def test_a_column_that_is_not_there_is_named_with_the_nearest(kind, tmp_path):
    source = Source(name="a", text_field="bdy", **kind(tmp_path))
    with pytest.raises(UsageError, match=r"no field 'bdy'; it has id, body, other.*body"):
        list(documents(source, "train"))


def test_a_null_text_is_a_bad_record_with_its_row_and_id(tmp_path):
    table = pyarrow.Table.from_pylist([{"id": "x", "text": "good"}, {"id": "y", "text": None}])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    splits = {"train": str(tmp_path / "a.parquet")}
    source = Source(name="a", format="parquet", id_field="id", splits=splits)
    with pytest.raises(Fault, match=r"a\.parquet row 2 \(id 'y'\): field 'text' is a NoneType"):
        list(documents(source, "train"))


def test_a_row_group_is_not_held_whole(tmp_path):
    texts = [os.urandom(5000).hex() for _ in range(8000)]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, use_dictionary=False)
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == 1
    source = Source(name="a", format="parquet", splits={"train": str(path)})
    before = pyarrow.total_allocated_bytes()
    held = [pyarrow.total_allocated_bytes() - before for _ in documents(source, "train")]
    assert len(held) == len(texts)
    assert 0 < max(held) < path.stat().st_size / 2


def test_the_folder_of_all_splits_names_those_that_it_holds(tmp_path):
    as_hf(tmp_path)
    source = Source(name="a", format="hf", splits={"train": str(tmp_path / "dataset")})
    with pytest.raises(UsageError, match="it holds the splits train: name one of them"):
        source.files("train")


def test_a_hugging_face_dataset_that_is_not_whole_is_refused(tmp_path):
    source = source_of(as_hf, tmp_path)
    source.files("train")[1].unlink()
    with pytest.raises(Fault, match=r"names data-00001-of-00002\.arrow, which is not there"):
        source.files("train")
    (tmp_path / "dataset" / "train" / "state.json").write_text("{}")
    with pytest.raises(Fault, match=r"state\.json does not list the files"):
        source.files("train")


def test_a_hugging_face_dataset_that_is_a_selection_of_its_rows_is_refused(tmp_path):
    """Older versions of datasets saved `select` and `shuffle` so: all rows are in the file."""
    source = source_of(as_hf, tmp_path)
    state = tmp_path / "dataset" / "train" / "state.json"
    listed = json.loads(state.read_text())
    state.write_text(json.dumps(listed | {"_indices_data_files": None}))
    assert len(source.files("train")) == 2
    state.write_text(json.dumps(listed | {"_indices_data_files": [{"filename": "indices.arrow"}]}))
    with pytest.raises(UsageError, match=r"selected rows of it .* save flatten_indices\(\)"):
        source.files("train")
