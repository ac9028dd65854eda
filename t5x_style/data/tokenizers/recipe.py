"""How a vocabulary is made: all that it depends on, and the work itself."""

import dataclasses
import functools
import json
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_style.data.sources.documents import documents
from t5x_style.data.sources.source import Source
from t5x_style.data.tokenizers import made_from
from t5x_style.data.tokenizers.extend import extend_vocabulary
from t5x_style.data.tokenizers.tokenizer import Tokenizer
from t5x_style.data.tokenizers.train import train_tokenizer
from t5x_style.files import file_digest


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a vocabulary is trained on a blend, or extended from another one.

    Attributes:
      sources: those of the blend.
      shares: {source: share of the sample's bytes}.
      cache_dir: where digests of files are kept.
      vocab_size: V, all ids included.
      sample_bytes: bytes of text to look at.
      seed: of the choice of documents.
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
            {"name": source.name, "share": self.shares[source.name]}
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
        of_the_files = ("model", "replaces", "extension")
        return {k: v for k, v in known.items() if k not in of_the_files} == self.made_from

    def make(self, file: pathlib.Path) -> int:
        """Writes the `.model` file, and the JSON beside it.

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
        texts = {source.name: documents(source, "train") for source in self.sources}
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
