"""Groups of devices in HLO's spellings, against numpy's reading of the same."""

import numpy as np
import pytest

from t5x_style.compiling.hlo.groups import axes_of, device_groups
from t5x_style.compiling.hlo.text import Instruction

MESH = {"data": 2, "fsdp": 4, "tensor": 2}
DEVICES = np.arange(16).reshape(2, 4, 2)


def groups_along(*axes: str) -> set[frozenset[int]]:
    names = list(MESH)
    last = np.moveaxis(DEVICES, [names.index(axis) for axis in axes], range(-len(axes), 0))
    rows = last.reshape(-1, int(np.prod([MESH[axis] for axis in axes])))
    return {frozenset(row.tolist()) for row in rows}


def read(attributes: str) -> list[list[int]]:
    shape = "f32[8,8]{1,0}"
    instruction = Instruction("x", shape, "all-gather", "%y", f", {attributes}, a=b", False)
    return device_groups(instruction, 16)


@pytest.mark.parametrize(
    ("attributes", "axes"),
    [
        ("replica_groups={{0,2,4,6},{1,3,5,7},{8,10,12,14},{9,11,13,15}}", ["fsdp"]),
        ("replica_groups=[8,2]<=[16]", ["tensor"]),
        ("replica_groups=[8,2]<=[2,8]T(1,0)", ["data"]),
        ("replica_groups=[4,4]<=[2,4,2]T(0,2,1)", ["fsdp"]),
        ("replica_groups=[2,8]<=[16]", ["fsdp", "tensor"]),
        ("replica_groups=[2,8]<=[2,4,2]T(2,0,1)", ["data", "fsdp"]),
        ("replica_groups={}", ["data", "fsdp", "tensor"]),
        ("replica_groups=mesh['a'=2,'b'=4,'c'=2] {'b'}", ["fsdp"]),
        ("replica_groups=mesh['a'=2,'b'=4,'c'=2] {'a','c'}", ["data", "tensor"]),
        (
            "replica_groups=mesh['a'=4,'b'=2,'c'=2], device_ids=([2,4,2]T(1,0,2)) {'b'}",
            ["data"],
        ),
        (
            "replica_groups=mesh['axis_0'=2,'axis_1'=8], device_ids=([8,2]T(1,0)) {'axis_1'}",
            ["data", "fsdp"],
        ),
    ],
)
def test_each_spelling(attributes, axes):
    groups = read(attributes)
    assert {frozenset(group) for group in groups} == groups_along(*axes)
    assert axes_of(groups, MESH) == "+".join(axes)


def test_a_ring_along_a_longer_axis_is_a_part_of_it():
    around = [(place, (place + 1) % 4) for place in range(4)]
    pairs = [(2 * a + b, 2 * c + b) for a, c in around for b in range(2)]
    listed = ",".join(f"{{{start},{end}}}" for start, end in pairs)
    assert axes_of(read(f"source_target_pairs={{{listed}}}"), MESH) == "part of fsdp"


def test_half_of_an_axis_is_a_part_of_it():
    assert axes_of(read("replica_groups=[8,2]<=[2,2,2,2]T(0,1,3,2)"), MESH) == "part of fsdp"


def test_who_keeps_what_it_has_sends_nothing():
    assert read("source_target_pairs={{0,0},{1,2},{2,1},{3,3}}") == [[1, 2], [2, 1]]
