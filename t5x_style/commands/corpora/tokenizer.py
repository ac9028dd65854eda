"""The verb `tokenizer`: a vocabulary trained on the blend or extended, and what it makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gin

from t5x_style.config.checks import refuse_unconsumed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from t5x_style.data import Corpus, Tokenizer

# The mixture files bind both verbs of the data room.
CONFIGURABLES = ("t5x_style.data", "t5x_style.commands.corpora.cache")
# What an extended vocabulary has from its base.
FORM = {
    "model_type": "unigram",
    "spaces_inside_words": False,
    "text_symbols": [],
    "control_symbols": [],
}


@gin.configurable
def tokenizer(
    *,
    corpus: Corpus,
    vocab_size: int = 4096,
    vocab_sizes: Sequence[int] = (),
    round_to: int = 1,
    model_type: str = "unigram",
    spaces_inside_words: bool = False,
    text_symbols: Sequence[str] = (),
    control_symbols: Sequence[str] = (),
    extend: str | None = None,
    added_terms: Sequence[str] = (),
    output: str | None = None,
    sample_bytes: int = 4_000_000,
    seed: int = 0,
    compare: Sequence[str] = (),
    terms: Sequence[str] = (),
    terms_file: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Trains a vocabulary with byte fallback on the blend, and prints what it makes of text.

    The sample has the blend's shares, by byte. A vocabulary that was trained with the same
    arguments on the same files is left as it is.

    Args:
      corpus: sources and blend, @Corpus(); its tokenizer names the file to write.
      vocab_size: pieces, symbols, control ids and bytes included.
      vocab_sizes: train these sizes instead, each as OUTPUT with _SIZE in its name, and mark the
        one that writes the blend in the fewest bits as tokens x log2(size), as BloombergGPT chose.
      round_to: sizes are rounded up to a multiple of this: 128 times the devices that the
        vocabulary is split over wastes nothing on a TPU.
      model_type: 'unigram' or 'bpe'.
      spaces_inside_words: learn pieces of several words as well, as BloombergGPT does.
      text_symbols: strings that are one id each wherever a text has them.
      control_symbols: names of ids that no text is encoded to.
      extend: a sentencepiece .model file to add pieces to, up to vocab_size, instead of training
        one; its ids keep their meaning, and a run can start from weights trained with it. Type,
        spaces and symbols are then those of that file.
      added_terms: with extend, words and phrases that become one piece each, before others.
      output: the .model file to write; that of corpus.tokenizer if not given.
      sample_bytes: text to train on.
      seed: of the choice of documents.
      compare: other vocabularies to put into the tables: .model or .json files, or 'bytes'.
      terms: words and phrases of the domain to see in pieces.
      terms_file: more of them, one a line.
      dry_run: say what would be trained, and stop.
    """
    refuse_unconsumed()
    import pathlib

    from t5x_style.commands.corpora.fertility_tables import print_tables
    from t5x_style.data import Tokenizer
    from t5x_style.errors import UsageError

    if round_to < 1:
        raise UsageError(f"tokenizer.round_to = {round_to}: must be 1 or more")
    options: dict[str, Any] = {"sample_bytes": sample_bytes, "seed": seed}
    form = {
        "model_type": model_type,
        "spaces_inside_words": spaces_inside_words,
        "text_symbols": list(text_symbols),
        "control_symbols": list(control_symbols),
    }
    base = None
    if extend is None:
        options |= form
        if added_terms:
            raise UsageError("tokenizer.added_terms are for tokenizer.extend = 'BASE.model'")
    else:
        given = [name for name, value in form.items() if value != FORM[name]]
        if given:
            raise UsageError(
                f"tokenizer.{given[0]} = {form[given[0]]!r} cannot be with tokenizer.extend: "
                f"it is what it was for {extend!r}"
            )
        base = Tokenizer(extend)
        options |= {"extends": base.hash, "added_terms": list(added_terms)}
    shares = _declared(corpus)
    path = pathlib.Path(output or corpus.tokenizer.path)
    if path.suffix != ".model":
        raise UsageError(f"a vocabulary is trained into a '.model' file; {str(path)!r} is none")
    sizes = [-(-size // round_to) * round_to for size in vocab_sizes or [vocab_size]]
    paths = {path.with_stem(f"{path.stem}_{size}") if vocab_sizes else path: size for size in sizes}
    if base and any(file.resolve() == pathlib.Path(base.path).resolve() for file in paths):
        raise UsageError(
            f"tokenizer.extend = {extend!r} is the file to write: name another TOKENIZER, or "
            f"tokenizer.output"
        )
    shown_terms = [*terms, *_terms_in(terms_file)]
    others = {name: Tokenizer(name) for name in compare}
    for other in others.values():
        other.hash  # noqa: B018  a file that is not there is refused before the training
    trained = []
    for file, size in paths.items():
        made_from = _made_from(corpus, shares, {"vocab_size": size, **options})
        if dry_run:
            yet_to_be = "would be extended" if base else "would be trained"
            state = "is there" if _is_made(file, made_from) else yet_to_be
            print(f"{file}: {size:,} pieces, {state}")
        elif _make(corpus, shares, file, base, made_from):
            trained.append(str(file))
    if dry_run:
        return {"vocabularies": [str(file) for file in paths]}
    ours = {str(file): Tokenizer(str(file)) for file in paths}
    return {"trained": trained, **print_tables(corpus, shares, ours, others, shown_terms)}


def _terms_in(terms_file: str | None) -> list[str]:
    import pathlib

    from t5x_style.errors import UsageError

    if terms_file is None:
        return []
    file = pathlib.Path(terms_file)
    if not file.is_file():
        raise UsageError(f"tokenizer.terms_file = {terms_file!r}: no such file")
    return [line.strip() for line in file.read_text().splitlines() if line.strip()]


def _declared(corpus: Corpus) -> dict[str, float]:
    from t5x_style.errors import UsageError

    # Of several phases, the blend that the run ends with.
    shares = corpus.declared_shares(corpus.blend_names()[-1])
    if shares is None or not all(corpus.source(task) for task in shares):
        raise UsageError(
            f"{corpus.mixture_or_task_name!r} is made of Tasks of "
            f"{corpus.mixture_or_task_module!r}, which come with a vocabulary: one is trained on "
            f"sources declared in gin"
        )
    return shares


def _made_from(corpus: Corpus, shares: dict[str, float], options: dict[str, Any]) -> dict[str, Any]:
    """All that the vocabulary follows from, as it is kept beside it."""
    import pathlib

    from t5x_style.data.sources import filters
    from t5x_style.data.sources.files import content_digests

    cache_dir = pathlib.Path(corpus.cache_dir)
    sources = [source for source in corpus.sources if source.name in shares]
    return {
        **options,
        "sources": [
            {
                "name": source.name,
                "share": shares[source.name],
                "format": source.format,
                "text_field": source.text_field,
                "dates": [source.date_field, *source.date_window("train")],
                "on_bad_record": source.on_bad_record,
                "filters": filters.made_from(source.filters, cache_dir, remember=False),
                **({"dates": source.date_window("train")} if source.needs_dates() else {}),
                "files": content_digests(source.files("train"), cache_dir, remember=False),
            }
            for source in sources
        ],
    }


def _is_made(file: Path, made_from: dict[str, Any]) -> bool:
    from t5x_style.files import file_digest

    known = _told_beside(file)
    known.pop("extension", None)
    return file.is_file() and known == made_from | {"model": file_digest(file)}


def _told_beside(file: Path) -> dict[str, Any]:
    """The JSON file of the same name: ours, or somebody's tokenizer.json; empty without one."""
    import json

    beside = file.with_suffix(".json")
    return json.loads(beside.read_text()) if beside.is_file() else {}


def _make(
    corpus: Corpus,
    shares: dict[str, float],
    file: Path,
    base: Tokenizer | None,
    made_from: dict[str, Any],
) -> bool:
    """Trains or extends, unless that was done; refuses to write over what something else made."""
    import json
    import time

    from t5x_style.data.sources.documents import documents
    from t5x_style.data.tokenizers.extend import extend_vocabulary
    from t5x_style.data.tokenizers.train import train_tokenizer
    from t5x_style.errors import UsageError
    from t5x_style.files import file_digest, write_whole

    if _is_made(file, made_from):
        print(f"{file}: is there already, from the same arguments and files")
        return False
    if file.exists() and "sources" not in _told_beside(file):
        raise UsageError(f"{file} is there and was not made here: name another file to write")
    begun = time.monotonic()
    texts = {task: documents(source, "train") for task in shares if (source := corpus.source(task))}
    arguments = {name: value for name, value in made_from.items() if name != "sources"}
    beside = dict(made_from)
    if base is None:
        train_tokenizer(texts, shares, path=file, **arguments)
        what = "trained"
    else:
        del arguments["extends"]
        terms = arguments.pop("added_terms")
        extension = extend_vocabulary(base, texts, shares, path=file, terms=terms, **arguments)
        beside["extension"] = extension.to_json()
        what = f"({len(extension.sub_pieces):,} of them new) extended from {base.path}"
    beside["model"] = file_digest(file)
    write_whole(file.with_suffix(".json"), json.dumps(beside, indent=1) + "\n")
    pieces = made_from["vocab_size"]
    print(f"{file}: {pieces:,} pieces {what} in {time.monotonic() - begun:.1f} s")
    return True
