"""A vocabulary file and the JSON next to it, which names all that the vocabulary was made from."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_style.data.sources.documents import documents
from t5x_style.data.sources.source import Source
from t5x_style.data.tokenizers.extend import extend_vocabulary
from t5x_style.data.tokenizers.tokenizer import Tokenizer
from t5x_style.data.tokenizers.train import train_tokenizer
from t5x_style.errors import UsageError
from t5x_style.files import file_digest, write_whole


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
        known = _read_json(file)
        known.pop("extension", None)
        return file.is_file() and known == self.made_from | {"model": file_digest(file)}

    def make(self, file: pathlib.Path) -> int:
        """Writes the `.model` file, and then its JSON.

        Returns:
          the number of new pieces of an extension; `vocab_size` for a vocabulary that is trained.

        Raises:
          UsageError: the file exists and was not made by a recipe, or a size, type, symbol or term
            is not possible.
          Fault: a source without text.
        """
        if file.exists() and "sources" not in _read_json(file):
            raise UsageError(f"{file} is there and was not made here: name another file to write")
        plain = dict(self.made_from)
        texts = {source.name: documents(source, "train") for source in self.sources}
        if self.base is None:
            train_tokenizer(
                texts,
                self.shares,
                path=file,
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
                path=file,
                vocab_size=self.vocab_size,
                sample_bytes=self.sample_bytes,
                seed=self.seed,
                terms=self.added_terms,
            )
            plain["extension"] = extension.to_json()
            new_pieces = len(extension.sub_pieces)
        plain["model"] = file_digest(file)
        write_whole(file.with_suffix(".json"), json.dumps(plain, indent=1) + "\n")
        return new_pieces


def _read_json(file: pathlib.Path) -> dict[str, Any]:
    """The JSON file next to a vocabulary: ours, or another program's tokenizer.json. Or {}."""
    json_file = file.with_suffix(".json")
    return json.loads(json_file.read_text()) if json_file.is_file() else {}
