"""Filters on the text of documents: a filter returns the text, changed or not, or None."""

import dataclasses
import functools
import importlib.metadata
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import gin

from t5x_style.data.formats.files import content_digests, module_file
from t5x_style.errors import Fault, UsageError
from t5x_style.plugins import load
from t5x_style.ranges import NonNegativeInt, Range, check_ranges

LANGUAGE_CHARACTERS = 4000


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Length:
    """Drops documents that are too short or too long.

    Attributes:
      min_characters: the least that is kept.
      max_characters: the most that is kept; None for no limit.
    """

    min_characters: NonNegativeInt = 0
    max_characters: NonNegativeInt | None = None

    def __post_init__(self):
        check_ranges(self)
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise UsageError(
                f"Length.max_characters = {self.max_characters} is below min_characters = "
                f"{self.min_characters}: nothing would be kept"
            )

    @property
    def name(self) -> str:
        """The name under which dropped documents are counted."""
        return "length"

    def __call__(self, text: str) -> str | None:
        """The text, or None to drop it."""
        if len(text) < self.min_characters:
            return None
        if self.max_characters is not None and len(text) > self.max_characters:
            return None
        return text


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Rewrite:
    """Calls a user's function to change or drop a text: to mask personal data, for instance.

    Attributes:
      function: 'module:function', from str to str, or to None to drop the document. The module is
        found on the Python path. Its file is part of the fingerprint of a store.
    """

    function: str

    def __post_init__(self):
        if self.function.count(":") != 1 or not all(self.function.split(":")):
            raise UsageError(f"Rewrite.function = {self.function!r}: write 'module:function'")

    @property
    def name(self) -> str:
        """The name under which dropped documents are counted."""
        return self.function

    @property
    def module(self) -> str:
        """The module of the function."""
        return self.function.split(":")[0]

    @functools.cached_property
    def _call(self) -> Callable[[str], str | None]:
        where = f"Rewrite.function = {self.function!r}"
        function = load(where, self.function.replace(":", "."), object)
        if not callable(function):
            raise UsageError(f"{where} is a {type(function).__name__}, not a function")
        return function

    def __call__(self, text: str) -> str | None:
        """The changed text, or None to drop it.

        Raises:
          UsageError: there is no such function.
          Fault: it failed, or returned something else than a text.
        """
        function = self._call
        try:
            result = function(text)
        except Exception as error:
            raise Fault(
                f"Rewrite.function = {self.function!r} failed on a document that begins "
                f"{text[:60]!r}: {type(error).__name__}: {error}"
            ) from error
        if result is not None and not isinstance(result, str):
            raise Fault(
                f"Rewrite.function = {self.function!r} returned a {type(result).__name__}, not "
                f"a text or None, for a document that begins {text[:60]!r}"
            )
        try:
            (result or "").encode()
        except UnicodeEncodeError as error:
            raise Fault(
                f"Rewrite.function = {self.function!r} returned half a surrogate pair at character "
                f"{error.start}, for a document that begins {text[:60]!r}"
            ) from None
        return result


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Language:
    """Drops documents in other languages, by the naive Bayes classifier of py3langid.

    The model is in the package, the extra t5x_style[clean]: nothing is downloaded, and the same
    text has the same language everywhere. The classifier sees the `LANGUAGE_CHARACTERS` in the
    middle of a document, in lower case. Documents begin with titles and names, and text in capitals
    would be taken for another language.

    Attributes:
      keep: codes of ISO 639, such as 'en'.
      min_probability: a document is dropped if its likeliest language is less probable than this.
        Tables and lists of names have low probabilities.
    """

    keep: Sequence[str] = ("en",)
    min_probability: Annotated[float, Range(least=0, below=1)] = 0.0

    def __post_init__(self):
        if isinstance(self.keep, str) or not self.keep:
            raise UsageError(f"Language.keep = {self.keep!r}: a list of codes, such as ['en']")
        check_ranges(self)
        known = _language_identifier().labels
        for code in self.keep:
            if code not in known:
                raise UsageError(
                    f"Language.keep: {code!r} is not one of the {len(known)} codes of py3langid, "
                    f"{', '.join(sorted(known))}"
                )

    @property
    def name(self) -> str:
        """The name under which dropped documents are counted."""
        return "language"

    def __call__(self, text: str) -> str | None:
        """The text, or None to drop it."""
        begin = max(0, (len(text) - LANGUAGE_CHARACTERS) // 2)
        excerpt = text[begin : begin + LANGUAGE_CHARACTERS].lower()
        code, probability = _language_identifier().classify(excerpt)
        return text if code in self.keep and probability >= self.min_probability else None


@functools.cache
def _language_identifier() -> Any:
    try:
        from py3langid import langid
    except ImportError:
        raise UsageError(
            "Language needs the package `py3langid`: install the extra t5x_style[clean]"
        ) from None
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


Filter = Length | Rewrite | Language
KINDS: dict[str, type[Length] | type[Rewrite] | type[Language]] = {
    "Length": Length,
    "Rewrite": Rewrite,
    "Language": Language,
}


def filtered(filters: Sequence[Filter], text: str) -> tuple[str | None, str]:
    """(text after all `filters` in order, ""), or (None, name of the filter that dropped it)."""
    for filter_ in filters:
        passed = filter_(text)
        if passed is None:
            return None, filter_.name
        text = passed
    return text, ""


def filters_to_json(filters: Sequence[Filter]) -> list[dict[str, Any]]:
    """The filters as plain values."""
    return [{"kind": type(filter_).__name__} | dataclasses.asdict(filter_) for filter_ in filters]


def filters_from_json(plain: Sequence[Mapping[str, Any]]) -> tuple[Filter, ...]:
    """The inverse of `filters_to_json`."""
    return tuple(
        KINDS[fields["kind"]](**{key: value for key, value in fields.items() if key != "kind"})
        for fields in plain
    )


def made_from(filters: Sequence[Filter], cache_dir: pathlib.Path, *, remember: bool) -> list[Any]:
    """All that the effect of `filters` depends on: attributes, files, the version of a library.

    Args:
      filters: in order.
      cache_dir, remember: as in `content_digests`.

    Raises:
      UsageError: there is no such module.
    """
    plain = filters_to_json(filters)
    for filter_, attributes in zip(filters, plain, strict=True):
        if isinstance(filter_, Rewrite):
            file = module_file(filter_.module, "the module of Rewrite.function")
            attributes["file"] = content_digests([file], cache_dir, remember=remember)[0]
        if isinstance(filter_, Language):
            attributes["py3langid"] = importlib.metadata.version("py3langid")
    return plain
