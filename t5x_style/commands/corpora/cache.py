"""The verb `cache`: token stores built, described, verified."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gin

from t5x_style.config.checks import refuse_unconsumed
from t5x_style.errors import UsageError
from t5x_style.quantities import byte_count

if TYPE_CHECKING:
    from t5x_style.data import Corpus, SharePhase, TokenStore
    from t5x_style.data.stores.prune import Entry

# The mixture files bind both verbs of the data room.
CONFIGURABLES = ("t5x_style.data", "t5x_style.commands.corpora.tokenizer")

SHOWN_LICENSES = 20


@gin.configurable
def cache(
    *,
    corpus: Corpus,
    describe: bool = False,
    verify: bool = False,
    prune: bool = False,
    model_dirs: str | Sequence[str] = (),
    dry_run: bool = False,
    beam_options: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Builds the token stores of a blend that are missing or no longer match.

    Training does that too. This verb does it beforehand, or describes and verifies the stores.

    Args:
      corpus: sources, blend and tokenizer, @Corpus().
      describe: also show all that the cache directory holds, and what of it this corpus needs;
        lengths of documents, counts of dropped ones by reason, licenses, dates, checksums, and the
        beginning of a document.
      verify: read every byte of the stores, and compare with the checksums of their build.
      prune: build nothing; remove what neither this corpus nor the runs of `model_dirs` need, after
        listing it. With --dry_run only list it. What a process builds or reads stays.
      model_dirs: runs whose stores are needed: a list, or separated by commas.
      dry_run: print the stores that would be built, or what would be removed, and stop.
      beam_options: of an Apache Beam pipeline that builds, such as ['--runner=DirectRunner'],
        instead of processes of this machine; the bytes are the same.
    """
    refuse_unconsumed()
    from t5x_style.data import ensure_stores, missing_stores
    from t5x_style.data.stores.prune import entries
    from t5x_style.reporting import table

    if model_dirs and not prune:
        raise UsageError(f"--model_dirs={model_dirs} names runs that --prune spares: add --prune")
    if prune:
        if describe or verify:
            raise UsageError("--prune builds and opens no store: omit --describe and --verify")
        runs = model_dirs.split(",") if isinstance(model_dirs, str) else model_dirs
        return _prune(corpus, [run for run in runs if run], dry_run)
    missing = missing_stores(corpus)
    if dry_run:
        for plan in missing:
            print(f"would build {plan.task} {plan.split} as {plan.path}")
        if not missing:
            print("every store is there")
        return {"missing": [f"{plan.task} {plan.split}" for plan in missing]}
    stores = ensure_stores(corpus, beam_options=beam_options)
    opened = [*stores.train.values(), *stores.validation.values()]
    facts = [_facts(store) for store in opened]
    print(table([list(row.values()) for row in facts], list(facts[0])))
    for phase in stores.phases:
        print(_phase_text(phase))
    for notice in stores.notices:
        print(notice)
    if describe:
        print(_entries_table(entries(corpus)))
        for store in opened:
            print(_description(store, corpus))
    if verify:
        for store in opened:
            store.verify()
        print("every byte is as it was built")
    return {
        "stores": [
            row | {"path": str(store.path)} for row, store in zip(facts, opened, strict=True)
        ],
        "phases": [dataclasses.asdict(phase) for phase in stores.phases],
        "notices": list(stores.notices),
        "built": [f"{plan.task} {plan.split}" for plan in missing],
        "verified": verify,
    }


def _prune(corpus: Corpus, model_dirs: Sequence[str], dry_run: bool) -> dict[str, Any]:
    from t5x_style.data.stores.prune import entries, remove

    stores = [store for model_dir in model_dirs for store in _stores_of_run(model_dir)]
    unneeded = [entry for entry in entries(corpus, stores) if not entry.needed]
    for entry in unneeded:
        verb = "would remove" if dry_run else "removes"
        print(f"{verb} {entry.path}: {entry.kind}, {byte_count(entry.size)}", flush=True)
    kept = [] if dry_run else [entry for entry in unneeded if not remove(entry)]
    for entry in kept:
        print(f"stays: a process builds or reads {entry.path}")
    gone = [entry for entry in unneeded if entry not in kept]
    size = sum(entry.size for entry in gone)
    names = f"; the runs {', '.join(model_dirs)} keep theirs" if model_dirs else ""
    print(
        f"{len(gone)} {'would be ' if dry_run else ''}removed, {byte_count(size)}: needed neither "
        f"by this corpus nor by a run that is named{names}"
    )
    return {
        "removed": [str(entry.path) for entry in gone],
        "bytes": size,
        "in_use": [str(entry.path) for entry in kept],
    }


def _stores_of_run(model_dir: str) -> list[str]:
    from t5x_style.reporting import read_derived

    derived = read_derived(model_dir)
    held_out = [store.store for version in derived.held_out for store in version.stores.values()]
    return [*(source.store for source in derived.sources.values()), *held_out]


def _entries_table(found: Sequence[Entry]) -> str:
    from t5x_style.reporting import table

    rows = [
        (entry.path.name, entry.kind, byte_count(entry.size), "yes" if entry.needed else "no")
        for entry in found
    ]
    return "\n" + table(rows, ("in the cache directory", "kind", "size", "needed here"))


def _phase_text(phase: SharePhase) -> str:
    blends = [
        ", ".join(f"{name} {100 * share:.6g} %" for name, share in shares.items())
        for shares in (phase.start, phase.end)
    ]
    length = "" if phase.tokens is None else f" for {phase.tokens:,} tokens"
    return f"blend by token{length}: " + " to ".join(dict.fromkeys(blends))


def _facts(store: TokenStore) -> dict[str, Any]:
    meta = store.meta
    # Of ids without text only what they decode to is known.
    size = meta["bytes"] if meta["text_bytes"] is None else meta["text_bytes"]
    return {
        "source": meta["source"],
        "split": meta["split"],
        "documents": meta["documents"],
        "tokens": meta["tokens"],
        "bytes": size,
        "bytes/token": size / meta["tokens"],
        "lossy documents": meta["lossy_documents"],
        "lost bytes": meta["lost_bytes"],
        "skipped": meta["skipped"],
        "empty": meta["dropped"],
        # A store that was built before there were filters has no such entry.
        "filtered": sum(meta.get("filtered", {}).values()),
    }


def _description(store: TokenStore, corpus: Corpus) -> str:
    import numpy as np

    meta = store.meta
    lengths = np.diff(store.document_ends, prepend=0)
    tenths = np.percentile(lengths, [10, 50, 90, 100]).astype(int)
    beginning = corpus.tokenizer.decode(store.tokens[: min(60, int(store.document_ends[0]))])
    dropped = {"bad records": meta["skipped"], "empty": meta["dropped"]} | meta.get("filtered", {})
    lines = [
        f"\n{meta['source']} {meta['split']}: {store.path}",
        f"  tokens a document: 10 % below {tenths[0]:,}, half below {tenths[1]:,}, "
        f"90 % below {tenths[2]:,}, longest {tenths[3]:,}",
        "  documents dropped: "
        + (", ".join(f"{name} {count:,}" for name, count in dropped.items() if count) or "none"),
    ]
    if "dates" in meta:
        lines.append(f"  dates from {meta['dates'][0]} to {meta['dates'][1]}")
    for name, documents, tokens in meta.get("licenses", [])[:SHOWN_LICENSES]:
        lines.append(f"  license {name or 'not named'}: {documents:,} documents, {tokens:,} tokens")
    if len(meta.get("licenses", [])) > SHOWN_LICENSES:
        lines.append(f"  and {len(meta['licenses']) - SHOWN_LICENSES:,} licenses more")
    lines += [f"  {name} {digest}" for name, digest in meta["checksums"].items()]
    return "\n".join([*lines, f"  begins {beginning!r}"])
