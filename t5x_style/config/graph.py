"""What refers to what in a parsed gin configuration: the one place that reads gin's own tables.

A node is `(scope, selector)`: a configurable called in a scope. A macro NAME is the node
`("NAME", "gin.macro")`, as gin has it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gin import config as gin_config

Node = tuple[str, str]
MACRO = "gin.macro"


def bindings() -> dict[Node, dict[str, Any]]:
    """All that is bound: node -> parameter -> value, references and macros not resolved."""
    return gin_config._CONFIG


def operative() -> dict[Node, dict[str, Any]]:
    """What has been consumed so far, defaults included: node -> parameter -> value."""
    return gin_config._OPERATIVE_CONFIG


def configurables() -> dict[str, gin_config.Configurable]:
    """Every configurable that is registered, by its complete selector, gin's own left out."""
    return {
        selector: configurable
        for selector, configurable in gin_config._REGISTRY.items()
        if not selector.startswith("gin.")
    }


def configurable(selector: str) -> gin_config.Configurable:
    """The configurable of a complete selector."""
    return gin_config._REGISTRY[selector]


def matching(selector: str) -> list[str]:
    """The complete selectors that a selector as written may stand for."""
    return gin_config._REGISTRY.matching_selectors(selector)


def short(selector: str) -> str:
    """The shortest selector that is not ambiguous: `Architecture`."""
    return gin_config._REGISTRY.minimal_selector(selector)


def written(node: Node, parameter: str) -> str:
    """A binding's name as a user writes it: `MODEL_DIR`, `train/Reader.seed`."""
    scope, selector = node
    if selector == MACRO:
        return scope
    return f"{scope}{'/' if scope else ''}{short(selector)}.{parameter}"


def selector_of(function_or_class: Callable) -> str:
    """The complete selector of a configurable function or class."""
    found = gin_config._inverse_lookup(function_or_class, allow_decorators=True)
    return found.selector


def references(value: object) -> Iterator[gin_config.ConfigurableReference]:
    """The references anywhere inside a value."""
    yield from gin_config.iterate_references(value)


def macro_name(reference: object) -> str | None:
    """NAME if the value is `%NAME`, else None."""
    if (
        isinstance(reference, gin_config.ConfigurableReference)
        and reference.configurable.wrapped is gin_config.macro
    ):
        return "/".join(reference.scopes)
    return None


def is_required(value: object) -> bool:
    """Whether the value is `%gin.REQUIRED`."""
    return (
        isinstance(value, gin_config.ConfigurableReference)
        and value.configurable.wrapped is gin_config._retrieve_constant
        and value.scopes == ["gin.REQUIRED"]
    )


def covers(scope: str, called_in: str) -> bool:
    """Whether a binding in `scope` holds for a call in `called_in` (an outer scope does)."""
    return not scope or called_in == scope or called_in.startswith(scope + "/")


def effective(node: Node) -> dict[str, tuple[Node, Any]]:
    """Parameter -> (node that binds it, value) for a call of `node`: the innermost scope wins."""
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
    """(node, evaluated) of each reference in a value that is read in `scope`."""
    for reference in references(value):
        if reference.configurable.wrapped is gin_config._retrieve_constant:
            continue
        # A reference without a scope of its own is called in the scope that reads it.
        where = "/".join(reference.scopes) or scope
        yield (where, reference.configurable.selector), reference.evaluate


def reach(starts: Iterable[Node]) -> dict[Node, bool]:
    """All nodes that calling `starts` would call.

    Returns:
      Node -> whether gin itself calls it with nothing but what is bound (`@X()`); False where the
      consumer gets `@X` and may call it later with arguments of its own.
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


def last_macro(value: object) -> str:
    """The macro at the end of a chain of macros: the one that holds the value."""
    chain: list[str] = []
    while (name := macro_name(value)) is not None and name not in chain:
        chain.append(name)
        value = bindings().get((name, MACRO), {}).get("value")
    return chain[-1]


def resolved(value: Any, inside: tuple[str, ...] = ()) -> Any:
    """The value with macros put in; other references stay.

    Args:
      value: a bound value.
      inside: the macros that are being put in.

    Raises:
      LookupError: a macro that has no value, or refers to itself.
    """
    if (name := macro_name(value)) is not None:
        if name in inside:
            raise LookupError(f"macro {name} refers to itself")
        return resolved(bindings()[name, MACRO]["value"], (*inside, name))
    if is_required(value):
        raise LookupError("required")
    if isinstance(value, dict):
        return {resolved(key, inside): resolved(item, inside) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(resolved(item, inside) for item in value)
    return value
