"""`python -m t5x_style.data.build`: builds token stores, in a process that may import TensorFlow.

Each request is a line of JSON on standard input, each answer one on standard output; progress goes
to standard error. `t5x_style.data.stores.Builder` is the other end.
"""

import collections
import concurrent.futures.process
import contextlib
import dataclasses
import fcntl
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import queue
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from t5x_style.data.corpus import Corpus
from t5x_style.data.filters import filtered
from t5x_style.data.progress import Progress
from t5x_style.data.records import (
    BadRecord,
    Record,
    belongs,
    document_of,
    parts,
    records,
    refusal,
)
from t5x_style.data.sources import Source
from t5x_style.data.store import StoreWriter, token_dtype
from t5x_style.data.stores import PlannedStore
from t5x_style.data.tokenizer import Tokenizer
from t5x_style.errors import Fault, UsageError

# A unit of work: large enough that handing it over costs nothing, small enough to spread.
BATCH_BYTES = 1 << 20


@dataclasses.dataclass
class Encoded:
    """What a worker makes of a batch of records.

    Attributes:
      tokens: ids of its documents end to end, each ended by EOS.
      lengths: int64 [documents].
      text_bytes: of the documents' text.
      dropped: documents with no text but white space.
      filtered: documents that each filter dropped, by its name.
      bad: what was wrong with each bad record.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    text_bytes: int
    dropped: int
    filtered: dict[str, int]
    bad: list[str]


def encode(batch: list[Record], source: Source, split: str, tokenizer: Tokenizer) -> Encoded:
    """Tokenises records; a bad one is named in the result, the rest go on."""
    ids: list[np.ndarray] = []
    text_bytes = dropped = 0
    dropped_by = dict.fromkeys((each.name for each in source.filters), 0)
    bad = []
    dtype = token_dtype(tokenizer.vocab_size)
    for record in batch:
        try:
            document = document_of(source, record)
            text, dropped_it = filtered(source.filters, document.text)
        except BadRecord as reason:
            bad.append(str(reason))
            if source.on_bad_record == "refuse":
                break
            continue
        if not belongs(source, split, document):
            continue
        if text is None:
            dropped_by[dropped_it] += 1
            continue
        if not text.strip():
            dropped += 1
            continue
        text_bytes += len(text.encode())
        ids.append(np.append(tokenizer.encode_array(text), tokenizer.eos_id).astype(dtype))
    lengths = np.array([len(document) for document in ids], np.int64)
    tokens = np.concatenate(ids) if ids else np.zeros(0, dtype)
    return Encoded(tokens, lengths, text_bytes, dropped, dropped_by, bad)


def batches(source: Source, split: str, progress: Progress) -> Iterator[list[Record]]:
    """The records of a split in order, about a megabyte at a time."""
    batch: list[Record] = []
    held = 0
    for part in parts(source, split):
        for record in records(source, split, part, progress.read):
            batch.append(record)
            held += len(record.data) if isinstance(record.data, bytes) else BATCH_BYTES // 1024
            if held >= BATCH_BYTES:
                yield batch
                batch, held = [], 0
    if batch:
        yield batch


class WorkerDied(Fault):
    """A process that tokenises is gone, and the pool with it."""


class Workers:
    """A pool of processes that tokenise, in order, a few batches ahead of who takes them."""

    def __init__(self, tokenizer: Tokenizer, count: int):
        """Starts `count` processes at first use; with one, this process does the work."""
        self.tokenizer = tokenizer
        self.count = count
        self.pool: concurrent.futures.ProcessPoolExecutor | None = None

    def encoded(self, source: Source, split: str, progress: Progress) -> Iterator[Encoded]:
        """Each batch of the split, tokenised, in order."""
        work = batches(source, split, progress)
        if self.count == 1:
            for batch in work:
                yield encode(batch, source, split, self.tokenizer)
            return
        if self.pool is None:
            # Spawned, not forked: this process may hold TensorFlow's threads.
            self.pool = concurrent.futures.ProcessPoolExecutor(
                self.count,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(self.tokenizer,),
            )
        pending: collections.deque[concurrent.futures.Future[Encoded]] = collections.deque()
        for batch in work:
            pending.append(self.pool.submit(_encode_in_worker, batch, source, split))
            if len(pending) > 3 * self.count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def close(self, *, wait: bool) -> None:
        """Ends the processes; work in hand is dropped."""
        if self.pool is not None:
            self.pool.shutdown(wait=wait, cancel_futures=True)


_worker_tokenizer: Tokenizer


def _start_worker(tokenizer: Tokenizer) -> None:
    global _worker_tokenizer
    _worker_tokenizer = tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends us
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent():
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _encode_in_worker(batch: list[Record], source: Source, split: str) -> Encoded:
    return encode(batch, source, split, _worker_tokenizer)


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a store; it falls with the process that holds it, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".lock-{path.name}"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{path.name}: another process is building it, waiting", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_store(plan: PlannedStore, corpus: Corpus, workers: Workers) -> None:
    """Builds one store, unless somebody else did while we waited for its lock."""
    with locked(plan.path):
        if plan.stands():
            return
        shutil.rmtree(plan.path, ignore_errors=True)
        source = corpus.source(plan.task)
        writer = StoreWriter(
            plan.path,
            dtype=token_dtype(corpus.tokenizer.vocab_size),
            seed=int(plan.fingerprint[:16], 16),
        )
        try:
            if source is not None:
                counts = _fill_from_source(writer, source, plan.split, workers)
            else:
                counts = _fill_from_task(writer, plan, corpus)
            writer.finish(
                {
                    "source": plan.task,
                    "split": plan.split,
                    "tokenizer_hash": corpus.tokenizer.hash,
                    "fingerprint": plan.fingerprint,
                }
                | counts
            )
        except BaseException:
            writer.abandon()
            raise


def _fill_from_source(
    writer: StoreWriter, source: Source, split: str, workers: Workers
) -> dict[str, Any]:
    token_bytes = workers.tokenizer.token_bytes()
    stood_for = text_bytes = dropped = skipped = 0
    dropped_by: collections.Counter[str] = collections.Counter()
    files = [] if source.format == "tfds" else source.files(split)
    progress = Progress(f"{source.name} {split}", sum(file.stat().st_size for file in files))
    for encoded in workers.encoded(source, split, progress):
        if encoded.bad and source.on_bad_record == "refuse":
            raise refusal(source, encoded.bad[0])
        for reason in encoded.bad:
            progress.say(f"skipped: {reason}")
        writer.add(encoded.tokens, encoded.lengths)
        stood_for += int(token_bytes[encoded.tokens].sum(dtype=np.int64))
        text_bytes += encoded.text_bytes
        dropped += encoded.dropped
        dropped_by.update(encoded.filtered)
        skipped += len(encoded.bad)
        progress.wrote(len(encoded.lengths), len(encoded.tokens))
    progress.close()
    return {
        "bytes": stood_for,
        "text_bytes": text_bytes,
        "dropped": dropped,
        "skipped": skipped,
        "filtered": dict(dropped_by),
        "files": [],
    }


def _fill_from_task(writer: StoreWriter, plan: PlannedStore, corpus: Corpus) -> dict[str, Any]:
    from t5x_style.data.tasks import load_module, task_files, task_tokens

    load_module(corpus)
    token_bytes = corpus.tokenizer.token_bytes()
    stood_for = dropped = 0
    progress = Progress(f"{plan.task} {plan.split}", 0)
    for tokens in task_tokens(plan.task, plan.split, corpus.tokenizer):
        if len(tokens) == 1:
            dropped += 1
            continue
        writer.add(tokens, np.array([len(tokens)]))
        stood_for += int(token_bytes[tokens].sum(dtype=np.int64))
        progress.wrote(1, len(tokens))
    progress.close()
    return {
        "bytes": stood_for,
        "text_bytes": None,
        "dropped": dropped,
        "skipped": 0,
        "filtered": {},
        "files": task_files(plan.task, plan.split),
    }


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Does what is asked: {'action': 'resolve' | 'build', 'corpus': JSON, 'plans': [...]}."""
    corpus = Corpus.from_json(request["corpus"])
    if request["action"] == "resolve":
        from t5x_style.data.tasks import declared_blend, load_module

        load_module(corpus)
        shares: dict[str, dict[str, float]] = {}
        splits: dict[str, list[str]] = {}
        for name in corpus.blend_names():
            shares[name], of_tasks = declared_blend(corpus, name)
            splits |= of_tasks
        return {"shares": shares, "splits": splits}
    workers = Workers(corpus.tokenizer, corpus.workers or os.cpu_count() or 1)
    died = False
    try:
        for plan in request["plans"]:
            plan = PlannedStore(**plan | {"path": pathlib.Path(plan["path"])})
            build_store(plan, corpus, workers)
    except concurrent.futures.process.BrokenProcessPool:
        died = True
        raise WorkerDied(
            "a process that tokenises died (out of memory?): lower Corpus.workers"
        ) from None
    finally:
        # Python before 3.11.6 waits for ever for a pool of which a process died while work was
        # being handed to it (python/cpython#94777).
        workers.close(wait=not died)
    return {}


class Requests:
    """Lines from standard input, read by a thread so that its end is noticed during work."""

    def __init__(self):
        """Starts reading."""
        self.lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.working = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        # Not through sys.stdin, whose lock this thread would hold when the interpreter ends.
        held = b""
        while part := os.read(0, 1 << 16):
            *lines, held = (held + part).split(b"\n")
            for line in lines:
                self.lines.put(line)
        if self.working:
            os._exit(1)
        self.lines.put(None)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (line := self.lines.get()) is not None:
            self.working = True
            yield json.loads(line)


def main() -> None:
    """Answers requests until standard input closes."""
    # Libraries print where they like: only answers may reach the one who asked.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    requests = Requests()
    try:
        for request in requests:
            died = False
            try:
                result = answer(request)
            except UsageError as error:
                result = {"usage_error": str(error)}
            except Fault as error:
                result = {"fault": str(error)}
                died = isinstance(error, WorkerDied)
            requests.working = False
            out.write(json.dumps(result) + "\n")
            out.flush()
            if died:
                # The interpreter, too, would wait for the pool on its way out.
                os._exit(1)
    except KeyboardInterrupt:
        os._exit(130)


if __name__ == "__main__":
    main()
