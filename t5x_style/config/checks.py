"""The configuration of one command: read, checked before anything runs, written back as consumed.

gin takes a misspelt macro, a misspelt scope, a binding that nothing reads and a string for a
number without a word. Here each is refused, with the place where it was written.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gin
from gin import config as gin_config

from t5x_style.config import graph
from t5x_style.config.differences import config_differences
from t5x_style.config.files import Origin, Written
from t5x_style.config.flags import FlagBinding
from t5x_style.config.graph import MACRO, Node
from t5x_style.config.help import annotation_text, signature_of
from t5x_style.config.types import annotations_of, coerced, mismatch
from t5x_style.errors import UsageError, did_you_mean

__all__ = [
    "borrow",
    "check",
    "config_differences",
    "current",
    "operative_config",
    "origins",
    "parse",
    "refuse_unconsumed",
    "rehearse",
]


@dataclasses.dataclass
class _Command:
    """The command that is being configured. gin's tables are global, so this is too."""

    written: Written = dataclasses.field(default_factory=Written)
    verb: str = ""
    other_verbs: tuple[str, ...] = ()
    lender: str | None = None
    consumed: dict[Node, dict[str, Any]] = dataclasses.field(default_factory=dict)


_command = _Command()


def parse(
    gin_files: Sequence[str] = (),
    bindings: Sequence[FlagBinding] = (),
    *,
    search_paths: Sequence[str] = (),
    load: Callable[[str], None] = lambda selector: None,
) -> Written:
    """Clears gin, then reads the files and after them the flags into it.

    Args:
      gin_files: looked for in the current folder, `search_paths`, the checkout and the package.
      bindings: values from the command line.
      search_paths: more folders in which gin files and includes are looked for.
      load: imports what may define a selector; called if a name is not known.

    Raises:
      UsageError: a file that is not there, a line that gin cannot read, a name that does not exist.
    """
    global _command
    gin.clear_config()
    _command = _Command(Written(tuple(search_paths), load))
    for name in gin_files:
        _command.written.read_file(name)
    for binding in bindings:
        _command.written.read_flag(binding)
    return _command.written


def current() -> Written:
    """What parse() read last, and where each binding of it was written."""
    return _command.written


def check(verb: Callable, *, verbs: Iterable[str] = ()) -> None:
    """Refuses what can be seen to be wrong before anything is called, all of it in one message.

    That is, in all that calling `verb` reaches: macros and parameters that have no value, macros
    that are not defined, values that are not what the parameter's annotation says; and macros
    that nothing uses. What a file says about other verbs and is out of reach here is left alone.

    Args:
      verb: the configurable function that will be called.
      verbs: gin's full names of all verbs.

    Raises:
      UsageError: naming each mistake with its file and line or flag.
    """
    _command.verb = graph.selector_of(verb)
    _command.other_verbs = tuple(set(verbs) - {_command.verb})
    live = graph.reach([("", _command.verb)])
    problems = [*_missing(live), *_undefined(live), *_types(live), *_unused_macros()]
    _refuse(problems)


def borrow(verb: Callable, lender: Callable) -> None:
    """Binds for `verb` what is bound for those parameters of another verb that both have.

    So that one gin file, or one command line with another verb in front, configures the two. What
    is bound for `verb` itself wins, and what is there for the lender alone may stand anywhere.
    """
    taker, giver = (("", graph.selector_of(each)) for each in (verb, lender))
    _command.lender = giver[1]
    origins_of = _command.written.origins
    for parameter, value in graph.bindings().get(giver, {}).items():
        if parameter in signature_of(verb) and (taker, parameter) not in origins_of:
            gin_config.bind_parameter((*taker, parameter), value)
            origins_of[taker, parameter] = origins_of[giver, parameter]


def refuse_unconsumed() -> None:
    """Refuses every binding and macro that has not been consumed by now.

    Called as the first statement of a verb: gin has just evaluated all that the verb's parameters
    refer to, so what is not in gin's operative config is read by nothing: a misspelt macro or
    scope, a binding of something that is not in use. Left alone is what belongs to another verb,
    what a later binding put out of use (another optimizer chosen by a flag), and what the verb
    holds as `@X` to call later.

    Raises:
      UsageError: naming each with its file and line or flag, and the nearest name in use.
    """
    _take_stock()
    _refuse(_all_unconsumed())


def rehearse(verb: Callable) -> None:
    """Does all that happens between check() and the first line of a verb, without calling it.

    Raises:
      UsageError: what a constructor refuses, or what refuse_unconsumed() would.
    """
    try:
        own = gin.get_bindings(verb)
    except UsageError as error:
        said = str(error).split("\n  In call to configurable")[0]
        raise UsageError(said + origins(said)) from None
    _take_stock()
    _command.consumed["", _command.verb] = own
    _refuse(_all_unconsumed())


def _take_stock() -> None:
    _command.consumed = {node: dict(values) for node, values in graph.operative().items()}


def _all_unconsumed() -> list[str]:
    live = graph.reach([("", _command.verb)]) if _command.verb else {}
    later = [node for node, called in live.items() if not called] + [
        target
        for (scope, _), values in _command.consumed.items()
        for target, called in graph.targets(values, scope)
        if not called
    ]
    deferred = graph.reach(later)
    aside = _aside()
    lent = graph.reach([("", _command.lender)]) if _command.lender else {}
    problems = []
    for (node, parameter), origin in _command.written.origins.items():
        if _is_consumed(node, parameter) or _covered(node, deferred) or _covered(node, lent):
            continue
        if origin.file is not None and (_covered(node, aside) or _bound_to_none(node, parameter)):
            continue
        problems.append(_unconsumed(node, parameter, origin))
    return problems


def operative_config(*, without: Callable | None = None) -> str:
    """What was consumed, defaults included, in gin's words, without includes.

    Read back alone it starts the same run again: this is a run's config.gin. Taken as it was when
    refuse_unconsumed() was called, so that what a verb later calls by itself does not enter.

    Args:
      without: a configurable whose parameters are left out.
    """
    left_out = without and graph.selector_of(without)
    chosen = {
        node: dict(values) for node, values in _command.consumed.items() if node[1] != left_out
    }
    for node in graph.reach(_unevaluated(chosen)):
        for parameter, (bound, value) in graph.effective(node).items():
            chosen.setdefault(bound, {}).setdefault(parameter, value)
    return gin_config._config_str(chosen, max_line_length=100)


def origins(message: str) -> str:
    """Lines that say where each `Configurable.parameter` that a message speaks of was set."""
    if any(origin.where in message for origin in _command.written.origins.values()):
        return ""
    lines = []
    for (node, parameter), origin in _command.written.origins.items():
        name = graph.written(node, parameter)
        plain = name.rsplit("/", 1)[-1]
        if node[1] == MACRO or not re.search(rf"(?<![\w.]){re.escape(plain)}(?![\w.])", message):
            continue
        places = [f"{name} is set at {origin.where}"]
        for macro in graph.macros_in(graph.bindings()[node][parameter]):
            if (found := _command.written.origins.get(((macro, MACRO), "value"))) is not None:
                places.append(f"{macro} at {found.where}")
        lines.append("\n  " + ", ".join(places))
    return "".join(lines)


def _refuse(problems: Sequence[str]) -> None:
    if len(problems) == 1:
        raise UsageError(problems[0])
    if problems:
        listed = "".join(f"\n- {problem}" for problem in problems)
        raise UsageError(f"{len(problems)} mistakes in the configuration:{listed}")


def _where(node: Node, parameter: str) -> str:
    origin = _command.written.origins.get((node, parameter))
    return origin.where if origin else graph.written(node, parameter)


def _missing(live: Mapping[Node, bool]) -> list[str]:
    """One entry that lists every required value that is not there, with the flag to type."""
    needed: dict[str, str] = {}
    for node, called in live.items():
        bound = graph.effective(node)
        for parameter, (binder, value) in bound.items():
            if graph.is_required(value):
                name = graph.written(binder, parameter)
                needed[name] = f"required at {_where(binder, parameter)}"
        if called and not node[1].startswith("gin."):
            for parameter, declared in _parameters(node).items():
                variadic = declared.kind in (declared.VAR_POSITIONAL, declared.VAR_KEYWORD)
                if parameter not in bound and declared.default is declared.empty and not variadic:
                    name = graph.written(node, parameter)
                    needed[name] = f"{graph.short(node[1])} has no default for it"
    if not needed:
        return []
    lines = []
    for name, reason in needed.items():
        flag = name.rsplit(".", 1)[1] if name.startswith(_verb_name() + ".") else f"gin.{name}"
        lines.append(f"\n    --{flag}={_kind(name, live)}    ({reason})")
    what = "a value is missing" if len(needed) == 1 else f"{len(needed)} values are missing"
    return [f"{what}; give it in a gin file or on the command line:{''.join(sorted(lines))}"]


def _kind(name: str, live: Mapping[Node, bool]) -> str:
    """What to put for a missing value: the type that its consumers declare."""
    for node in live:
        if node[1].startswith("gin."):
            continue
        bound = graph.effective(node)
        for parameter, declared in _parameters(node).items():
            binder, value = bound.get(parameter, (node, None))
            if name in (graph.written(binder, parameter), graph.macro_name(value)):
                kind = annotation_text(declared.annotation)
                return f"<{kind}>" if kind else "VALUE"
    return "VALUE"


def _undefined(live: Mapping[Node, bool]) -> list[str]:
    defined = [node[0] for node in graph.bindings() if node[1] == MACRO]
    problems = []
    for node in live:
        for parameter, (binder, value) in graph.effective(node).items():
            for target, called in graph.targets(value, node[0]):
                if called and graph.reach([target]).get(node):
                    name = graph.written(binder, parameter)
                    problems.append(f"{_where(binder, parameter)}: {name} refers to itself")
            for macro in graph.macros_in(value):
                if macro not in defined:
                    problems.append(
                        f"{_where(binder, parameter)}: {graph.written(binder, parameter)} ="
                        f" {value!r}, but no macro {macro} is defined"
                        f"{did_you_mean(macro, defined) or f'; add --gin.{macro}=VALUE'}"
                    )
    return list(dict.fromkeys(problems))


def _types(live: Mapping[Node, bool]) -> list[str]:
    problems = []
    for node in live:
        if node[1].startswith("gin."):
            continue
        annotations = annotations_of(graph.configurable(node[1]).wrapped)
        for parameter, (binder, value) in graph.effective(node).items():
            if parameter not in annotations:
                continue
            where, shown = _where(binder, parameter), graph.written(binder, parameter)
            _coerce(binder, parameter, annotations[parameter])
            value = graph.bindings()[binder][parameter]
            macros = graph.macros_in(value)
            try:
                resolved = graph.resolved(value)
            except LookupError:
                continue  # undefined or required: told elsewhere
            problem = mismatch(resolved, annotations[parameter])
            if problem is None:
                continue
            if macros and graph.macro_name(value):
                last = graph.last_macro(value)
                where, shown = _where((last, MACRO), "value"), f"{last} (for {shown})"
            problems.append(f"{where}: {shown} = {resolved!r} {problem}")
    return list(dict.fromkeys(problems))


def _coerce(node: Node, parameter: str, annotation: Any) -> None:
    """Rebinds a flag's value, on the parameter or its macro, as the annotation means it."""
    value = graph.bindings()[node][parameter]
    if graph.macro_name(value):
        node, parameter = (graph.last_macro(value), MACRO), "value"
        value = graph.bindings().get(node, {}).get("value")
    origin = _command.written.origins.get((node, parameter))
    if origin is not None and origin.text is not None:
        gin_config.bind_parameter((*node, parameter), coerced(origin.text, value, annotation))


def _unused_macros() -> list[str]:
    used = {
        macro
        for values in (*graph.bindings().values(), *_command.written.overridden)
        for macro in graph.macros_in(values)
    }
    return [
        _unconsumed(node, parameter, origin)
        for (node, parameter), origin in _command.written.origins.items()
        if node[1] == MACRO
        and node[0] not in used
        and not (origin.file is not None and _bound_to_none(node, parameter))
    ]


def _unconsumed(node: Node, parameter: str, origin: Origin) -> str:
    name = graph.written(node, parameter)
    if node[1] == MACRO:
        return f"{origin.where}: nothing uses a macro {name}{did_you_mean(name, _names_in_use())}"
    selector = graph.short(node[1])
    calls = [scope for scope, called in _command.consumed if called == node[1]]
    if not calls:
        return (
            f"{origin.where}: nothing reads {name}, because {_verb_name()} does not use {selector}"
            f"{did_you_mean(name, _names_in_use())}"
        )
    if not any(graph.covers(node[0], scope) for scope in calls):
        used = [scope or "no scope" for scope in sorted(calls)]
        near = did_you_mean(name, [graph.written((s, node[1]), parameter) for s in calls])
        return (
            f"{origin.where}: nothing reads {name}: {selector} is used in {', '.join(used)}{near}"
        )
    return f"{origin.where}: nothing reads {name}: whoever calls {selector} sets {parameter} itself"


def _names_in_use() -> list[str]:
    """Names that a mistyped one may have meant: macros that are read, parameters that are live."""
    live = graph.reach([("", _command.verb)]) if _command.verb else {}
    macros = [node[0] for node in live if node[1] == MACRO]
    own = [name for node in live if node[1] == _command.verb for name in _parameters(node)]
    others = [
        graph.written(node, parameter)
        for node in live
        if not node[1].startswith("gin.")
        for parameter in _parameters(node)
    ]
    return macros + [f"{_verb_name()}.{name}" for name in own if name != "dry_run"] + others


def _aside() -> dict[Node, bool]:
    """What another verb would use, or would be used had it not been overridden."""
    starts = [node for node in graph.bindings() if node[1] in _command.other_verbs]
    for scope, value in _command.written.overridden:
        starts.extend(target for target, _ in graph.targets(value, scope))
    return graph.reach(starts)


def _unevaluated(consumed: Mapping[Node, Mapping[str, Any]]) -> list[Node]:
    return [
        target
        for (scope, _), values in consumed.items()
        for target, called in graph.targets(values, scope)
        if not called
    ]


def _is_consumed(node: Node, parameter: str) -> bool:
    return any(
        selector == node[1]
        and parameter in values
        and (scope == node[0] if selector == MACRO else graph.covers(node[0], scope))
        for (scope, selector), values in _command.consumed.items()
    )


def _covered(node: Node, nodes: Iterable[Node]) -> bool:
    return any(
        selector == node[1]
        and (scope == node[0] if selector == MACRO else graph.covers(node[0], scope))
        for scope, selector in nodes
    )


def _bound_to_none(node: Node, parameter: str) -> bool:
    return node[1] == MACRO and graph.bindings()[node][parameter] is None


def _parameters(node: Node) -> Mapping[str, Any]:
    return signature_of(graph.configurable(node[1]).wrapped)


def _verb_name() -> str:
    return graph.short(_command.verb) if _command.verb else "this command"
