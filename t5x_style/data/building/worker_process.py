"""`python -m t5x_style.data.building.worker_process`: builds token stores.

Its process may import TensorFlow.

A request is a line of JSON on standard input, its answer a line on standard output. Progress goes
to standard error. `t5x_style.data.stores.builder_client.Builder` is the other end.

A split is cut into parts (`documents.parts`). Workers make them into ids (`parts.build_part`), in a
pool of processes (`pool`) or in Apache Beam (`beam`). This process puts them together
(`assemble`).
"""

import contextlib
import datetime
import itertools
import json
import multiprocessing
import multiprocessing.util
import os
import pathlib
import queue
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow.compute
import pyarrow.parquet

from t5x_style.data.building.assemble import assemble
from t5x_style.data.building.beam import run_with_beam
from t5x_style.data.building.decontaminate import ensure_index
from t5x_style.data.building.parts import CONTAMINATED, Job, build_part, raise_failure
from t5x_style.data.building.pool import run_in_pool
from t5x_style.data.building.progress import Progress
from t5x_style.data.cleaning.duplicates import WHY
from t5x_style.data.sources.documents import parts
from t5x_style.data.stores.corpus import Corpus
from t5x_style.data.stores.planned import PlannedStore, meta_digests, source_content, unbuilt
from t5x_style.data.stores.token_store import DOCUMENTS_FILE, DROPPED_FILE, store_lock, token_dtype
from t5x_style.errors import Fault, UsageError
from t5x_style.files import publish_folder

# Makes the parts of jobs, and yields the jobs in order once they are made.
Engine = Callable[[list[Job]], Iterator[Job]]
# Bad records of a store that are printed; dropped.parquet has all.
PRINTED_RECORDS = 20


def build_stores(plans: Sequence[PlannedStore], corpus: Corpus, engine: Engine) -> None:
    """Builds stores, unless another process built them while this one waited for the locks.

    The parts of all stores are made in parallel. A part that an earlier start finished is not made
    again.

    Raises:
      UsageError, Fault: the error of the first part or store that could not be made.
    """
    with contextlib.ExitStack() as held:
        folders = {plan.path for plan in plans} | {plan.tokenised for plan in plans}
        # In one order, or two builders would wait for each other.
        for folder in sorted(folder for folder in folders if folder is not None):
            held.enter_context(store_lock(folder))
        plans = unbuilt(plans)
        # A store comes after those that it depends on.
        plans.sort(key=lambda plan: len(plan.depends_on))
        validation = [plan for plan in plans if not plan.against]
        trained_on = [plan for plan in plans if plan.against]
        # The index of contamination needs the validation stores first.
        for group in (validation, trained_on) if corpus.contamination else (plans,):
            _build_side_by_side(group, corpus, engine)


def _build_side_by_side(plans: Sequence[PlannedStore], corpus: Corpus, engine: Engine) -> None:
    with contextlib.ExitStack() as held:
        jobs = {plan: _jobs(plan, corpus) for plan in plans if not _is_assembled(plan)}
        undone = [
            job for plan in jobs for job in jobs[plan] if job.part is not None and not job.is_done()
        ]
        reused = sum(job.is_done() for plan in jobs for job in jobs[plan])
        if reused:
            print(f"{reused:,} parts are there from an earlier start", file=sys.stderr)
        dtype = token_dtype(corpus.tokenizer.vocab_size)
        progress = held.enter_context(Progress(undone, dtype.itemsize))
        made = engine(undone)
        waiting = set(undone)
        for plan in plans:
            if plan in jobs:
                for job in jobs[plan]:
                    if job in waiting:
                        next(made)
                files = []
                if corpus.source(plan.task) is None:
                    # Their state before they are read: a file may change meanwhile.
                    files = _task_files(plan, corpus)
                    (job,) = jobs[plan]
                    build_part(job)  # imports TensorFlow, which no worker needs to
                progress.look()
                _assemble(plan, jobs[plan], corpus, files)
            _publish(plan)


def _folder(plan: PlannedStore) -> pathlib.Path:
    """The folder in which a store is built. After a kill the next builder continues there."""
    return plan.path.with_name(f".building-{plan.path.name}")


def _is_assembled(plan: PlannedStore) -> bool:
    return plan.is_complete_in(_folder(plan) / "store")


def _jobs(plan: PlannedStore, corpus: Corpus) -> list[Job]:
    folder = _folder(plan)
    folder.mkdir(parents=True, exist_ok=True)
    source = corpus.source(plan.task)
    found = [None] if source is None else parts(source, plan.split)
    text = corpus.to_json()
    index = None
    if corpus.contamination is not None and plan.split == "train":
        index = str(ensure_index(plan.against, corpus))
    tokenised = None
    if plan.tokenised is not None:
        plan.tokenised.mkdir(parents=True, exist_ok=True)
        tokenised = str(plan.tokenised)
    jobs = [
        Job(text, plan.task, plan.split, str(folder), number, part, index, tokenised)
        for number, part in enumerate(found)
    ]
    for job in jobs:
        job.file("failed").unlink(missing_ok=True)
    return jobs


def _task_files(plan: PlannedStore, corpus: Corpus) -> list[list]:
    from t5x_style.data.building.seqio_tasks import load_module, task_files

    load_module(corpus)
    return task_files(plan.task, plan.split, use_cached=corpus.use_cached_tasks)


def _assemble(plan: PlannedStore, jobs: Sequence[Job], corpus: Corpus, files: list[list]) -> None:
    folder = _folder(plan)
    source = corpus.source(plan.task)
    meta: dict[str, Any] = {
        "source": plan.task,
        "split": plan.split,
        "tokenizer_hash": corpus.tokenizer.hash,
        "fingerprint": plan.fingerprint,
        "filtered": {filter_.name: 0 for filter_ in source.filters} if source else {},
        "files": files,
    }
    if plan.depends_on:
        meta["follows"] = meta_digests(plan.depends_on)
    if corpus.duplicates is not None:
        meta["filtered"] |= dict.fromkeys(WHY[1:] if corpus.duplicates.near else WHY[1:2], 0)
    if corpus.contamination is not None and plan.split == "train":
        meta["filtered"][CONTAMINATED] = 0
    try:
        for job in jobs:
            raise_failure(job)
        if source and plan.content != source_content(
            source, plan.split, pathlib.Path(corpus.cache_dir)
        ):
            if plan.tokenised is not None:  # their ids may be of other text than their name says
                shutil.rmtree(plan.tokenised)
            raise Fault(
                f"source {source.name!r}, split {plan.split!r}: files of "
                f"{source.split(plan.split).where!r} changed while they were read: start again"
            )
        made = assemble(
            folder,
            len(jobs),
            dtype=token_dtype(corpus.tokenizer.vocab_size),
            seed=int(plan.fingerprint[:16], 16),
            meta=meta,
            duplicates=corpus.duplicates,
            earlier=plan.earlier,
        )
    except (UsageError, Fault):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    label = f"{plan.task} {plan.split}"
    _print_skipped(label, folder / "store", plan.path, made["skipped"])
    if source and source.needs_dates():
        _print_future_dates(label, folder / "store", made)
    print(f"{label}: {made['documents']:,} documents, {made['tokens']:,} tokens", file=sys.stderr)


def _print_skipped(label: str, store: pathlib.Path, place: pathlib.Path, skipped: int) -> None:
    """Prints how many bad records a store has skipped, and the first of them.

    Args:
      label: source and split.
      store: the folder of the store.
      place: the folder that it is going to have.
      skipped: how many.
    """
    if not skipped:
        return
    print(
        f"{label}: bad records skipped: {skipped:,}, listed in {place / DROPPED_FILE}",
        file=sys.stderr,
    )
    with pyarrow.parquet.ParquetFile(store / DROPPED_FILE) as file:
        rows = file.iter_batches(1024, columns=["reason", "detail"])
        bad = (
            row["detail"]
            for batch in rows
            for row in batch.to_pylist()
            if row["reason"] == "bad_record"
        )
        for message in itertools.islice(bad, PRINTED_RECORDS):
            print(f"{label}: skipped: {message}", file=sys.stderr)


def _print_future_dates(label: str, store: pathlib.Path, meta: Mapping[str, Any]) -> None:
    """Tells of documents of the future, as SQL's open end 9999-12-31 makes them."""
    # The latest date that it is anywhere.
    today = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=14)).date().isoformat()
    latest = meta.get("dates", [""])[-1]
    if latest[: len(today)] <= today:
        return
    count = 0
    with pyarrow.parquet.ParquetFile(store / DOCUMENTS_FILE) as file:
        for batch in file.iter_batches(columns=["date"]):
            days = pyarrow.compute.utf8_slice_codeunits(batch["date"], 0, len(today))
            count += pyarrow.compute.sum(pyarrow.compute.greater(days, today)).as_py() or 0
    print(
        f"{label}: {count:,} documents are dated in the future, the last of them {latest}; "
        f"Source.dates = (FROM, BEFORE) leaves them out",
        file=sys.stderr,
    )


def _publish(plan: PlannedStore) -> None:
    folder = _folder(plan)
    # Before the store has its name: later nobody would look for them.
    for entry in folder.iterdir():
        if entry != folder / "store":
            entry.unlink()
    shutil.rmtree(plan.path, ignore_errors=True)
    publish_folder(folder / "store", plan.path)
    folder.rmdir()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request.

    {'action': 'resolve', 'corpus': JSON}: shares and splits that a module declares.
    {'action': 'build', 'corpus': JSON, 'plans': [...], 'beam_options': [...] or null}.
    """
    corpus = Corpus.from_json(request["corpus"])
    if request["action"] == "resolve":
        from t5x_style.data.building.seqio_tasks import declared_blend, load_module

        load_module(corpus)
        shares: dict[str, dict[str, float]] = {}
        splits: dict[str, list[str]] = {}
        for name in corpus.blend_names():
            shares[name], of_tasks = declared_blend(corpus, name)
            splits |= of_tasks
        return {"shares": shares, "splits": splits}
    plans = [PlannedStore.from_json(plan) for plan in request["plans"]]
    options = request["beam_options"]

    def engine(jobs: list[Job]) -> Iterator[Job]:
        if options is not None:
            return run_with_beam(jobs, options)
        return run_in_pool(jobs, corpus.workers or os.cpu_count() or 1)

    try:
        build_stores(plans, corpus, engine)
    except OSError as error:
        raise Fault(f"building token stores: {error}; finished parts are kept") from error
    return {}


class Requests:
    """Lines from standard input. A thread reads them, so that its end is noticed during work."""

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
    # Libraries print to standard output: only answers may reach the client.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    requests = Requests()
    try:
        for request in requests:
            failed = True
            try:
                result = answer(request)
                failed = False
            except UsageError as error:
                result = {"usage_error": str(error)}
            except Fault as error:
                result = {"fault": str(error)}
            except Exception as error:
                traceback.print_exc()
                result = {"fault": f"building token stores: {type(error).__name__}: {error}"}
            requests.working = False
            if failed:
                # Before the answer: the other end kills this process when it has an error.
                _end_pool()
            out.write(json.dumps(result) + "\n")
            out.flush()
            if failed:
                # The interpreter would wait for the pool.
                os._exit(1)
    except KeyboardInterrupt:
        os._exit(130)


def _end_pool() -> None:
    """Ends the processes of a pool, and removes its semaphores: Python would say that they leak."""
    for process in multiprocessing.active_children():
        process.kill()
    multiprocessing.util._run_finalizers(0)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
