"""Training a vocabulary on a blend."""

import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_style.data.sources.sample import stretches
from t5x_style.data.tokenizers.kinds import SPACE_MARK
from t5x_style.data.tokenizers.tokenizer import PAD_ID, Tokenizer
from t5x_style.errors import Fault, UsageError, one_of
from t5x_style.files import write_whole
from t5x_style.ranges import folded_seed

# sentencepiece sums expectations in the order of its threads. A fixed number of threads makes the
# same vocabulary on every machine.
THREADS = 4
# Long enough that pieces across a line's end (".\n") are seen, well below the trainer's limit.
UNIT_CHARACTERS = 2000
SMALLEST_VOCABULARY = 320
MODEL_TYPES = ("unigram", "bpe")
# The names that sentencepiece gives to ids 0, 1 and 2, and to BOS.
RESERVED_PIECES = ("<pad>", "</s>", "<unk>", "<s>")
# sentencepiece's own limit of 16 characters would cut most phrases of three words.
PHRASE_CHARACTERS = 32


def train_tokenizer(
    texts: Mapping[str, Iterable[str]],
    shares: Mapping[str, float],
    *,
    vocab_size: int,
    path: str | os.PathLike,
    model_type: str = "unigram",
    spaces_inside_words: bool = False,
    text_symbols: Sequence[str] = (),
    control_symbols: Sequence[str] = (),
    seed: int = 0,
    sample_bytes: int = 4_000_000,
) -> Tokenizer:
    """Trains a vocabulary with byte fallback, and writes it to `path`.

    It is lossless: no normalisation, no dummy prefix, white space is kept, every byte is a piece. A
    digit is always a piece of its own. Ids: 0 pad, 1 end of document, 2 unknown, then the control
    symbols, the text symbols, the 256 bytes, and the pieces that were trained. The same arguments
    make the same file on any machine.

    Args:
      texts: {source: its documents, or a sample of them}.
      shares: {source: share of the sample's bytes}. A source smaller than its share is repeated, as
        in training.
      vocab_size: V, all of these ids included: at least 320 and the symbols.
      path: the `.model` file.
      model_type: 'unigram' (Kudo 2018) or 'bpe' (Sennrich et al. 2016).
      spaces_inside_words: learn pieces of several words as well, up to 32 characters, as
        BloombergGPT does (2303.17564, section 2.3).
      text_symbols: strings without white space that are one id each wherever a text has them.
      control_symbols: ids that no text is encoded to and that decode to nothing.
      seed: of the order of the texts, and so of those that are left out.
      sample_bytes: bytes of text to train on.

    Raises:
      UsageError: a vocabulary too small to hold the bytes, or too large for the text; an unknown
        type; a symbol that cannot be one.
      Fault: a source without text.
    """
    one_of("model_type", model_type, MODEL_TYPES)
    symbols = [*control_symbols, *text_symbols]
    _check_symbols(symbols)
    smallest = SMALLEST_VOCABULARY + len(symbols)
    if vocab_size < smallest:
        raise UsageError(
            f"vocab_size = {vocab_size}: {259 + len(symbols)} ids go to bytes, control and "
            f"symbols, and the frequent characters need theirs; {smallest} is the least"
        )
    import sentencepiece

    sample = itertools.chain.from_iterable(
        sampled(name, texts[name], round(share * sample_bytes), seed)
        for name, share in shares.items()
    )
    # Only if they are needed: options are written into the model, and would change its hash.
    phrases: dict[str, Any] = {}
    if spaces_inside_words:
        phrases = {"split_by_whitespace": False, "max_sentencepiece_length": PHRASE_CHARACTERS}
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain.from_iterable(map(units, sample)),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            character_coverage=0.9995,
            max_sentence_length=4 * UNIT_CHARACTERS,
            num_threads=THREADS,
            pad_id=PAD_ID,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
            user_defined_symbols=list(text_symbols),
            control_symbols=list(control_symbols),
            **phrases,
        )
    except RuntimeError as error:
        too_large = re.search(r"Please set it to a value <= (\d+)", str(error))
        too_small = re.search(r"smaller than required_chars.*?(\d+) vs (\d+)", str(error))
        if too_large:
            raise UsageError(
                f"vocab_size = {vocab_size} is more than this text has pieces for: "
                f"{too_large[1]} at most, or more text"
            ) from None
        if too_small:
            raise UsageError(
                f"vocab_size = {vocab_size} cannot hold the characters of this text: "
                f"{too_small[2]} at least"
            ) from None
        raise Fault(f"sentencepiece could not train: {error}") from error
    write_whole(path, model.getvalue())
    return Tokenizer(str(path))


def _check_symbols(symbols: Sequence[str]) -> None:
    for symbol in symbols:
        if not symbol or symbol.split() != [symbol] or SPACE_MARK in symbol:
            raise UsageError(f"the symbol {symbol!r} is empty or has white space: write it without")
        if symbol in RESERVED_PIECES or re.fullmatch("<0x[0-9A-F]{2}>", symbol):
            raise UsageError(f"the symbol {symbol!r} is a piece of every vocabulary: name another")
        if symbols.count(symbol) > 1:
            raise UsageError(f"the symbol {symbol!r} is given twice")


def sampled(name: str, texts: Iterable[str], wanted_bytes: int, seed: int) -> Iterator[str]:
    """The texts of a source in random order, `wanted_bytes` of UTF-8 in all. The last one is cut.

    They are repeated if they are fewer, and held in memory all at once.

    Raises:
      Fault: no text, or empty ones alone.
    """
    held = list(texts)
    if not any(held):
        raise Fault(f"source {name!r} has no text to train a vocabulary on")
    random = np.random.Generator(np.random.Philox(folded_seed(seed)))
    left = wanted_bytes
    while left > 0:
        for i in random.permutation(len(held)):
            text = held[i]
            content = text.encode()
            if len(content) > left:
                text = content[:left].decode(errors="ignore")
            yield text
            left -= len(content)
            if left <= 0:
                return


def units(text: str) -> Iterator[str]:
    """Pieces of a text: the trainer strips newlines at the end of one, so a cut is before them."""
    return stretches(text, UNIT_CHARACTERS)
