"""The verb `tokenizer`: a vocabulary trained on the blend or extended, and measured on it."""

from __future__ import annotations

import functools
import pathlib
import time
from typing import TYPE_CHECKING, Any

import gin

from t5x_style.config.checks import refuse_unconsumed
from t5x_style.ranges import PositiveInt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from t5x_style.data import Corpus
    from t5x_style.data.sources.sample import Sample

# The mixture files bind both verbs of the data room.
CONFIGURABLES = ("t5x_style.data", "t5x_style.commands.corpora.cache")
# An extended vocabulary takes these from its base: with `extend` they stay at their defaults.
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
    vocab_size: PositiveInt = 4096,
    vocab_sizes: Sequence[PositiveInt] = (),
    round_to: PositiveInt = 1,
    model_type: str = "unigram",
    spaces_inside_words: bool = False,
    text_symbols: Sequence[str] = (),
    control_symbols: Sequence[str] = (),
    extend: str | None = None,
    added_terms: Sequence[str] = (),
    output: str | None = None,
    sample_bytes: PositiveInt = 4_000_000,
    seed: int = 0,
    compare: Sequence[str] = (),
    terms: Sequence[str] = (),
    terms_file: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Trains a vocabulary with byte fallback on the blend, and measures it on text.

    The sample has the blend's shares, by byte, and is drawn over the whole of each source. It is
    judged on text that it was not trained on. A vocabulary that was trained with the same arguments
    on the same files is kept.

    Args:
      corpus: sources and blend, @Corpus(); its tokenizer names the file to write.
      vocab_size: pieces, symbols, control ids and bytes included.
      vocab_sizes: train these sizes instead, as OUTPUT_SIZE.model, and mark the one that encodes
        the blend in the fewest bits, tokens x log2(size), as BloombergGPT chose.
      round_to: sizes are rounded up to a multiple of this: 128 times the devices that the
        vocabulary is split over wastes nothing on a TPU.
      model_type: 'unigram' or 'bpe'.
      spaces_inside_words: learn pieces of several words as well, as BloombergGPT does.
      text_symbols: strings that are one id each wherever a text has them.
      control_symbols: names of ids that no text is encoded to.
      extend: a sentencepiece .model file to add pieces to, up to vocab_size, instead of training
        one. Its ids keep their meaning, and a run can start from weights trained with it. Type,
        spaces and symbols are then those of that file.
      added_terms: words and phrases that become one piece each, before others; with extend only.
      output: the .model file to write; by default that of corpus.tokenizer.
      sample_bytes: text to train on.
      seed: of the choice of texts.
      compare: other vocabularies to put into the tables: .model or .json files, or 'bytes'.
      terms: words and phrases of the domain to see in pieces.
      terms_file: a file of more of them, one a line.
      dry_run: print what would be trained, and stop.
    """
    refuse_unconsumed()
    from t5x_style.commands.corpora.fertility_tables import print_comparison
    from t5x_style.data import Tokenizer
    from t5x_style.data.stores.held_out import check_files, declared_files
    from t5x_style.data.tokenizers import made_from
    from t5x_style.data.tokenizers.comparison import compare as compare_vocabularies
    from t5x_style.data.tokenizers.recipe import Recipe, judged_texts, train_samples
    from t5x_style.errors import UsageError
    from t5x_style.files import local_path

    form = {
        "model_type": model_type,
        "spaces_inside_words": spaces_inside_words,
        "text_symbols": list(text_symbols),
        "control_symbols": list(control_symbols),
    }
    base = None if extend is None else Tokenizer(extend)
    if base is None and added_terms:
        raise UsageError("tokenizer.added_terms are for tokenizer.extend = 'BASE.model'")
    for name, value in form.items():
        if base is not None and value != FORM[name]:
            raise UsageError(
                f"tokenizer.{name} = {value!r} cannot be with tokenizer.extend: {extend!r} has "
                f"its own"
            )
    shares = _declared_shares(corpus)
    path = local_path(output or corpus.tokenizer.path, "tokenizer.output")
    if path.suffix != ".model":
        raise UsageError(f"a vocabulary is trained into a '.model' file; {str(path)!r} is none")
    sizes = [-(-size // round_to) * round_to for size in vocab_sizes or [vocab_size]]
    paths = {path.with_stem(f"{path.stem}_{size}") if vocab_sizes else path: size for size in sizes}
    if base and any(file.resolve() == pathlib.Path(base.path).resolve() for file in paths):
        raise UsageError(
            f"tokenizer.extend = {extend!r} is the file to write: name another TOKENIZER, or "
            f"tokenizer.output"
        )
    shown_terms = [*terms, *_read_terms(terms_file)]
    others = {name: Tokenizer(name) for name in compare}
    for other in others.values():
        other.hash  # noqa: B018  a missing file is refused before the training
    blend = corpus.declared_shares(corpus.blend_names()[-1]) or {}
    for notice in check_files(corpus, declared_files(corpus, blend)):
        print(notice)
    sources = [source for source in corpus.sources if source.name in shares]
    for file in paths:
        made_from.check_writable(file)

    @functools.cache
    def samples() -> dict[str, Sample]:
        found = train_samples(sources, shares, sample_bytes, seed)
        for name, one in found.items():
            print(f"{name}: {one}")
        return found

    trained = []
    for file, size in paths.items():
        recipe = Recipe(
            sources=sources,
            shares=shares,
            cache_dir=pathlib.Path(corpus.cache_dir),
            vocab_size=size,
            sample_bytes=sample_bytes,
            seed=seed,
            options={} if base else form,
            base=base,
            added_terms=added_terms,
        )
        if dry_run:
            missing = "would be extended" if base else "would be trained"
            state = "is there" if recipe.is_made(file) else missing
            print(f"{file}: {size:,} pieces, {state}")
            continue
        with made_from.lock(file):
            if recipe.is_made(file):
                print(f"{file}: is there already, from the same arguments and files")
                continue
            start = time.monotonic()
            new = recipe.make(file, {name: one.texts for name, one in samples().items()})
            what = f"({new:,} of them new) extended from {base.path}" if base else "trained"
            print(f"{file}: {size:,} pieces {what} in {time.monotonic() - start:.1f} s")
            trained.append(str(file))
    if dry_run:
        return {"vocabularies": [str(file) for file in paths]}
    ours = {str(file): Tokenizer(str(file)) for file in paths}
    texts, judged_on = {}, {}
    for source in sources:
        texts[source.name], judged_on[source.name] = judged_texts(source, samples)
        print(f"{source.name}: judged on {judged_on[source.name]}")
    comparison = compare_vocabularies(texts, shares, ours, others, shown_terms)
    print_comparison(comparison)
    return {"trained": trained, "judged_on": judged_on, **comparison.to_json()}


def _read_terms(terms_file: str | None) -> list[str]:
    from t5x_style.files import local_path, read_text

    if terms_file is None:
        return []
    file = local_path(terms_file, "tokenizer.terms_file")
    text = read_text(file, f"tokenizer.terms_file = {terms_file!r}")
    return [line.strip() for line in text.split("\n") if line.strip()]


def _declared_shares(corpus: Corpus) -> dict[str, float]:
    from t5x_style.errors import UsageError

    # Of several phases, the blend that the run ends with.
    shares = corpus.declared_shares(corpus.blend_names()[-1])
    if shares is None or not all(corpus.source(task) for task in shares):
        raise UsageError(
            f"{corpus.mixture_or_task_name!r} is made of Tasks of "
            f"{corpus.mixture_or_task_module!r}, which come with a vocabulary. A vocabulary is "
            f"trained on sources declared in gin"
        )
    return {task: share for task, share in shares.items() if share > 0}
