"""How often each computation of a program runs.

The TPU compiler does not write a loop's trips into the text. They follow from the loop's counter:
the constant with which the condition compares it, where it starts and by how much the body moves it
(a loop that was unrolled moves by more than one).
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
      times: runs per computation, those that only live inside a fusion included.
      ordered: computations whose lines run one after the other: the entry, the bodies of loops,
        branches and calls. What a fusion or a core of another kind runs is not among them.
      trips: per `while` instruction; a loop whose trips could not be told is not here.
      unknown_loops: names of the `while` instructions whose trips could not be told: each is
        counted as run ONCE, so that every total is a lower bound.
    """

    times: dict[str, int]
    ordered: tuple[str, ...]
    trips: dict[str, int]
    unknown_loops: tuple[str, ...]


def schedule(module: Module) -> Schedule:
    """Follows every call from the entry downwards. Of a conditional every branch counts."""
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
                called = _loop(instruction)
                known = _trips(module, computation, instruction)
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


def _loop(instruction: Instruction) -> tuple[str, ...]:
    """(condition, body) of a `while`."""
    return tuple(
        re.search(rf"\b{part}=%?([\w.\-]+)", instruction.attributes)[1]
        for part in ("condition", "body")
    )


@dataclasses.dataclass(frozen=True)
class _Value:
    """An integer of a loop: `offset`, plus the loop's tuple element `element` if that is given."""

    element: int | None
    offset: int


def _trips(module: Module, outside: Computation, loop: Instruction) -> int | None:
    if known := _KNOWN_TRIPS.search(loop.attributes):
        return int(known[1])
    condition, body = (module.computations[name] for name in _loop(loop))
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

    def moved_by(value: _Value) -> int | None:
        if value.element is None:
            return 0
        after = _evaluate(module, body, body.root.operands[value.element], {})
        return after.offset if after is not None and after.element == value.element else None

    values = (at_start(left), at_start(right), moved_by(left), moved_by(right))
    if None in values:
        return None
    first, limit, step, limit_step = values
    return _counted(direction, first - limit, step - limit_step)


def _counted(direction: str, distance: int, step: int) -> int | None:
    """Times that `distance OP 0` holds while the distance moves by `step`; None if for ever."""
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
    """What the parameters of a fusion's computation are."""
    return {
        number: _evaluate(module, computation, name, bound)
        for number, name in enumerate(fusion.operands)
    }


def _evaluate(
    module: Module, computation: Computation, name: str, bound: dict[int, _Value | None]
) -> _Value | None:
    """A counter's value, as far as it is a constant or an element of the loop's tuple plus one."""
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
        left, right = (_evaluate(module, computation, each, bound) for each in instruction.operands)
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
