"""`t5x-style config`: lists configurables, shows a resolved configuration, compares two."""

from typing import Any

import gin

from t5x_style.config import graph
from t5x_style.config.checks import config_differences, current
from t5x_style.config.files import GinReader
from t5x_style.config.graph import MACRO, Node
from t5x_style.config.help import description, parameter_docs, parameter_lines, signature_of
from t5x_style.errors import UsageError, did_you_mean

CONFIGURABLES: tuple[str, ...] = ()


@gin.configurable
def config(
    *,
    name: str | None = None,
    old: str | None = None,
    new: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Lists what can be configured, shows a resolved configuration, or compares two.

    Without a flag, it lists every configurable with its first line. With --gin_file and --gin.NAME,
    it prints the resolved configuration: every binding with its value and the place where it was
    set, macros replaced and defaults included. With --old and --new, it prints the bindings in
    which two files differ.

    Args:
      name: a configurable to describe in full.
      old: a gin file to compare, such as a run's config.gin.
      new: the gin file to compare it with.
    """
    reader = current()
    if (old is None) != (new is None):
        raise UsageError("--old and --new go together: two gin files to compare")
    if old is not None and new is not None:
        return _compare(reader, old, new)
    bound = [key for key in reader.origins if not _is_own(key[0])]
    if bound and name is None:
        return _show_resolved(reader)
    from t5x_style.commands.main import load_everything

    load_everything()
    return _describe(name) if name is not None else _list_all()


def _is_own(node: Node) -> bool:
    return node[1].endswith(".config.config")


def _compare(reader: GinReader, old: str, new: str) -> dict[str, Any]:
    found = config_differences(
        reader.expanded(old, f"--old={old}"), reader.expanded(new, f"--new={new}")
    )
    for difference in found:
        print(f"{difference['name']}: {difference['old']} -> {difference['new']}")
    if not found:
        print("no difference")
    return {"differences": found}


def _list_all() -> dict[str, Any]:
    found = {
        graph.short(selector): description(configurable.wrapped).partition("\n")[0]
        for selector, configurable in graph.configurables().items()
    }
    width = max(map(len, found))
    for short in sorted(found, key=str.casefold):
        print(f"{short:{width}}  {found[short]}")
    return {"configurables": found}


def _describe(name: str) -> dict[str, Any]:
    selectors = graph.matching(name)
    if not selectors:
        names = map(graph.short, graph.configurables())
        raise UsageError(f"--name={name}: no such configurable{did_you_mean(name, names)}")
    if len(selectors) > 1:
        raise UsageError(f"--name={name} is ambiguous: write one of {', '.join(sorted(selectors))}")
    wrapped = graph.configurable(selectors[0]).wrapped
    short = graph.short(selectors[0])
    docs = parameter_docs(wrapped)
    print(f"{short}, in {selectors[0].rpartition('.')[0]}\n\n{description(wrapped)}\n")
    print(parameter_lines(signature_of(wrapped), docs, f"{short}."))
    return {"name": short, "description": description(wrapped), "parameters": docs}


def _show_resolved(reader: GinReader) -> dict[str, Any]:
    """Prints every parameter with its value, macros replaced, and the place where it was set."""
    reached = graph.reach(node for node in graph.bindings() if node[1] != MACRO)
    nodes = [node for node in reached if not node[1].startswith("gin.") and not _is_own(node)]
    lines = _unread_macros(reader)
    values: dict[str, str | None] = {}
    for node in sorted(nodes, key=lambda node: (".commands." not in node[1], node[1], node[0])):
        lines.append("")
        bound = graph.effective(node)
        for parameter, declared in signature_of(graph.configurable(node[1]).wrapped).items():
            name = graph.binding_name(node, parameter)
            if parameter in bound:
                binder, value = bound[parameter]
                shown, places = _resolved_value(reader, binder, parameter, value)
                values[name] = shown
                lines.append(_line(f"{name} = {shown}", ", ".join(places)))
            elif declared.default is declared.empty:
                values[name] = None
                lines.append(f"# {name} has no value and no default")
            elif parameter != "dry_run":
                values[name] = repr(declared.default)
                lines.append(_line(f"{name} = {declared.default!r}", "default"))
    print("\n".join(lines).strip())
    return {"bindings": values}


def _line(binding: str, comment: str) -> str:
    # Some defaults (a function, a factory) are no gin values: shown, but not to be read again.
    if "<" in binding:
        binding = f"# {binding}"
    return f"{binding:60}  # {comment}"


def _resolved_value(
    reader: GinReader, node: Node, parameter: str, value: Any
) -> tuple[str, list[str]]:
    """A value with its macros replaced, and the places of its binding and macros."""
    places = [reader.origins[node, parameter].where]
    for macro in graph.macros_in(value):
        if (macro, MACRO) not in graph.bindings():
            return repr(value), [*places, f"no macro {macro} is defined"]
        places.append(f"{macro} at {reader.origins[(macro, MACRO), 'value'].where}")
    try:
        return repr(graph.resolved(value)), places
    except LookupError:
        return repr(value), [*places, "required, and missing"]


def _unread_macros(reader: GinReader) -> list[str]:
    read = graph.macros_in(list(graph.bindings().values()))
    return [
        _line(
            f"{name} = {graph.bindings()[name, MACRO]['value']!r}",
            f"{reader.origins[(name, MACRO), 'value'].where}, which nothing here reads"
            f"{did_you_mean(name, read)}",
        )
        for name in graph.unread_macros()
    ]
