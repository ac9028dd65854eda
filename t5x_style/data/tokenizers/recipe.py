"""How a vocabulary is made: all that it depends on, and the work itself."""

import dataclasses
import functools
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from t5x_style.data.sources.sample import Sample, sample
from t5x_style.data.sources.source import Source
from t5x_style.data.tokenizers import made_from
from t5x_style.data.tokenizers.extend import extend_vocabulary
from t5x_style.data.tokenizers.tokenizer import Tokenizer
from t5x_style.data.tokenizers.train import train_tokenizer
from t5x_style.errors import Fault
from t5x_style.files import file_digest
from t5x_style.quantities import byte_count

# Of each source, for the tables that compare vocabularies.
JUDGED_BYTES = 1_000_000


def holds_out(source: Source) -> bool:
    """Whether texts of the train split are held out, to judge on: there is no validation split."""
    return "validation" not in source.split_names()


def train_samples(
    sources: Sequence[Source], shares: Mapping[str, float], sample_bytes: int, seed: int
) -> dict[str, Sample]:
    """{source: the texts of its train split to train on, and those to judge on if it has none}.

    Args:
      sources, shares, sample_bytes, seed: as of a `Recipe`.

    Raises:
      UsageError: there is no file.
      Fault: a bad record, unless the source skips them.
    """
    return {
        source.name: sample(
            source,
            "train",
            max(round(shares[source.name] * sample_bytes), 1),
            seed=seed,
            held_out_bytes=JUDGED_BYTES if holds_out(source) else 0,
        )
        for source in sources
    }


def judged_texts(
    source: Source, samples: Callable[[], Mapping[str, Sample]]
) -> tuple[Sequence[str], str]:
    """Texts of a source that its vocabularies were not trained on, and what they are, for people.

    Args:
      source: the source.
      samples: gives those of `train_samples`. Called if the source has no validation split.

    Raises:
      UsageError: there is no file.
      Fault: a bad record, unless the source skips them; a validation split without text.
    """
    if not holds_out(source):
        found = sample(source, "validation", JUDGED_BYTES)
        if not found.texts:
            raise Fault(f"source {source.name!r}: its validation split has no text to judge on")
        return found.texts, f"its validation split, {found}"
    found = samples()[source.name]
    if not found.held_out:
        return found.texts, "what it was trained on: the source has no second text"
    size = byte_count(sum(len(text.encode()) for text in found.held_out))
    return found.held_out, f"{size} of its train split, which no vocabulary is trained on"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a vocabulary is trained on a blend, or extended from another one.

    Attributes:
      sources: those of the blend.
      shares: {source: share of the sample's bytes}.
      cache_dir: where digests of files are kept.
      vocab_size: V, all ids included.
      sample_bytes: bytes of text to train on.
      seed: of the choice of texts.
      options: other arguments of `train_tokenizer`; none for an extension.
      base: the vocabulary to extend. None: one is trained.
      added_terms: words and phrases that become one piece each in an extension.
    """

    sources: Sequence[Source]
    shares: Mapping[str, float]
    cache_dir: pathlib.Path
    vocab_size: int
    sample_bytes: int
    seed: int
    options: Mapping[str, Any]
    base: Tokenizer | None = None
    added_terms: Sequence[str] = ()

    @functools.cached_property
    def made_from(self) -> dict[str, Any]:
        """All that the vocabulary depends on, as the JSON file has it."""
        plain: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "sample_bytes": self.sample_bytes,
            "seed": self.seed,
            **self.options,
        }
        if self.base is not None:
            plain |= {"extends": self.base.hash, "added_terms": self.added_terms}
        plain["sources"] = [
            {"name": source.name, "share": self.shares[source.name], "held_out": holds_out(source)}
            | source.made_from("train", self.cache_dir, remember=False)
            for source in self.sources
        ]
        # As it is read back: JSON has no tuples.
        return json.loads(json.dumps(plain))

    def is_made(self, file: pathlib.Path) -> bool:
        """Whether `file` was made by this recipe, from the same texts."""
        known = made_from.read(file)
        if not known or not file.is_file() or known["model"] != file_digest(file):
            return False
        results = ("model", "replaces", "extension")
        return {k: v for k, v in known.items() if k not in results} == self.made_from

    def make(self, file: pathlib.Path, texts: Mapping[str, Iterable[str]]) -> int:
        """Writes the `.model` file, and the JSON beside it.

        Args:
          file: to write.
          texts: {source: its sample}, of `train_samples`.

        Returns:
          the number of new pieces of an extension; `vocab_size` for a vocabulary that is trained.

        Raises:
          UsageError: the file exists and was not made by a recipe, or a size, type, symbol or term
            is not possible.
          Fault: a source without text.
        """
        made_from.check_writable(file)
        if made_from.read(file) is None:
            print(
                f"warning: {made_from.json_file(file)} is broken, and is made again",
                file=sys.stderr,
            )
        plain = dict(self.made_from)
        with tempfile.TemporaryDirectory() as folder:
            trained = pathlib.Path(folder) / file.name
            if self.base is None:
                train_tokenizer(
                    texts,
                    self.shares,
                    path=trained,
                    vocab_size=self.vocab_size,
                    sample_bytes=self.sample_bytes,
                    seed=self.seed,
                    **self.options,
                )
                new_pieces = self.vocab_size
            else:
                extension = extend_vocabulary(
                    self.base,
                    texts,
                    self.shares,
                    path=trained,
                    vocab_size=self.vocab_size,
                    sample_bytes=self.sample_bytes,
                    seed=self.seed,
                    terms=self.added_terms,
                )
                plain["extension"] = extension.to_json()
                new_pieces = len(extension.sub_pieces)
            made_from.write(file, trained.read_bytes(), file_digest(trained), plain)
        return new_pieces
