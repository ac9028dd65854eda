"""Checks a bound value against the annotation of its parameter, and suggests the correct form."""

import ast
import collections.abc
import contextlib
import dataclasses
import functools
import inspect
import math
import operator
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from gin import config as gin_config

from t5x_style.config import graph
from t5x_style.config.graph import is_configurable
from t5x_style.config.help import annotation_text, signature_of
from t5x_style.errors import did_you_mean
from t5x_style.ranges import range_problem

UNKNOWN = inspect.Parameter.empty


def annotations_of(function_or_class: Callable) -> dict[str, Any]:
    """Parameter -> annotation. An annotation that would need an import stays a string.

    A verb imports its heavy types under `if TYPE_CHECKING:`. Such a type is found once another
    module has imported it, as is the case for everything that gin can make.
    """
    construct = (
        function_or_class.__init__ if inspect.isclass(function_or_class) else function_or_class
    )
    namespace = dict(getattr(inspect.unwrap(construct), "__globals__", {}))
    for name, (module, attribute) in _type_checking_imports(namespace.get("__name__", "")).items():
        if hasattr(sys.modules.get(module), attribute):
            namespace[name] = getattr(sys.modules[module], attribute)
    found = {}
    for name, parameter in signature_of(function_or_class).items():
        annotation = parameter.annotation
        if isinstance(annotation, str):
            holder = types.SimpleNamespace(__annotations__={name: annotation})
            with contextlib.suppress(NameError, AttributeError, TypeError):
                hints = typing.get_type_hints(holder, globalns=namespace, include_extras=True)
                annotation = hints[name]
        found[name] = annotation
    return found


@functools.cache
def _type_checking_imports(module: str) -> dict[str, tuple[str, str]]:
    """Name -> (module, attribute) for the `from` imports under a module's `if TYPE_CHECKING:`."""
    try:
        statements = ast.parse(inspect.getsource(sys.modules[module])).body
    except (KeyError, OSError, TypeError, SyntaxError):
        return {}
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for branch in statements
        if isinstance(branch, ast.If) and ast.unparse(branch.test).endswith("TYPE_CHECKING")
        for node in branch.body
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
        for alias in node.names
    }


def mismatch(value: Any, annotation: Any) -> str | None:
    """The reason why `value` does not fit `annotation`, in words; None if it fits.

    Args:
      value: may contain gin references to configurables, but no macros. The class that a reference
        makes is checked; the result of a function is not known before it is called.
      annotation: of the parameter.
    """
    if isinstance(value, gin_config.ConfigurableReference):
        return _reference_mismatch(value, annotation)
    if annotation in (UNKNOWN, Any, object) or isinstance(annotation, str | typing.TypeVar):
        return None
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        problems = [mismatch(value, alternative) for alternative in arguments]
        if None in problems:
            return None
        if any(mismatch(value, bare) is None for bare in map(_without_range, arguments)):
            return range_problem(value, annotation)
        solid = [a for a in arguments if a is not type(None)]
        if len(solid) == 1:
            optional = " (or None: write None)" if _is_none_word(value) else ""
            return (mismatch(value, solid[0]) or "") + optional
        # If one alternative is a list too, the elements are wrong, and the message names them.
        shaped = [a for a in solid if _has_shape(value, typing.get_origin(a))]
        if len(shaped) == 1:
            return mismatch(value, shaped[0])
        return _is_not(value, annotation_text(annotation))
    if origin is typing.Literal:
        if any(value == allowed and type(value) is type(allowed) for allowed in arguments):
            return None
        names = ", ".join(repr(allowed) for allowed in arguments)
        return f"is not one of {names}{did_you_mean(str(value), map(str, arguments))}"
    if origin is typing.Annotated:
        return mismatch(value, arguments[0]) or range_problem(value, annotation)
    if annotation in (None, type(None)):
        return None if value is None else _is_not(value, "None")
    if annotation is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return None
        return _is_not(value, f"a number{_number_advice(value)}")
    if annotation is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return None
        return _is_not(value, f"a whole number{_number_advice(value)}")
    if annotation is bool:
        return None if isinstance(value, bool) else _is_not(value, "True or False")
    if annotation is str:
        return None if isinstance(value, str) else _is_not(value, f"a string: write {str(value)!r}")
    return _container_mismatch(value, origin or annotation, arguments, annotation)


def _has_shape(value: Any, kind: Any) -> bool:
    """Whether `value` and `kind` are both mappings, or both sequences."""
    if not isinstance(kind, type):
        return False
    if isinstance(value, dict):
        return issubclass(kind, collections.abc.Mapping)
    return isinstance(value, list | tuple) and issubclass(kind, collections.abc.Sequence)


def _container_mismatch(value: Any, kind: Any, arguments: tuple, annotation: Any) -> str | None:
    if not isinstance(kind, type):
        return None
    if _is_protocol(kind):
        if not _missing_members(kind, type(value)):
            return None
        return _is_not(value, f"{_with_article(annotation)}: write a reference such as @NAME()")
    if kind in (collections.abc.Callable, type):
        return (
            None
            if not isinstance(value, int | float | str)
            else _is_not(value, _with_article(annotation))
        )
    if issubclass(kind, collections.abc.Mapping):
        if not isinstance(value, dict):
            return _is_not(value, "a mapping such as {'name': value}")
        for key, item in value.items() if len(arguments) == 2 else ():
            problem = mismatch(key, arguments[0]) or mismatch(item, arguments[1])
            if problem:
                return f"has an entry {key!r}: {item!r} that {problem}"
        return None
    if issubclass(kind, collections.abc.Iterable) and kind not in (str, bytes):
        return _sequence_mismatch(value, kind, arguments, annotation)
    if isinstance(value, kind):
        return None
    return _is_not(
        value, f"{_with_article(annotation)}: write a reference such as @{kind.__name__}()"
    )


def _sequence_mismatch(value: Any, kind: type, arguments: tuple, annotation: Any) -> str | None:
    if not isinstance(value, list | tuple):
        if is_configurable(kind):
            return _is_not(
                value, f"{_with_article(annotation)}: write a reference such as @{kind.__name__}()"
            )
        return _is_not(value, f"a list: write [{value!r}]")
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            return f"has {len(value)} elements, not {len(arguments)}"
        kinds = list(arguments)
    else:
        kinds = [arguments[0] if arguments else UNKNOWN] * len(value)
    for index, (item, item_annotation) in enumerate(zip(value, kinds, strict=True)):
        if problem := mismatch(item, item_annotation):
            return f"has an element {index}, {item!r}, that {problem}"
    return None


def _reference_mismatch(reference: gin_config.ConfigurableReference, annotation: Any) -> str | None:
    """`@X` where `@X()` was meant, or an object of another class."""
    made = reference.configurable.wrapped
    wanted = _alternatives(annotation)
    if not reference.evaluate:
        if any(_may_be_called(kind) for kind in wanted):
            return None
        itself = "class" if inspect.isclass(made) else "function"
        return f"is the {itself} itself: write {reference!r}()"
    if not inspect.isclass(made):
        return None  # the result of a function is known when it is called
    if any(_may_take(kind, made) for kind in wanted):
        return None
    missing = [name for kind in wanted for name in _missing_members(kind, made)]
    lacks = f": it has no {', '.join(missing)}" if missing else ""
    return f"is a {made.__name__}, not {_with_article(annotation)}{lacks}"


def _alternatives(annotation: Any) -> tuple:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return tuple(map(_without_range, typing.get_args(annotation) if union else (annotation,)))


def _without_range(annotation: Any) -> Any:
    ranged = typing.get_origin(annotation) is typing.Annotated
    return typing.get_args(annotation)[0] if ranged else annotation


def _may_be_called(kind: Any) -> bool:
    """Whether a parameter annotated `kind` may take a function or a class to call later."""
    kind = typing.get_origin(kind) or kind
    if kind in (UNKNOWN, object, type, collections.abc.Callable) or not isinstance(kind, type):
        return True
    return any("__call__" in vars(base) for base in kind.__mro__)


def _may_take(kind: Any, made: type) -> bool:
    """Whether a parameter annotated `kind` may take an object of the class `made`."""
    kind = typing.get_origin(kind) or kind
    if kind is UNKNOWN or not isinstance(kind, type):
        return True
    if _is_protocol(kind):
        return not _missing_members(kind, made)
    return issubclass(made, kind)


def _is_protocol(kind: Any) -> bool:
    return bool(getattr(kind, "_is_protocol", False))


class _NoMembers(typing.Protocol):
    """A Protocol without members: everything that it has is no member of any."""


def _missing_members(kind: Any, made: type) -> list[str]:
    """The members of a Protocol that objects of the class `made` do not have, sorted.

    Methods are looked up in the class. Attributes are looked up in a dataclass alone: any other
    class may set them when it is made. Signatures are not compared.
    """
    kind = typing.get_origin(kind) or kind
    if not _is_protocol(kind):
        return []
    protocols = [base for base in kind.__mro__ if _is_protocol(base)]
    own = {name: value for base in reversed(protocols) for name, value in vars(base).items()}
    methods = {name for name, value in own.items() if callable(value)}
    attributes = {name for base in protocols for name in inspect.get_annotations(base)}
    attributes |= {name for name, value in own.items() if isinstance(value, property)}
    wanted = (methods | attributes if dataclasses.is_dataclass(made) else methods) - set(
        dir(_NoMembers)
    )
    fields = {name for base in made.__mro__ for name in inspect.get_annotations(base)}
    return sorted(name for name in wanted - fields if not hasattr(made, name))


def coerced(text: str, value: Any, annotation: Any) -> Any:
    """A flag's value as its parameter takes it. A shell removes quotes, and people type `true`.

    Args:
      text: the value as typed.
      value: the value as gin reads that text.
      annotation: of the parameter.

    Returns:
      `value`, except true/false for a parameter that takes a bool and no string, and a number
      for one that takes a string and no number (`--gin.MODEL_DIR=2024`).
    """
    kinds = set(_alternatives(annotation))
    if value in ("true", "false") and bool in kinds and str not in kinds:
        return value == "true"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and str in kinds and not kinds & {int, float, object, Any}:
        return text
    return value


def with_absolute_paths(
    values: Mapping[graph.Node, Mapping[str, Any]],
) -> dict[graph.Node, dict[str, Any]]:
    """Bindings in which every path is absolute, as `files.LocalPath` marks them, in macros too."""
    changed = {node: dict(bound) for node, bound in values.items()}

    def absolute(value: Any, annotation: Any, others: Mapping[str, Any]) -> Any:
        if (macro := graph.macro_name(value)) is not None:
            bound = changed.get((macro, graph.MACRO))
            if bound is not None:
                bound["value"] = absolute(bound["value"], annotation, others)
            return value
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is typing.Annotated and isinstance(value, str):
            return annotation.__metadata__[0](value, others)
        if origin in (typing.Union, types.UnionType):
            for alternative in arguments:
                value = absolute(value, alternative, others)
        elif isinstance(value, dict) and len(arguments) == 2:
            return {key: absolute(item, arguments[1], others) for key, item in value.items()}
        elif isinstance(value, list | tuple) and arguments:
            return type(value)(absolute(item, arguments[0], others) for item in value)
        return value

    for node, bound in changed.items():
        made = graph.configurable(node[1]).wrapped
        annotations = {} if node[1] == graph.MACRO else annotations_of(made)
        for parameter in bound.keys() & annotations.keys():
            bound[parameter] = absolute(bound[parameter], annotations[parameter], bound)
    return changed


def _is_not(value: Any, wanted: str) -> str:
    names = {bool: "a truth value", str: "a string", int: "a whole number", float: "a float"}
    if value is None:
        return f"is not {wanted}"
    return f"is {names.get(type(value), f'a {type(value).__name__}')}, not {wanted}"


def _with_article(annotation: Any) -> str:
    text = annotation_text(annotation)
    return f"{'an' if text[:1] in 'AEIOUaeio' else 'a'} {text}"


def _number_advice(value: Any) -> str:
    """How to write a value that was probably meant as a number."""
    if isinstance(value, float) and value.is_integer():
        return f": write {int(value):_}"
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            result = arithmetic(value)
            return "" if result is None else f": gin does no arithmetic, write {result!r}"
        if not math.isfinite(number):
            return ": write a finite number"
        return f": write {value.strip()} without quotes"
    return ""


def _is_none_word(value: Any) -> bool:
    return isinstance(value, str) and value.lower() in ("none", "null")


def arithmetic(text: str) -> int | float | None:
    """The value of an expression of plain numbers such as `2*3` or `1e6 / 4`, or None."""
    operators: Mapping[type, Callable] = {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Pow: operator.pow,
    }

    def value_of(node: ast.expr) -> int | float:
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return number
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value_of(operand)
            case ast.BinOp(left=left, op=symbol, right=right) if type(symbol) in operators:
                one, two = value_of(left), value_of(right)
                if isinstance(symbol, ast.Pow) and (abs(one) > 1e6 or abs(two) > 64):
                    raise ValueError("too large to be a setting")
                return operators[type(symbol)](one, two)
        raise ValueError("not plain arithmetic")

    try:
        return value_of(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError):
        return None
