"""Slices that are not there: how many devices, and what the compiler grants a program on each."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.accounting import CHIPS, Topology
from t5x_style.accounting.chips import chip_of_device_kind
from t5x_style.compiling import described_devices
from t5x_style.errors import UsageError
from t5x_style.partitioning import make_mesh
from t5x_style.step.memory_advice import refused_bytes
from tests.compiling.tpu import NEEDS_LIBTPU

HOST = {"v4": "2x2x1", "v5e": "2x2", "v5p": "2x2x1", "v6e": "2x2", "tpu7x": "2x2x1"}


@NEEDS_LIBTPU
@pytest.mark.parametrize("chip", HOST)
def test_a_host_of_each_chip(chip):
    devices = described_devices(Topology(chip=chip, slice=HOST[chip]))
    assert len(devices) == 4 * CHIPS[chip].devices_per_chip
    assert chip_of_device_kind(devices[0].device_kind) == CHIPS[chip]


@NEEDS_LIBTPU
@pytest.mark.parametrize(("chip", "shape", "devices"), [("v5e", "1x1", 1), ("v6e", "2x4", 8)])
def test_a_part_of_a_host_and_a_host_of_eight(chip, shape, devices):
    described = described_devices(Topology(chip=chip, slice=shape))
    assert len(described) == devices
    assert {device.process_index for device in described} == {0}


@NEEDS_LIBTPU
@pytest.mark.parametrize("chip", HOST)
def test_usable_memory_is_what_the_compiler_grants(chip):
    device = described_devices(Topology(chip=chip, slice=HOST[chip]))[0]
    too_much = jax.ShapeDtypeStruct(
        (256, 2**30), jnp.bfloat16, sharding=jax.sharding.SingleDeviceSharding(device)
    )
    with pytest.raises(jax.errors.JaxRuntimeError) as refusal:
        jax.jit(lambda x: (x * 2, x.sum())).lower(too_much).compile()
    used, usable = refused_bytes(str(refusal.value))
    # To a hundredth of a GiB, in which libtpu 0.0.42 and 0.0.50 differ by one.
    assert usable == pytest.approx(CHIPS[chip].usable_bytes, abs=2**24)
    assert used > 2**39
    assert CHIPS[chip].usable_bytes < CHIPS[chip].hbm_bytes * 1.1 / CHIPS[chip].devices_per_chip


@NEEDS_LIBTPU
def test_slices_are_joined_along_the_data_axis_alone():
    topology = Topology(chip="v5e", slice="2x2", slices=2, data=4, fsdp=2)
    mesh = make_mesh(topology, described_devices(topology))
    numbers = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert (numbers[:2] == 0).all()
    assert (numbers[2:] == 1).all()


@NEEDS_LIBTPU
def test_neighbours_on_the_torus_stay_neighbours_on_an_axis():
    topology = Topology(chip="v5p", slice="4x4x4", data=4, fsdp=16)
    mesh = make_mesh(topology, described_devices(topology))
    for row in mesh.devices.reshape(4, 16):
        across = np.array([device.coords for device in row])
        # A row of 16 is a whole plane of the cube.
        assert sorted(np.ptp(across, axis=0)) == [0, 3, 3]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chip": "v5p", "slice": "8x8"}, "did you mean '8x8x8'"),
        pytest.param({"chip": "v5p", "slice": "7x8x8"}, "did you mean '8x8x8'", marks=NEEDS_LIBTPU),
        ({"chip": "v5e", "slice": "32x32"}, "8x16, 16x16"),
        ({"chip": "v5e", "slice": "big"}, "some that it has: 1x1, 2x2"),
        ({"chip": "a100_80gb", "slice": "1x8"}, "compiled for slices of v4, v5e"),
        ({"chip": "h100", "slice": "8"}, "nodes x GPUs of a node, at most 8, as in '1x8'"),
        ({"chip": "h100", "slice": "1x16"}, "nodes x GPUs of a node, at most 8, as in '1x8'"),
        ({"chip": "h100"}, "nodes x GPUs of a node"),
        ({"chip": "h100", "slice": "1x8", "slices": 4, "data": 4}, "as in '4x8'"),
    ],
)
def test_slices_that_are_none(fields, message):
    with pytest.raises(UsageError, match=message):
        described_devices(Topology(**fields))


def test_a_missing_libtpu_is_named(monkeypatch):
    """The package itself is hidden: JAX's words for its absence change with its versions."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else found(name)
    )
    with pytest.raises(UsageError, match="tools/setup tpu"):
        described_devices(Topology(chip="v5e", slice="2x2"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"slice": "2x2"}, "needs a chip"),
        ({"slices": 2}, r"Topology.slices = 2: .*Topology.data = 1"),
        ({"slices": 3, "data": 4}, "a divisor"),
    ],
)
def test_topologies_that_are_none(fields, message):
    with pytest.raises(UsageError, match=message):
        Topology(**fields)


@NEEDS_LIBTPU
def test_several_slices_are_not_taken_for_one():
    two = described_devices(Topology(chip="v5e", slice="2x2", slices=2, data=2))
    with pytest.raises(
        UsageError, match=r"of kind 'TPU v5 lite' belong to 2: set Topology.slices = 2"
    ):
        make_mesh(Topology(data=2, fsdp=4), two)


def test_slices_are_not_made_up_of_one():
    with pytest.raises(UsageError, match="slices = 2, but the 8 devices of kind 'cpu' belong to 1"):
        make_mesh(Topology(data=8, slices=2))
