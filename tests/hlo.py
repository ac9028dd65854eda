"""What a compiled program computes, read from the text of its optimised HLO.

The compiler has had its say here: it fuses, drops what nobody reads, computes equal things once,
and writes small products as sums. What stands in the text is what runs.
"""

import math
import re

# A computation's head stands at the margin; its name is that by which others call it.
_COMPUTATION = re.compile(r"^(?:ENTRY )?%(?P<name>\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(?P<name>\S+) = (?P<shape>.*?) (?P<operation>[\w-]+)\(")
_OPERANDS = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Operations in which a library's matrix product could hide from a search for `dot`.
_OPAQUE = ("custom-call", "convolution")


def dot_flops(text: str) -> int:
    """2 M N K summed over every `dot` that runs, each loop's body as often as the loop does.

    Args:
      text: of `jax.stages.Compiled.as_text`. Of a conditional every branch is counted.

    Raises:
      ValueError: an operation that may hold a product which the text does not show, or a loop whose
        trips it does not say.
    """
    bodies: dict[str, list[str]] = {}
    entry = ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            lines = bodies.setdefault(head["name"], [])
            entry = head["name"] if line.startswith("ENTRY") else entry
        elif _INSTRUCTION.match(line):
            lines.append(line)
    known: dict[str, int] = {}

    def of(computation: str) -> int:
        if computation not in known:
            known[computation] = _flops(bodies[computation], of)
        return known[computation]

    return of(entry)


def _flops(lines: list[str], of) -> int:
    shapes: dict[str, list[int]] = {}
    total = 0
    for line in lines:
        instruction = _INSTRUCTION.match(line)
        operation = instruction["operation"]
        if operation in _OPAQUE:
            raise ValueError(f"a product may hide in {line.strip()[:200]}")
        shapes[instruction["name"]] = _dimensions(instruction["shape"])
        if operation == "dot":
            left = shapes[_OPERANDS.search(line, instruction.end())[1]]
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)[1]
            inner = math.prod(left[int(axis)] for axis in contracted.split(",") if axis)
            total += 2 * math.prod(shapes[instruction["name"]]) * inner
        times = 1
        if operation == "while":
            trips = _TRIPS.search(line)
            if trips is None:
                raise ValueError(f"no number of trips in {line.strip()[:200]}")
            times = int(trips[1])
        called = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            called += _OPERANDS.findall(branches)
        total += times * sum(of(each) for each in called)
    return total


def _dimensions(shape: str) -> list[int]:
    """Of an array's shape, as `f32[4,10]{1,0}`; of a tuple nobody asks."""
    return [int(size) for size in re.search(r"\[([\d,]*)\]", shape + "[]")[1].split(",") if size]
