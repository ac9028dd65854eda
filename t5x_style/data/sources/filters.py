"""What a text goes through before it is learnt from: each filter gives it back, or None."""

import dataclasses
import functools
import importlib
import importlib.metadata
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin

from t5x_style.data.sources.files import content_digests, module_file
from t5x_style.errors import Fault, UsageError, did_you_mean

LANGUAGE_CHARACTERS = 4000


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Length:
    """Drops documents that are too short or too long.

    Attributes:
      min_characters: the least that is kept.
      max_characters: the most that is kept; None for no limit.
    """

    min_characters: int = 0
    max_characters: int | None = None

    def __post_init__(self):
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise UsageError(
                f"Length.max_characters = {self.max_characters} is below min_characters = "
                f"{self.min_characters}: nothing would be kept"
            )

    @property
    def name(self) -> str:
        """Under which what it drops is counted."""
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
    """Has a function of one's own change or drop a text: masks personal data, drops a language.

    Attributes:
      function: 'module:function', from str to str, or to None to drop the document. The module is
        found on the Python path; its file is part of the fingerprint of what it changes.
    """

    function: str

    def __post_init__(self):
        if self.function.count(":") != 1 or not all(self.function.split(":")):
            raise UsageError(f"Rewrite.function = {self.function!r}: write 'module:function'")

    @property
    def name(self) -> str:
        """Under which what it drops is counted."""
        return self.function

    @property
    def module(self) -> str:
        """Where the function lies."""
        return self.function.split(":")[0]

    @functools.cached_property
    def _call(self) -> Callable[[str], str | None]:
        module, name = self.function.split(":")
        try:
            loaded = importlib.import_module(module)
        except Exception as error:
            raise UsageError(
                f"Rewrite.function = {self.function!r}: {module} cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error
        function = getattr(loaded, name, None)
        if not callable(function):
            raise UsageError(
                f"Rewrite.function = {self.function!r}: {module} has no function {name!r}"
                f"{did_you_mean(name, dir(loaded))}"
            )
        return function

    def __call__(self, text: str) -> str | None:
        """The text as it is learnt, or None to drop it.

        Raises:
          UsageError: there is no such function.
          Fault: it failed, or gave something else than a text.
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
                f"Rewrite.function = {self.function!r} gave a {type(result).__name__}, not a text "
                f"or None, for a document that begins {text[:60]!r}"
            )
        try:
            (result or "").encode()
        except UnicodeEncodeError as error:
            raise Fault(
                f"Rewrite.function = {self.function!r} gave half a surrogate pair at character "
                f"{error.start}, for a document that begins {text[:60]!r}"
            ) from None
        return result


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Language:
    """Drops documents in other languages, by the naive Bayes classifier of py3langid.

    Its model lies in the package, the extra t5x_style[clean]: nothing is downloaded, and the same
    text has the same language everywhere. What is looked at is the `LANGUAGE_CHARACTERS` in the
    middle of a document, in lower case: titles and names stand at its beginning, and a disclaimer
    in capitals is no language of its own.

    Attributes:
      keep: codes of ISO 639, such as 'en'.
      min_probability: of the language that is the likeliest; below it the document is dropped.
        Tables and lists of names have low ones.
    """

    keep: Sequence[str] = ("en",)
    min_probability: float = 0.0

    def __post_init__(self):
        if isinstance(self.keep, str) or not self.keep:
            raise UsageError(f"Language.keep = {self.keep!r}: a list of codes, such as ['en']")
        if not 0 <= self.min_probability < 1:
            raise UsageError(
                f"Language.min_probability = {self.min_probability}: at least 0 and below 1"
            )
        known = _language_identifier().labels
        for code in self.keep:
            if code not in known:
                raise UsageError(
                    f"Language.keep: {code!r} is not one of the {len(known)} codes of py3langid, "
                    f"{', '.join(sorted(known))}"
                )

    @property
    def name(self) -> str:
        """Under which what it drops is counted."""
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
    """The text after all `filters` in order, and "": or None, and the name of the one that dropped
    it."""
    for each in filters:
        passed = each(text)
        if passed is None:
            return None, each.name
        text = passed
    return text, ""


def filters_to_json(filters: Sequence[Filter]) -> list[dict[str, Any]]:
    """The filters as plain values."""
    return [{"kind": type(each).__name__} | dataclasses.asdict(each) for each in filters]


def filters_from_json(plain: Sequence[Mapping[str, Any]]) -> tuple[Filter, ...]:
    """The inverse of `filters_to_json`."""
    return tuple(
        KINDS[each["kind"]](**{key: value for key, value in each.items() if key != "kind"})
        for each in plain
    )


def made_from(filters: Sequence[Filter], cache_dir: pathlib.Path, *, remember: bool) -> list[Any]:
    """What the effect of `filters` follows from: attributes, files, the version of a library.

    Args:
      filters: in order.
      cache_dir, remember: as in `content_digests`.

    Raises:
      UsageError: a module that is not there.
    """
    plain = filters_to_json(filters)
    for each, attributes in zip(filters, plain, strict=True):
        if isinstance(each, Rewrite):
            file = module_file(each.module, "the module of Rewrite.function")
            attributes["file"] = content_digests([file], cache_dir, remember=remember)[0]
        if isinstance(each, Language):
            attributes["py3langid"] = importlib.metadata.version("py3langid")
    return plain
