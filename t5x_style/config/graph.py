"""gin's own tables, and the graph of references in them.

This is the one file that uses gin's private names; `tests/config/test_graph.py` lists them.

A node is `(scope, selector)`: a configurable that is called in a scope. A macro NAME is the node
`("NAME", "gin.macro")`, as in gin.
"""

import math
import pprint
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from gin import config as gin_config
from gin import config_parser

Node = tuple[str, str]
MACRO = "gin.macro"
REQUIRED = "gin.REQUIRED"
# Characters of a line that is written.
LINE = 100


def bindings() -> dict[Node, dict[str, Any]]:
    """Every binding: node -> parameter -> value, with references and macros unresolved."""
    return gin_config._CONFIG


def operative() -> dict[Node, dict[str, Any]]:
    """The values consumed so far, defaults included: node -> parameter -> value."""
    return gin_config._OPERATIVE_CONFIG


def configurables() -> dict[str, gin_config.Configurable]:
    """Every registered configurable by its complete selector, without those of gin itself."""
    return {
        selector: configurable
        for selector, configurable in gin_config._REGISTRY.items()
        if not selector.startswith("gin.")
    }


def configurable(selector: str) -> gin_config.Configurable:
    """The configurable of a complete selector."""
    return gin_config._REGISTRY[selector]


def matching(selector: str) -> list[str]:
    """The complete selectors that a selector in a file may refer to."""
    return gin_config._REGISTRY.matching_selectors(selector)


def short(selector: str) -> str:
    """The shortest selector that is not ambiguous: `Architecture`."""
    return gin_config._REGISTRY.minimal_selector(selector)


def selector_of(function_or_class: Callable) -> str:
    """The complete selector of a configurable function or class."""
    return gin_config._inverse_lookup(function_or_class, allow_decorators=True).selector


def is_configurable(function_or_class: Callable) -> bool:
    """Whether a function or class is registered with gin."""
    return gin_config._inverse_lookup(function_or_class, allow_decorators=True) is not None


def has_parameter(configurable: gin_config.Configurable, parameter: str) -> bool:
    """Whether a configurable takes a parameter of this name."""
    return gin_config._might_have_parameter(configurable.wrapper, parameter)


def parse_context() -> AbstractContextManager[gin_config.ParseContext]:
    """The context in which gin reads one file or one value: its imports and their names."""
    return gin_config._parse_scope()


def record_imports(context: gin_config.ParseContext) -> None:
    """Add the imports of a file to those that the operative config writes."""
    gin_config._IMPORTS.update(context.imports)


def names_come_from_imports(context: gin_config.ParseContext) -> bool:
    """Whether a file has `from __gin__ import dynamic_registration`."""
    return context._dynamic_registration


def parse_one_value(parser: config_parser.ConfigParser) -> tuple[Any, bool]:
    """The value at the start of a text, and whether the text ends after it."""
    value = parser.parse_value()
    while parser.current_token.type in (tokenize.NEWLINE, tokenize.NL):
        parser._advance_one_token()
    return value, parser.current_token.type == tokenize.ENDMARKER


def config_text(values: Mapping[Node, Mapping[str, Any]]) -> str:
    """Bindings as gin text, with the imports recorded so far."""
    written = {
        node: {parameter: _as_written(value) for parameter, value in bound.items()}
        for node, bound in values.items()
    }
    return gin_config._config_str(written, max_line_length=LINE)


class _InOrder(dict):
    """A dictionary that gin writes in its own order; it sorts the keys of any other."""

    def __repr__(self) -> str:
        return pprint.pformat(dict(self), width=LINE - 4, sort_dicts=False)


class _Infinite(float):
    """An infinite number, which gin has no word for: it leaves out what it cannot write."""

    def __repr__(self) -> str:
        return "1e999" if self > 0 else "-1e999"


def _as_written(value: Any) -> Any:
    """The same value, for gin's writer."""
    if isinstance(value, dict):
        return _InOrder((_as_written(key), _as_written(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_as_written(item) for item in value)
    if isinstance(value, float) and math.isinf(value):
        return _Infinite(value)
    return value


def binding_name(node: Node, parameter: str) -> str:
    """The name of a binding as a user writes it: `MODEL_DIR`, `train/Reader.seed`."""
    scope, selector = node
    if selector == MACRO:
        return scope
    return f"{scope}{'/' if scope else ''}{short(selector)}.{parameter}"


def references(value: object) -> Iterator[gin_config.ConfigurableReference]:
    """The references anywhere inside a value."""
    yield from gin_config.iterate_references(value)


def macro_name(value: object) -> str | None:
    """NAME if the value is `%NAME`, else None."""
    if (
        isinstance(value, gin_config.ConfigurableReference)
        and value.configurable.wrapped is gin_config.macro
    ):
        return "/".join(value.scopes)
    return None


def is_required(value: object) -> bool:
    """Whether the value is `%gin.REQUIRED`."""
    return (
        isinstance(value, gin_config.ConfigurableReference)
        and value.configurable.wrapped is gin_config._retrieve_constant
        and value.scopes == [REQUIRED]
    )


def covers(scope: str, called_in: str) -> bool:
    """Whether a binding in `scope` holds for a call in `called_in`: the same or an inner scope."""
    return not scope or called_in == scope or called_in.startswith(scope + "/")


def effective(node: Node) -> dict[str, tuple[Node, Any]]:
    """The bindings for a call of `node`: parameter -> (node that binds it, value).

    The innermost scope wins.
    """
    scope, selector = node
    found: dict[str, tuple[Node, Any]] = {}
    if selector == MACRO:
        return {name: (node, value) for name, value in bindings().get(node, {}).items()}
    candidates = [
        (bound, values)
        for bound, values in bindings().items()
        if bound[1] == selector and covers(bound[0], scope)
    ]
    for bound, values in sorted(candidates, key=lambda item: len(item[0][0])):
        for parameter, value in values.items():
            found[parameter] = (bound, value)
    return found


def targets(value: object, scope: str) -> Iterator[tuple[Node, bool]]:
    """(node, evaluated) of every reference in a value that is read in `scope`."""
    for reference in references(value):
        if reference.configurable.wrapped is gin_config._retrieve_constant:
            continue
        # A reference without a scope of its own is called in the scope that reads it.
        where = "/".join(reference.scopes) or scope
        yield (where, reference.configurable.selector), reference.evaluate


def reach(starts: Iterable[Node]) -> dict[Node, bool]:
    """All nodes that calling `starts` would call.

    Returns:
      Node -> whether gin itself calls it, with its bindings as the only arguments (`@X()`). False
      where the consumer receives `@X` and may call it later with arguments of its own.
    """
    found: dict[Node, bool] = {}
    waiting = [(node, True) for node in starts]
    while waiting:
        node, evaluated = waiting.pop()
        if node in found and found[node] >= evaluated:
            continue
        found[node] = evaluated
        for _, value in effective(node).values():
            for target, called in targets(value, node[0]):
                waiting.append((target, called and evaluated))
    return found


def macros_in(value: object) -> list[str]:
    """The names of the macros anywhere inside a value."""
    names = (macro_name(reference) for reference in references(value))
    return [name for name in names if name is not None]


def unread_macros(overridden: Iterable[object] = ()) -> list[str]:
    """The macros that no binding refers to, in the order of their definition.

    Args:
      overridden: values that later bindings replaced; macros inside them count as read.
    """
    read = {macro for values in (*bindings().values(), *overridden) for macro in macros_in(values)}
    return [scope for scope, selector in bindings() if selector == MACRO and scope not in read]


def last_macro(value: object) -> str:
    """The macro at the end of a chain of macros: the one that has the value."""
    chain: list[str] = []
    while (name := macro_name(value)) is not None and name not in chain:
        chain.append(name)
        value = bindings().get((name, MACRO), {}).get("value")
    return chain[-1]


def resolved(value: Any) -> Any:
    """The value with macros replaced by their values; other references stay.

    Raises:
      LookupError: a macro that has no value, is required, or refers to itself.
    """

    def refuse(reference: object) -> Any:
        raise LookupError(f"{reference!r} has no value")

    macros = {
        scope: values["value"]
        for (scope, selector), values in bindings().items()
        if selector == MACRO
    }
    return replace_macros(
        value, lambda item: REQUIRED if is_required(item) else macro_name(item), macros, refuse
    )


def replace_macros(
    value: Any,
    name_of: Callable[[Any], str | None],
    macros: Mapping[str, Any],
    without_value: Callable[[Any], Any],
) -> Any:
    """A value, in which every macro is replaced by its value, inside containers too.

    Args:
      value: a bound value.
      name_of: the name of a macro; None for everything else.
      macros: name -> value, which may refer to other macros.
      without_value: the replacement of a macro that is not in `macros`, or refers to itself.
    """

    def replaced(item: Any, inside: tuple[str, ...]) -> Any:
        if (name := name_of(item)) is not None:
            if name in inside or name not in macros:
                return without_value(item)
            return replaced(macros[name], (*inside, name))
        if isinstance(item, dict):
            return {replaced(key, inside): replaced(entry, inside) for key, entry in item.items()}
        if isinstance(item, list | tuple):
            return type(item)(replaced(entry, inside) for entry in item)
        return item

    return replaced(value, ())
