"""The work of one worker: a part of a split becomes ids and a table of documents.

The folder of the store that is being built has these files for part 17:
    part-00017.tokens     little-endian ids, every kept document ended by EOS
    part-00017.documents  an Arrow stream, one row (`SCHEMA`) for each document that was read
    part-00017.json       written last: a part that has it is whole, and is not made again
    part-00017.failed     instead of these: the error of a part that cannot be made

What was tokenised and what is dropped are kept apart. Where a corpus drops duplicates or
contaminated documents, the ids are in a folder of their own, and stay there. The folder of the
store has links to them, and tables that say what is dropped. So other cleaning, or another blend,
tokenises nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import sys
import traceback
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow

from t5x_style.data.cleaning.contamination import Index
from t5x_style.data.cleaning.words import words_of_texts
from t5x_style.data.formats.format import BadRecord, Part
from t5x_style.data.sources.documents import belongs, document_of, is_chosen, records, refusal
from t5x_style.data.sources.filters import filtered
from t5x_style.data.sources.normal_form import document_digest, document_digests
from t5x_style.data.sources.source import Source
from t5x_style.data.stores.corpus import Corpus
from t5x_style.data.stores.token_store import token_dtype
from t5x_style.data.tokenizers.tokenizer import TextBytes
from t5x_style.errors import Fault, UsageError
from t5x_style.files import file_digest, write_whole

# Of the three files. Parts of another version are made again.
PART_VERSION = 5
# Held in memory before they are written: a part may be one compressed file of any size.
FLUSH_TOKENS = 1 << 20
FLUSH_ROWS = 1 << 13
# Of texts that are hashed at once.
BATCH_CHARACTERS = 1 << 17
CONTAMINATED = "contaminated"
OTHER_SPLIT = "other_split"

SCHEMA = pyarrow.schema(
    {
        "tokens": pyarrow.int64(),  # EOS included; 0 for a document that was dropped
        "bytes": pyarrow.int64(),  # of text that the tokens encode
        "text_bytes": pyarrow.int64(),  # of the text before tokenising; null for ids without text
        "lost": pyarrow.int64(),  # `TextBytes.lost`; null for ids without text
        "extra": pyarrow.large_binary(),  # `TextBytes.extra` as int64, if there is any
        "where": pyarrow.large_string(),
        "id": pyarrow.large_string(),
        "date": pyarrow.large_string(),
        "license": pyarrow.large_string(),
        "reason": pyarrow.large_string(),  # why it was dropped; null if it was kept
        "detail": pyarrow.large_string(),
        "digest": pyarrow.large_binary(),  # of the text; null for a document that was dropped
        "signature": pyarrow.large_binary(),  # of the text, where near duplicates are dropped
    }
)


@dataclasses.dataclass(frozen=True)
class Job:
    """A part to make.

    Attributes:
      corpus: `Corpus.to_json()`.
      task: a source of the corpus, or a seqio Task of its module.
      split: of that task.
      folder: of the files.
      number: of the part within the split, from 0.
      part: the piece to read. None for a seqio Task: its whole split.
      index: the folder of n-grams that must not be in it (`contamination.Index`), or None.
      tokenised: the folder of the part as it is before anything is dropped. None where that is
        `folder`: nothing is dropped, or the part is of a seqio Task.
    """

    corpus: str
    task: str
    split: str
    folder: str
    number: int
    part: Part | None
    index: str | None = None
    tokenised: str | None = None

    def before_cleaning(self) -> Job:
        """The job that makes the part in `tokenised`."""
        assert self.tokenised is not None
        return dataclasses.replace(self, folder=self.tokenised, tokenised=None, index=None)

    def file(self, suffix: str) -> pathlib.Path:
        """One of the part's files."""
        return part_file(pathlib.Path(self.folder), self.number, suffix)

    def is_done(self) -> bool:
        """Whether the part is there, whole."""
        # The content of a module's Task cannot be identified by its name.
        if self.part is None:
            return False
        try:
            found = json.loads(self.file("json").read_text())
            digests = found.pop("digests")
            return found == _label(self) and all(
                file_digest(self.file(suffix)) == digest for suffix, digest in digests.items()
            )
        except (FileNotFoundError, ValueError, KeyError, AttributeError):
            # No file, or one that a power cut damaged.
            return False


def part_file(folder: pathlib.Path, number: int, suffix: str) -> pathlib.Path:
    """The name of one of a part's files."""
    return folder / f"part-{number:05}.{suffix}"


def _label(job: Job) -> dict[str, Any]:
    part = dataclasses.asdict(job.part) if job.part else None
    return {"version": PART_VERSION, "part": part, "index": job.index}


class PartWriter:
    """Writes the ids and the table of a part, under temporary names until both are whole.

    Two processes may make the same part (Beam starts a slow one twice). The last to finish wins,
    with the same content.
    """

    def __init__(self, folder: pathlib.Path, number: int, *, dtype: np.dtype):
        """Starts part `number` in `folder`; `dtype` of the ids."""
        self.folder = folder
        self.number = number
        self.dtype = dtype
        self.unique = uuid.uuid4().hex
        self.tokens_file = open(self._unfinished("tokens"), "wb")  # noqa: SIM115
        self.documents_file = open(self._unfinished("documents"), "wb")  # noqa: SIM115
        self.stream = pyarrow.ipc.new_stream(self.documents_file, SCHEMA)
        self.ids: list[np.ndarray] = []
        self.held = 0
        self.rows: list[Mapping[str, Any]] = []

    def add(self, ids: np.ndarray, row: Mapping[str, Any]) -> dict[str, Any]:
        """Adds a document that is kept: ids, EOS included, and its row without `tokens`.

        Returns:
          the whole row.
        """
        self.ids.append(np.asarray(ids, self.dtype))
        self.held += len(ids)
        return self.add_row({**row, "tokens": len(ids)})

    def drop(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Adds the row of a document that is dropped, with `reason` and `detail`; returns it."""
        return self.add_row({**row, "tokens": 0})

    def add_row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Adds a whole row, whose ids are added elsewhere; returns it."""
        self.rows.append(row)
        if self.held >= FLUSH_TOKENS or len(self.rows) >= FLUSH_ROWS:
            self._flush()
        return row

    def link_tokens(self, file: pathlib.Path) -> None:
        """Takes the ids of another part instead of own ones."""
        self._unfinished("tokens").unlink()
        os.symlink(file.resolve(), self._unfinished("tokens"))

    def finish(self, label: Mapping[str, Any]) -> None:
        """Gives the files their names. The last has `label` and the digests of the others."""
        self._flush()
        self.stream.close()
        # Not synced: the next part would wait for the disk. After a kill or a power cut the digests
        # are compared.
        digests = {}
        for suffix, file in (("tokens", self.tokens_file), ("documents", self.documents_file)):
            file.close()
            digests[suffix] = file_digest(self._unfinished(suffix))
            os.replace(self._unfinished(suffix), part_file(self.folder, self.number, suffix))
        self._unfinished("json").write_text(json.dumps({**label, "digests": digests}))
        os.replace(self._unfinished("json"), part_file(self.folder, self.number, "json"))

    def abandon(self) -> None:
        """Removes the unfinished files."""
        for suffix, file in (("tokens", self.tokens_file), ("documents", self.documents_file)):
            file.close()
            self._unfinished(suffix).unlink(missing_ok=True)

    def _unfinished(self, suffix: str) -> pathlib.Path:
        return self.folder / f".{self.unique}.{suffix}"

    def _flush(self) -> None:
        if self.ids:
            self.tokens_file.write(np.concatenate(self.ids).data)
        self.stream.write_batch(_batch(self.rows))
        self.ids, self.held, self.rows = [], 0, []


def _batch(rows: Sequence[Mapping[str, Any]]) -> pyarrow.RecordBatch:
    columns = [[row.get(name) for row in rows] for name in SCHEMA.names]
    try:
        return pyarrow.record_batch(columns, schema=SCHEMA)
    except UnicodeEncodeError:
        # The name of a file in another encoding, or a key with half a surrogate pair.
        readable = [list(map(_readable, column)) for column in columns]
        return pyarrow.record_batch(readable, schema=SCHEMA)


def _readable(value: Any) -> Any:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


@functools.lru_cache(maxsize=1)
def _corpus(text: str) -> Corpus:
    return Corpus.from_json(text)


def build_part(job: Job) -> None:
    """Makes the files of a part, unless they are there.

    What is wrong with the input is written to a file, for `raise_failure`.

    Raises:
      OSError: a disk that is full, for instance.
      Fault: an error that nobody foresaw, with its type and the file that was read. Its traceback
        is printed. The input may be right, so the parts that are finished are kept.
    """
    if job.is_done():
        return
    corpus = _corpus(job.corpus)
    writer = PartWriter(
        pathlib.Path(job.folder), job.number, dtype=token_dtype(corpus.tokenizer.vocab_size)
    )
    try:
        source = corpus.source(job.task)
        if source is None:
            _fill_from_task(writer, job, corpus)
        elif job.tokenised is None:
            for _ in _tokenise(writer, job, corpus, source):
                pass
        else:
            _fill_cleaned(writer, job, corpus, source)
        writer.finish(_label(job))
    except (UsageError, Fault) as error:
        kind = "usage_error" if isinstance(error, UsageError) else "fault"
        write_whole(job.file("failed"), json.dumps({kind: str(error)}))
        writer.abandon()
    except (OSError, KeyboardInterrupt, SystemExit):
        writer.abandon()
        raise
    except BaseException as error:  # a library in Rust raises a panic, which is no Exception
        writer.abandon()
        traceback.print_exc()
        where = f", {job.part.path}" if job.part is not None else ""
        message = f"{type(error).__name__}: {error}".removesuffix(": ")
        # As a Fault: a pool could not pickle every error.
        raise Fault(f"source {job.task!r}, split {job.split!r}{where}: {message}") from error


def tables(
    folder: pathlib.Path, parts: int, columns: Sequence[str]
) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
    """(number of the part, record batch) of the tables of all parts in order, `columns` alone."""
    for number in range(parts):
        for batch in _table(part_file(folder, number, "documents")):
            yield number, batch.select(list(columns))


def _table(path: pathlib.Path) -> Iterator[pyarrow.RecordBatch]:
    with open(path, "rb") as file, pyarrow.ipc.open_stream(file) as stream:
        yield from stream


def raise_failure(job: Job) -> None:
    """Raises the error of a part that could not be made.

    Raises:
      UsageError, Fault: with its message.
    """
    try:
        failure = json.loads(job.file("failed").read_text())
    except FileNotFoundError:
        return
    if "usage_error" in failure:
        raise UsageError(failure["usage_error"])
    raise Fault(failure["fault"])


def _read_documents(job: Job, source: Source) -> Iterator[tuple[dict[str, Any], str | None]]:
    """(row, text) of every record of a part; the text is None if the document is dropped."""
    assert job.part is not None
    is_second_reading = source.reads_train_files(job.split)
    is_empty = True
    for record in records(source, job.split, job.part):
        is_empty = False
        try:
            document = document_of(source, record)
        except BadRecord as bad:
            if source.on_bad_record == "refuse":
                raise refusal(source, str(bad)) from None
            if is_second_reading:
                continue
            yield {"where": record.where, "reason": "bad_record", "detail": str(bad)}, None
            continue
        if not belongs(source, job.split, document):
            yield {"reason": "date"}, None
            continue
        row: dict[str, Any] = {
            "where": document.where,
            "id": document.id,
            "date": document.date,
            "license": document.license,
        }
        text, dropped_by = filtered(source.filters, document.text)
        # A document that is dropped is counted in one split, too.
        if not is_chosen(source, job.split, document.text if text is None else text):
            yield {"reason": OTHER_SPLIT}, None
            continue
        if text is None or not text or text.isspace():
            yield row | {"reason": dropped_by or "empty"}, None
        else:
            yield row, text
    is_whole = job.part.start == 0 and job.part.size >= os.path.getsize(job.part.path)
    if is_empty and is_whole and not is_second_reading:
        print(f"{job.task} {job.split}: {job.part.path} holds no record", file=sys.stderr)


def _tokenise(
    writer: PartWriter, job: Job, corpus: Corpus, source: Source
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """`_read_documents` with whole rows, each added to `writer`."""
    tokenizer = corpus.tokenizer
    for batch in _batches(_read_documents(job, source)):
        digests = iter(document_digests([text for _, text in batch if text is not None]))
        for row, text in batch:
            if text is None:
                yield writer.drop(row), None
                continue
            encoded = tokenizer.encode_array(text)
            ids = np.empty(len(encoded) + 1, writer.dtype)
            ids[:-1], ids[-1] = encoded, tokenizer.eos_id
            found = tokenizer.text_bytes(text, encoded)
            row |= {"text_bytes": found.size, "lost": found.lost, "digest": next(digests)}
            row["bytes"] = found.size - sum(more for _, more in found.extra)
            yield writer.add(ids, row | _extra(job, found)), text


def _batches(
    documents: Iterable[tuple[dict[str, Any], str | None]],
) -> Iterator[list[tuple[dict[str, Any], str | None]]]:
    """Some documents at a time: a short text alone would cost as much as many."""
    held: list[tuple[dict[str, Any], str | None]] = []
    characters = 0
    for row, text in documents:
        held.append((row, text))
        characters += len(text or "")
        if characters >= BATCH_CHARACTERS or len(held) >= FLUSH_ROWS:
            yield held
            held, characters = [], 0
    yield held


def _extra(job: Job, found: TextBytes) -> dict[str, bytes]:
    """The column `extra`. Only evaluations divide by the bytes of a part of a document."""
    if not found.extra or job.split != "validation":
        return {}
    return {"extra": np.array(found.extra, np.int64).tobytes()}


def _fill_cleaned(writer: PartWriter, job: Job, corpus: Corpus, source: Source) -> None:
    """Adds the rows of the part before cleaning, with what is found in the texts.

    That part is made along the way if it is not there: so a text is read once.
    """
    before = job.before_cleaning()
    if before.is_done():
        rows = (row for batch in _table(before.file("documents")) for row in batch.to_pylist())
        if job.index is None and not (corpus.duplicates and corpus.duplicates.near):
            for row in rows:  # the digests are there, and the texts are not needed
                writer.add_row(row)
        else:
            texts = (text for _, text in _read_documents(job, source))
            _add_cleaned(writer, zip(rows, texts, strict=True), job, corpus)
    else:
        making = PartWriter(pathlib.Path(before.folder), job.number, dtype=writer.dtype)
        try:
            _add_cleaned(writer, _tokenise(making, before, corpus, source), job, corpus)
            making.finish(_label(before))
        except BaseException:
            making.abandon()
            raise
    writer.link_tokens(before.file("tokens"))


def _add_cleaned(
    writer: PartWriter,
    documents: Iterable[tuple[dict[str, Any], str | None]],
    job: Job,
    corpus: Corpus,
) -> None:
    """Adds the rows of `documents` with what is found in the texts."""
    for batch in _batches(documents):
        for row in _cleaned(batch, job, corpus):
            writer.add_row(row)


def _cleaned(
    documents: Sequence[tuple[dict[str, Any], str | None]], job: Job, corpus: Corpus
) -> Iterator[dict[str, Any]]:
    """The rows, with the reasons why documents are dropped, or else with their signatures."""
    texts = [text for _, text in documents if text is not None]
    contamination, duplicates = corpus.contamination, corpus.duplicates
    near = duplicates if duplicates is not None and duplicates.near else None
    if not texts or (job.index is None and near is None):
        yield from (row for row, _ in documents)
        return
    words = words_of_texts(texts)
    overlaps = iter(_index(job.index).overlaps(words) if job.index is not None else [])
    signatures = iter(near.signatures(texts, words) if near else [])
    for row, text in documents:
        found: dict[str, Any] = {}
        if text is not None and near:
            found["signature"] = next(signatures).tobytes()
        if text is not None and contamination is not None and job.index is not None:
            overlap = next(overlaps)
            if overlap.share > contamination.max_share:
                detail = (
                    f"{overlap.share:.0%} of its words are in runs of {overlap.evaluation_set}, "
                    f"most of them in {overlap.where}"
                )
                found = {"reason": CONTAMINATED, "detail": detail}
        yield row | found


@functools.lru_cache(maxsize=1)
def _index(folder: str) -> Index:
    return Index(pathlib.Path(folder))


def _fill_from_task(writer: PartWriter, job: Job, corpus: Corpus) -> None:
    for number, ids in enumerate(_task_documents(job, corpus)):
        row: dict[str, Any] = {"where": f"{job.task} {job.split} example {number}"}
        if len(ids) == 1:
            writer.drop(row | {"reason": "empty"})
            continue
        text = corpus.tokenizer.decode(ids[:-1])
        row |= {"digest": document_digest(text)}
        (row,) = _cleaned([(row, text)], job, corpus)
        if "reason" in row:
            writer.drop(row)
            continue
        found = corpus.tokenizer.id_bytes(ids)
        row["bytes"] = found.size
        writer.add(ids, row | _extra(job, found))


def _task_documents(job: Job, corpus: Corpus) -> Iterator[np.ndarray]:
    from t5x_style.data.building.seqio_tasks import load_module, task_tokens

    load_module(corpus)
    return task_tokens(
        job.task,
        job.split,
        corpus.tokenizer,
        use_cached=corpus.use_cached_tasks,
        seed=corpus.seed,
    )
