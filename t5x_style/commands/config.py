"""`t5x-style config`: what can be configured, what a configuration comes to, how two differ."""

from typing import Any

import gin

from t5x_style.config import graph
from t5x_style.config.checks import config_differences, current
from t5x_style.config.files import Written
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
    """Shows what can be configured, what a configuration comes to, or how two of them differ.

    Without a flag: every configurable with its first line. With --gin_file and --gin.NAME: the
    configuration that they come to, includes and macros put in, defaults filled in, with the place
    where each value was set. With --old and --new: the bindings in which two files differ.

    Args:
      name: a configurable to describe in full.
      old: a gin file, such as a run's config.gin.
      new: another.
    """
    written = current()
    if (old is None) != (new is None):
        raise UsageError("--old and --new go together: two gin files to compare")
    if old is not None and new is not None:
        return _differences(written, old, new)
    bound = [key for key in written.origins if not key[0][1].endswith(".config.config")]
    if bound and name is None:
        return _resolved(written)
    from t5x_style.commands.main import load_everything

    load_everything()
    return _described(name) if name is not None else _listed()


def _differences(written: Written, old: str, new: str) -> dict[str, Any]:
    found = config_differences(
        written.expanded(old, f"--old={old}"), written.expanded(new, f"--new={new}")
    )
    for difference in found:
        print(f"{difference['name']}: {difference['old']} -> {difference['new']}")
    if not found:
        print("no difference")
    return {"differences": found}


def _listed() -> dict[str, Any]:
    found = {
        graph.short(selector): description(configurable.wrapped).partition("\n")[0]
        for selector, configurable in graph.configurables().items()
    }
    width = max(map(len, found))
    for short in sorted(found, key=str.casefold):
        print(f"{short:{width}}  {found[short]}")
    return {"configurables": found}


def _described(name: str) -> dict[str, Any]:
    selectors = graph.matching(name)
    if not selectors:
        names = map(graph.short, graph.configurables())
        raise UsageError(f"--name={name}: no such configurable{did_you_mean(name, names)}")
    if len(selectors) > 1:
        raise UsageError(f"--name={name} may be any of {', '.join(sorted(selectors))}: say which")
    wrapped = graph.configurable(selectors[0]).wrapped
    short = graph.short(selectors[0])
    docs = parameter_docs(wrapped)
    print(f"{short}, in {selectors[0].rpartition('.')[0]}\n\n{description(wrapped)}\n")
    print(parameter_lines(signature_of(wrapped), docs, f"{short}."))
    return {"name": short, "description": description(wrapped), "parameters": docs}


def _resolved(written: Written) -> dict[str, Any]:
    """Prints every binding, macros put in, with what it takes by default and where it was set."""
    reached = graph.reach(node for node in graph.bindings() if node[1] != MACRO)
    nodes = [
        node
        for node in reached
        if not node[1].startswith("gin.") and not node[1].endswith(".config.config")
    ]
    lines, values = _unused_macros(written), {}
    for node in sorted(nodes, key=lambda node: (".commands." not in node[1], node[1], node[0])):
        lines.append("")
        bound = graph.effective(node)
        for parameter, declared in signature_of(graph.configurable(node[1]).wrapped).items():
            name = graph.written(node, parameter)
            if parameter in bound:
                binder, value = bound[parameter]
                shown, places = _followed(written, binder, parameter, value)
                values[name] = shown
                lines.append(_line(f"{name} = {shown}", ", ".join(places)))
            elif parameter != "dry_run":
                required = declared.default is declared.empty
                values[name] = None if required else repr(declared.default)
                lines.append(
                    f"# {name} has no value and no default"
                    if required
                    else _line(f"{name} = {declared.default!r}", "default")
                )
    print("\n".join(lines).strip())
    return {"bindings": values}


def _line(binding: str, comment: str) -> str:
    # A default that is no gin value (a function, a factory) can be shown but not read back.
    if "<" in binding:
        binding = f"# {binding}"
    return f"{binding:60}  # {comment}"


def _followed(written: Written, node: Node, parameter: str, value: Any) -> tuple[str, list[str]]:
    """A value with its macro put in, and the places through which it came."""
    places = [written.origins[node, parameter].where]
    for macro in graph.macros_in(value):
        if (macro, MACRO) not in graph.bindings():
            return repr(value), [*places, f"no macro {macro} is defined"]
        places.append(f"{macro} at {written.origins[(macro, MACRO), 'value'].where}")
    try:
        return repr(graph.resolved(value)), places
    except LookupError:
        return repr(value), [*places, "required, and not given"]


def _unused_macros(written: Written) -> list[str]:
    read = {
        graph.macro_name(reference)
        for values in graph.bindings().values()
        for reference in graph.references(values)
    }
    macros = [node for node in graph.bindings() if node[1] == MACRO]
    return [
        _line(
            f"{node[0]} = {graph.bindings()[node]['value']!r}",
            f"{written.origins[node, 'value'].where}, which nothing here reads"
            f"{did_you_mean(node[0], (name for name in read if name))}",
        )
        for node in macros
        if node[0] not in read
    ]
