"""Training a vocabulary on a blend, and what it makes of each source."""

import collections
import dataclasses
import io
import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from t5x_style.data.tokenizer import PAD_ID, Tokenizer
from t5x_style.errors import Fault, UsageError

# sentencepiece adds up expectations in the order of its threads: a fixed number of them, and not
# the machine's, makes the same vocabulary everywhere.
THREADS = 4
# Long enough that pieces across a line's end (".\n") are seen, well below the trainer's limit.
UNIT_CHARACTERS = 2000
# Documents are chosen at random among those in the first so many times the wanted bytes of a
# source, so that a source of a terabyte need not be read to its end.
SCANNED = 8
SMALLEST_VOCABULARY = 320


def train_tokenizer(
    texts: Mapping[str, Iterable[str]],
    shares: Mapping[str, float],
    *,
    vocab_size: int,
    path: str | os.PathLike,
    seed: int = 0,
    sample_bytes: int = 4_000_000,
) -> Tokenizer:
    """Trains a Unigram vocabulary (Kudo 2018) with byte fallback, and writes it to `path`.

    It loses nothing: no normalisation, no dummy prefix, white space kept, every byte a piece, each
    digit alone. Ids: 0 pad, 1 end of document, 2 unknown, 3 to 258 the bytes. The same arguments
    give the same file, on any machine.

    Args:
      texts: {source: its documents}.
      shares: {source: share of the sample's bytes}; a source smaller than its part is repeated, as
        it will be in training.
      vocab_size: V, 320 or more.
      path: the `.model` file.
      seed: of the choice of documents.
      sample_bytes: how much text to look at.

    Raises:
      UsageError: a vocabulary too small to hold the bytes, or too large for the text.
      Fault: a source without text.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UsageError(
            f"vocab_size = {vocab_size}: 259 ids go to bytes and control, and the frequent "
            f"characters need theirs; {SMALLEST_VOCABULARY} is the least"
        )
    import sentencepiece

    sample = itertools.chain.from_iterable(
        sampled(name, texts[name], round(share * sample_bytes), seed)
        for name, share in shares.items()
    )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain.from_iterable(map(_units, sample)),
            model_writer=model,
            model_type="unigram",
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
    file = pathlib.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.write_bytes(model.getvalue())
    os.replace(fresh, file)
    return Tokenizer(str(path))


def sampled(name: str, texts: Iterable[str], wanted_bytes: int, seed: int) -> Iterator[str]:
    """Documents of a source at random, `wanted_bytes` of UTF-8 in all, the last one cut.

    Raises:
      Fault: no document, or none with text.
    """
    scanned: list[str] = []
    size = 0
    for text in texts:
        scanned.append(text)
        size += len(text)
        if size >= SCANNED * wanted_bytes:
            break
    if not size:
        raise Fault(f"source {name!r} has no text to train a vocabulary on")
    random = np.random.Generator(np.random.Philox(seed))
    left = wanted_bytes
    while left > 0:
        for i in random.permutation(len(scanned)):
            text = scanned[i]
            content = text.encode()
            if len(content) > left:
                text = content[:left].decode(errors="ignore")
            yield text
            left -= len(content)
            if left <= 0:
                return


def _units(text: str) -> Iterator[str]:
    """Cuts a text before a newline or a space: the trainer strips newlines from a unit's end."""
    start = 0
    while start < len(text):
        end = start + UNIT_CHARACTERS
        if end < len(text):
            cut = max(text.rfind("\n", start + 1, end), 0) or text.rfind(" ", start + 1, end)
            end = cut if cut > start else end
        yield text[start:end]
        start = end


@dataclasses.dataclass(frozen=True)
class Fertility:
    """What a vocabulary makes of a text.

    Attributes:
      tokens_per_word: tokens over words, a word being what stands between white space.
      bytes_per_token: UTF-8 bytes over tokens.
      whole_words: share of the alphabetic words (each occurrence counted) that are one token.
      lossless: share of the documents that decode to themselves.
    """

    tokens_per_word: float
    bytes_per_token: float
    whole_words: float
    lossless: float


def fertility(tokenizer: Tokenizer, texts: Iterable[str]) -> Fertility:
    """Encodes all of `texts`."""
    tokens = size = words = documents = kept = 0
    alphabetic: collections.Counter[str] = collections.Counter()
    for text in texts:
        ids = tokenizer.encode(text)
        documents += 1
        kept += tokenizer.decode(ids) == text
        tokens += len(ids)
        size += len(text.encode())
        words += len(text.split())
        alphabetic.update(re.findall(r"[^\W\d_]+", text))
    whole = sum(
        count for word, count in alphabetic.items() if len(tokenizer.encode(f" {word}")) == 1
    )
    return Fertility(
        tokens_per_word=tokens / max(words, 1),
        bytes_per_token=size / max(tokens, 1),
        whole_words=whole / max(alphabetic.total(), 1),
        lossless=kept / max(documents, 1),
    )
