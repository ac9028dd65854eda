"""The verb `cache`: token stores built, described, verified."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gin

from t5x_style.config.checks import refuse_unconsumed

if TYPE_CHECKING:
    from t5x_style.data import Corpus, SharePhase, TokenStore

# The mixture files bind both verbs of the data room.
CONFIGURABLES = ("t5x_style.data", "t5x_style.commands.corpora.tokenizer")

SHOWN_LICENSES = 20


@gin.configurable
def cache(
    *,
    corpus: Corpus,
    describe: bool = False,
    verify: bool = False,
    dry_run: bool = False,
    beam_options: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Builds the token stores of a blend that are missing or no longer match.

    Training does that too. This verb does it beforehand, or describes and verifies the stores.

    Args:
      corpus: sources, blend and tokenizer, @Corpus().
      describe: also show lengths of documents, counts of dropped ones by reason, licenses, dates,
        checksums, and the beginning of a document.
      verify: read every byte of the stores, and compare with the checksums of their build.
      dry_run: print the stores that would be built, and stop.
      beam_options: of an Apache Beam pipeline that builds, such as ['--runner=DirectRunner'],
        instead of processes of this machine; the bytes are the same.
    """
    refuse_unconsumed()
    from t5x_style.data import ensure_stores, missing_stores
    from t5x_style.reporting import table

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
