"""Whether a bound value is what the parameter's annotation says, and how to put it right."""

import collections.abc
import contextlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from gin import config as gin_config

from t5x_style.config.graph import configurables
from t5x_style.config.help import annotation_text, signature_of
from t5x_style.errors import did_you_mean

UNKNOWN = inspect.Parameter.empty


def annotations_of(function_or_class: Callable) -> dict[str, Any]:
    """Parameter -> annotation, strings resolved where that needs no import, else left as strings.

    A verb may write the name of a heavy type as a string without importing it.
    """
    construct = (
        function_or_class.__init__ if inspect.isclass(function_or_class) else function_or_class
    )
    namespace = getattr(inspect.unwrap(construct), "__globals__", {})
    found = {}
    for name, parameter in signature_of(function_or_class).items():
        annotation = parameter.annotation
        if isinstance(annotation, str):
            holder = types.SimpleNamespace(__annotations__={name: annotation})
            with contextlib.suppress(NameError, AttributeError, TypeError):
                annotation = typing.get_type_hints(holder, globalns=namespace)[name]
        found[name] = annotation
    return found


def mismatch(value: Any, annotation: Any) -> str | None:
    """What is wrong with `value` for `annotation`, in words, or None.

    Values may hold gin references: those to macros are to be resolved before; those to
    configurables are held against the annotation where they name a class.
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
        solid = [a for a in arguments if a is not type(None)]
        if len(solid) == 1:
            optional = " (or None: write None)" if _is_none_word(value) else ""
            return (mismatch(value, solid[0]) or "") + optional
        # A list is held against the one alternative that is a list: its elements are what is wrong.
        shaped = [a for a in solid if _of_shape(value, typing.get_origin(a))]
        if len(shaped) == 1:
            return mismatch(value, shaped[0])
        return _not(value, annotation_text(annotation))
    if origin is typing.Literal:
        if any(value == allowed and type(value) is type(allowed) for allowed in arguments):
            return None
        names = ", ".join(repr(allowed) for allowed in arguments)
        return f"is not one of {names}{did_you_mean(str(value), map(str, arguments))}"
    if origin is typing.Annotated:
        return mismatch(value, arguments[0])
    if annotation in (None, type(None)):
        return None if value is None else _not(value, "None")
    if annotation is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return None
        return _not(value, f"a number{_as_number(value)}")
    if annotation is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return None
        return _not(value, f"a whole number{_as_number(value)}")
    if annotation is bool:
        return None if isinstance(value, bool) else _not(value, "True or False")
    if annotation is str:
        return None if isinstance(value, str) else _not(value, f"a string: write {str(value)!r}")
    return _container_mismatch(value, origin or annotation, arguments, annotation)


def _of_shape(value: Any, kind: Any) -> bool:
    """Whether `value` is a mapping, or a list, and so is what `kind` says."""
    if not isinstance(kind, type):
        return False
    if isinstance(value, dict):
        return issubclass(kind, collections.abc.Mapping)
    return isinstance(value, list | tuple) and issubclass(kind, collections.abc.Sequence)


def _container_mismatch(value: Any, kind: Any, arguments: tuple, annotation: Any) -> str | None:
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return None
    if kind in (collections.abc.Callable, type):
        return None if not isinstance(value, int | float | str) else _not(value, _a(annotation))
    if issubclass(kind, collections.abc.Mapping):
        if not isinstance(value, dict):
            return _not(value, "a mapping such as {'name': value}")
        for key, item in value.items() if len(arguments) == 2 else ():
            problem = mismatch(key, arguments[0]) or mismatch(item, arguments[1])
            if problem:
                return f"has an entry {key!r}: {item!r} that {problem}"
        return None
    if issubclass(kind, collections.abc.Iterable) and kind not in (str, bytes):
        return _sequence_mismatch(value, kind, arguments, annotation)
    if isinstance(value, kind):
        return None
    return _not(value, f"{_a(annotation)}: write a reference such as @{kind.__name__}()")


def _sequence_mismatch(value: Any, kind: type, arguments: tuple, annotation: Any) -> str | None:
    if not isinstance(value, list | tuple):
        if _registered(kind):
            return _not(value, f"{_a(annotation)}: write a reference such as @{kind.__name__}()")
        return _not(value, f"a list: write [{value!r}]")
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
    """`@X` where what X makes was meant, or an object of another class."""
    made = reference.configurable.wrapped
    wanted = _alternatives(annotation)
    if not reference.evaluate:
        if any(_may_be_called(kind) for kind in wanted):
            return None
        itself = "class" if inspect.isclass(made) else "function"
        return f"is the {itself} itself: write {reference!r}()"
    if not inspect.isclass(made):
        return None  # what a function returns shows when it is called
    if any(_may_take(kind, made) for kind in wanted):
        return None
    return f"is a {made.__name__}, not {_a(annotation)}"


def _alternatives(annotation: Any) -> tuple:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _class_named(kind: Any) -> str | None:
    """The configurable class that an annotation left as a string names."""
    if not isinstance(kind, str):
        return None
    name = kind.rpartition(".")[2]
    classes = (found.name for found in configurables().values() if inspect.isclass(found.wrapped))
    return name if name in classes else None


def _may_be_called(kind: Any) -> bool:
    """Whether a parameter annotated `kind` may take a function or a class to call later."""
    if isinstance(kind, str):
        return _class_named(kind) is None
    kind = typing.get_origin(kind) or kind
    if kind in (UNKNOWN, object, type, collections.abc.Callable) or not isinstance(kind, type):
        return True
    return any("__call__" in vars(base) for base in kind.__mro__)


def _may_take(kind: Any, made: type) -> bool:
    """Whether a parameter annotated `kind` may take an object of the class `made`."""
    if isinstance(kind, str):
        return _class_named(kind) in (None, *(base.__name__ for base in made.__mro__))
    kind = typing.get_origin(kind) or kind
    if kind is UNKNOWN or not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return True
    return issubclass(made, kind)


def coerced(text: str, value: Any, annotation: Any) -> Any:
    """A flag's value as the annotation means it: the shell has no quotes and no capitals.

    Args:
      text: the value as typed.
      value: what it was read as.
      annotation: what the parameter takes.

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


def _not(value: Any, wanted: str) -> str:
    names = {bool: "a truth value", str: "a string", int: "a whole number", float: "a float"}
    if value is None:
        return f"is not {wanted}"
    return f"is {names.get(type(value), f'a {type(value).__name__}')}, not {wanted}"


def _a(annotation: Any) -> str:
    text = annotation_text(annotation)
    return f"{'an' if text[:1] in 'AEIOUaeio' else 'a'} {text}"


def _as_number(value: Any) -> str:
    """How to write what was probably meant as a number."""
    if isinstance(value, float) and value.is_integer():
        return f": write {int(value):_}"
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            result = arithmetic(value)
            return "" if result is None else f": gin does no arithmetic, write {result!r}"
        return f": write {value.strip()} without quotes"
    return ""


def _is_none_word(value: Any) -> bool:
    return isinstance(value, str) and value.lower() in ("none", "null")


def _registered(kind: type) -> bool:
    return gin_config._inverse_lookup(kind, allow_decorators=True) is not None


def arithmetic(text: str) -> int | float | None:
    """The value of an expression of plain numbers such as `2*3` or `1e6 / 4`, or None."""
    import ast
    import operator

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
