"""The differences between two gin texts. They are compared as text, so nothing is imported."""

import io
import tokenize
from typing import Any

from gin import config_parser

from t5x_style.config.graph import replace_macros
from t5x_style.errors import UsageError


class _Reference:
    """`@X`, `@X()` or `%X`, as in the text."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


class _Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name, evaluate):
        return _Reference(f"@{scoped_configurable_name}{'()' if evaluate else ''}")

    def macro(self, macro_name):
        return _Reference(f"%{macro_name}")


def config_differences(old: str, new: str) -> list[dict[str, str | None]]:
    """The bindings in which two gin texts (without includes) differ, with macros replaced.

    Args:
      old: gin text, such as a run's config.gin.
      new: gin text.

    Returns:
      Entries `{"name": "Architecture.layers", "old": "2", "new": "4"}`, sorted by name; None where
      a text does not bind it.

    Raises:
      UsageError: a text is not gin, or has an include.
    """
    before, after = _bindings(old, "the old configuration"), _bindings(new, "the new one")
    return [
        {"name": name, "old": before.get(name), "new": after.get(name)}
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _bindings(text: str, name_of_text: str) -> dict[str, str]:
    macros: dict[str, Any] = {}
    bound: dict[str, Any] = {}
    try:
        for statement in config_parser.ConfigParser(io.StringIO(text), _Delegate()):
            if isinstance(statement, config_parser.IncludeStatement):
                raise UsageError(
                    f"{name_of_text} includes {statement.filename!r}: compare resolved"
                    " configurations (a run's config.gin, or the output of t5x-style config)"
                )
            if isinstance(statement, config_parser.BindingStatement):
                scope, selector, parameter, value, _ = statement
                name = f"{scope}/{selector}" if scope else selector
                if parameter:
                    bound[f"{name}.{parameter}"] = value
                else:
                    macros[name] = value
    except (SyntaxError, tokenize.TokenError) as error:
        raise UsageError(f"{name_of_text} is not gin: {error}") from None
    return {
        name: repr(replace_macros(value, _macro_name, macros, lambda macro: macro))
        for name, value in bound.items()
    }


def _macro_name(value: Any) -> str | None:
    is_macro = isinstance(value, _Reference) and value.text.startswith("%")
    return value.text[1:] if is_macro else None
