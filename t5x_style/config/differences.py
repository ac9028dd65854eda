"""What differs between two gin texts, read as text: nothing has to be importable any more."""

import io
import tokenize
from typing import Any

from gin import config_parser

from t5x_style.errors import UsageError


class _Reference:
    """`@X`, `@X()` or `%X` as written."""

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
    """The bindings in which two gin texts (without includes) differ, macros put in.

    Args:
      old: gin text, such as a run's config.gin.
      new: gin text.

    Returns:
      `{"name": "Architecture.layers", "old": "2", "new": "4"}` each, by name; None where a text
      does not bind it.

    Raises:
      UsageError: a text is not gin, or has an include.
    """
    before, after = _bindings(old, "the old configuration"), _bindings(new, "the new one")
    return [
        {"name": name, "old": before.get(name), "new": after.get(name)}
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _bindings(text: str, what: str) -> dict[str, str]:
    macros: dict[str, Any] = {}
    bound: dict[str, Any] = {}
    try:
        for statement in config_parser.ConfigParser(io.StringIO(text), _Delegate()):
            if isinstance(statement, config_parser.IncludeStatement):
                raise UsageError(
                    f"{what} includes {statement.filename!r}: compare resolved configurations"
                    " (a run's config.gin, or what t5x-style config prints)"
                )
            if isinstance(statement, config_parser.BindingStatement):
                scope, selector, parameter, value, _ = statement
                name = f"{scope}/{selector}" if scope else selector
                if parameter:
                    bound[f"{name}.{parameter}"] = value
                else:
                    macros[name] = value
    except (SyntaxError, tokenize.TokenError) as error:
        raise UsageError(f"{what} is not gin: {error}") from None
    return {name: repr(_resolved(value, macros, ())) for name, value in bound.items()}


def _resolved(value: Any, macros: dict[str, Any], seen: tuple[str, ...]) -> Any:
    if isinstance(value, _Reference) and value.text.startswith("%"):
        name = value.text[1:]
        if name in macros and name not in seen:
            return _resolved(macros[name], macros, (*seen, name))
        return value
    if isinstance(value, dict):
        return {
            _resolved(key, macros, seen): _resolved(item, macros, seen)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(_resolved(item, macros, seen) for item in value)
    return value
