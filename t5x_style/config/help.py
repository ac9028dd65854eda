"""Help text, made from signatures and docstrings, so that it always matches the code."""

import contextlib
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Mapping

from t5x_style.config.flags import GLOBAL_FLAGS
from t5x_style.ranges import ranges_of

WIDTH = 100


def signature_of(function_or_class: Callable) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function, or of a class's constructor, by name (`self` left out).

    An annotation that is a string is evaluated, unless that would need an import.
    """
    construct = (
        function_or_class.__init__ if inspect.isclass(function_or_class) else function_or_class
    )
    names = getattr(inspect.unwrap(construct), "__globals__", {})
    found = {}
    for name, parameter in inspect.signature(construct).parameters.items():
        if isinstance(parameter.annotation, str):
            holder = types.SimpleNamespace(__annotations__={name: parameter.annotation})
            with contextlib.suppress(NameError, AttributeError, TypeError):
                hints = typing.get_type_hints(holder, globalns=names, include_extras=True)
                parameter = parameter.replace(annotation=hints[name])
        if name != "self":
            found[name] = parameter
    return found


def parameter_docs(function_or_class: Callable) -> dict[str, str]:
    """Name -> text from the `Args:` or `Attributes:` sections of a docstring (Google's style)."""
    docs: dict[str, str] = {}
    inside, name = False, ""
    for line in (inspect.getdoc(function_or_class) or "").splitlines():
        if re.fullmatch(r"\w[\w ]*:", line):
            inside, name = line in ("Args:", "Attributes:"), ""
        elif inside and (match := re.match(r"(?:  |    )(\w+)(?: \([^)]*\))?: (.*)", line)):
            name = match[1]
            docs[name] = match[2].strip()
        elif inside and name and line.strip():
            docs[name] += " " + line.strip()
    return docs


def description(function_or_class: Callable) -> str:
    """The docstring up to its first section."""
    text = inspect.getdoc(function_or_class) or ""
    return re.split(r"\n(?:Args|Attributes|Returns|Raises|Yields):\n", "\n" + text)[0].strip()


def annotation_text(annotation: object) -> str:
    """An annotation without module names and marks: `int | None`, `Mapping[str, float]`."""
    if annotation is inspect.Parameter.empty:
        return ""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " | ".join(map(annotation_text, typing.get_args(annotation)))
    if annotation is type(None):
        return "None"
    if isinstance(annotation, str):
        text = annotation
    else:
        # Hints come without what `Annotated` adds.
        holder = types.SimpleNamespace(__annotations__={"hint": annotation})
        text = inspect.formatannotation(typing.get_type_hints(holder)["hint"])
    return re.sub(r"(?:\w+\.)+(\w+)", r"\1", text)


def parameter_lines(
    parameters: Mapping[str, inspect.Parameter], docs: Mapping[str, str], prefix: str
) -> str:
    """One entry per parameter: `prefix` and its name, its type, its default, its purpose."""
    lines = []
    for name, parameter in parameters.items():
        kind = annotation_text(parameter.annotation)
        if parameter.default is inspect.Parameter.empty:
            default = "required"
        else:
            default = f"default {parameter.default!r}"
        ranges = map(str, dict.fromkeys(ranges_of(parameter.annotation)))
        facts = ", ".join(part for part in (kind, *ranges, default) if part)
        lines.append(f"  {prefix}{name} ({facts})")
        if docs.get(name):
            lines.append(textwrap.indent(textwrap.fill(docs[name], WIDTH - 6), " " * 6))
    return "\n".join(lines)


def verb_help(verb: str, function: Callable) -> str:
    """The text of `t5x-style VERB --help`."""
    parameters = {n: p for n, p in signature_of(function).items() if n != "dry_run"}
    flags = "\n".join(
        f"  {f'--{name}={value}' if value else f'--{name}':28} {text}"
        for name, (value, text) in GLOBAL_FLAGS.items()
    )
    parts = [
        f"usage: t5x-style {verb} [--gin_file=FILE]… [--gin.NAME=VALUE]… [--NAME=VALUE]…"
        " [--dry_run] [--json]",
        description(function),
    ]
    if parameters:
        own = parameter_lines(parameters, parameter_docs(function), "--")
        parts.append(
            f"Parameters of {verb} (--NAME=VALUE, or {verb}.NAME = VALUE in a gin file):\n{own}"
        )
    parts.append(f"Flags of every verb:\n{flags}")
    return "\n\n".join(parts)
