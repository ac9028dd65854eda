"""How often each computation of a program runs.

The TPU compiler does not write a loop's trips into the text. They follow from the loop's counter:
the constant with which the condition compares it, its start and its change in one run of the body
(more than one in an unrolled loop).
"""

import dataclasses
import re

from t5x_style.compiling.hlo.text import Computation, Instruction, Module

_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SAME_VALUE = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which computations run, and how often.

    Attributes:
      times: runs per computation, those inside fusions included.
      ordered: computations whose lines run one after the other: the entry, the bodies of loops,
        branches and calls. The computations of fusions and of other kinds of cores are left out.
      trips: per `while` instruction; loops of unknown trips are left out.
      unknown_loops: names of the `while` instructions whose trips the text does not show. Each is
        counted as run ONCE, so that every total is a lower bound.
    """

    times: dict[str, int]
    ordered: tuple[str, ...]
    trips: dict[str, int]
    unknown_loops: tuple[str, ...]


def schedule(module: Module) -> Schedule:
    """Follows every call from the entry downwards. Every branch of a conditional is counted."""
    times = dict.fromkeys(module.computations, 0)
    times[module.entry] = 1
    ordered = {module.entry}
    trips: dict[str, int] = {}
    unknown = []
    # Callees are printed before their callers.
    for computation in reversed(module.computations.values()):
        runs = times[computation.name]
        if not runs:
            continue
        for instruction in computation.instructions.values():
            called, repeats = instruction.called, 1
            if instruction.operation == "while":
                called = loop_computations(instruction)
                known = _loop_trips(module, computation, instruction)
                if known is None:
                    unknown.append(instruction.name)
                else:
                    trips[instruction.name] = repeats = known
            if instruction.operation in ("while", "conditional", "call"):
                ordered.update(called)
            for name in called:
                times[name] += runs * repeats
    in_order = tuple(name for name in module.computations if name in ordered and times[name])
    return Schedule(times, in_order, trips, tuple(unknown))


def loop_computations(loop: Instruction) -> tuple[str, str]:
    """Names of the (condition, body) of a `while`."""
    condition = re.search(r"\bcondition=%?([\w.\-]+)", loop.attributes)
    body = re.search(r"\bbody=%?([\w.\-]+)", loop.attributes)
    assert condition is not None
    assert body is not None
    return condition[1], body[1]


@dataclasses.dataclass(frozen=True)
class _Value:
    """An integer of a loop: `offset`, plus the loop's tuple element `element` if there is one."""

    element: int | None
    offset: int


def _loop_trips(module: Module, outside: Computation, loop: Instruction) -> int | None:
    if known := _KNOWN_TRIPS.search(loop.attributes):
        return int(known[1])
    condition, body = (module.computations[name] for name in loop_computations(loop))
    compare = _comparison(module, condition)
    start = outside.instructions.get(loop.operands[0])
    if compare is None or start is None or start.operation != "tuple":
        return None
    direction, left, right = compare

    def at_start(value: _Value) -> int | None:
        if value.element is None:
            return value.offset
        first = _evaluate(module, outside, start.operands[value.element], {})
        return None if first is None or first.element is not None else first.offset + value.offset

    def change(value: _Value) -> int | None:
        if value.element is None:
            return 0
        after = _evaluate(module, body, body.root.operands[value.element], {})
        return after.offset if after is not None and after.element == value.element else None

    first, limit, step, limit_step = at_start(left), at_start(right), change(left), change(right)
    if first is None or limit is None or step is None or limit_step is None:
        return None
    return _trips_until_false(direction, first - limit, step - limit_step)


def _trips_until_false(direction: str, distance: int, step: int) -> int | None:
    """Times that `distance OP 0` holds while the distance moves by `step`; None if forever."""
    if direction in ("GT", "GE"):
        direction, distance, step = {"GT": "LT", "GE": "LE"}[direction], -distance, -step
    if direction == "LE":
        direction, distance = "LT", distance - 1
    if direction == "LT":
        if distance >= 0:
            return 0
        return -(distance // step) if step > 0 else None
    if direction == "NE" and step and distance % step == 0 and distance // step <= 0:
        return -(distance // step)
    return None


def _comparison(module: Module, condition: Computation) -> tuple[str, _Value, _Value] | None:
    """(direction, left, right) of the comparison that ends a loop, in or out of a fusion."""
    root, inside, bound = condition.root, condition, {}
    if root.operation == "fusion":
        inside = module.computations[root.called[0]]
        bound = _bindings(module, condition, root, {})
        root = inside.root
    direction = root.attribute("direction")
    if root.operation != "compare" or direction is None:
        return None
    left, right = (_evaluate(module, inside, name, bound) for name in root.operands)
    return None if left is None or right is None else (direction, left, right)


def _bindings(
    module: Module, computation: Computation, fusion: Instruction, bound: dict[int, _Value | None]
) -> dict[int, _Value | None]:
    """The values of the parameters of a fusion's computation, by their numbers."""
    return {
        number: _evaluate(module, computation, name, bound)
        for number, name in enumerate(fusion.operands)
    }


def _evaluate(
    module: Module, computation: Computation, name: str, bound: dict[int, _Value | None]
) -> _Value | None:
    """A counter's value if it is a constant, or an element of the loop's tuple plus a constant."""
    instruction = computation.instructions[name]
    operation = instruction.operation
    if operation == "constant":
        is_integer = re.fullmatch(r"-?\d+", instruction.arguments)
        return _Value(None, int(instruction.arguments)) if is_integer else None
    if operation == "parameter":
        return bound.get(int(instruction.arguments))
    if operation == "get-tuple-element":
        source = computation.instructions[instruction.operands[0]]
        index = int(instruction.attribute("index") or 0)
        # Bound parameters are a fusion's; an unbound one is the tuple that the loop carries.
        return _Value(index, 0) if source.operation == "parameter" and not bound else None
    if operation in _SAME_VALUE:
        return _evaluate(module, computation, instruction.operands[0], bound)
    if operation in ("add", "subtract"):
        left, right = (_evaluate(module, computation, name, bound) for name in instruction.operands)
        if left is None or right is None:
            return None
        if operation == "subtract":
            if right.element is not None:
                return None
            right = _Value(None, -right.offset)
        if left.element is not None and right.element is not None:
            return None
        element = right.element if left.element is None else left.element
        return _Value(element, left.offset + right.offset)
    if operation == "fusion":
        inside = module.computations[instruction.called[0]]
        bindings = _bindings(module, computation, instruction, bound)
        if inside.root.operation != "tuple" and bindings:
            return _evaluate(module, inside, inside.root.name, bindings)
    return None
