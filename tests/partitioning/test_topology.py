import jax
import pytest

from t5x_style.accounting import Topology
from t5x_style.errors import UsageError
from t5x_style.models.logical import axis_names, mesh_axes
from t5x_style.partitioning import in_force, make_mesh

P = jax.sharding.PartitionSpec


def test_a_mesh_of_all_devices_and_of_one():
    mesh = make_mesh(Topology(data=2, fsdp=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}
    assert {device.id for device in mesh.devices.flat} == {d.id for d in jax.devices()}
    assert make_mesh(Topology()).size == 1


@pytest.mark.parametrize(
    ("sizes", "asked"), [({"fsdp": 16}, "16 devices"), ({"data": 2, "tensor": 2}, "4 devices")]
)
def test_too_few_devices_and_idle_devices_are_refused(sizes, asked):
    with pytest.raises(UsageError, match=asked) as refusal:
        make_mesh(Topology(**sizes))
    for axis, size in sizes.items():
        assert f"{axis}={size}" in str(refusal.value)
    assert "whose product is 8" in str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fsdp": 0}, "Topology.fsdp = 0"),
        ({"microbatches": 0}, "Topology.microbatches = 0"),
        ({"loss_chunk_tokens": 0}, "Topology.loss_chunk_tokens = 0"),
        ({"slices": 0}, "Topology.slices = 0"),
        ({"slices": 3, "data": 4}, "slices = 3: the data axis .*data = 4"),
        ({"slice": "2x2"}, "slice = '2x2' needs a chip"),
        ({"attention_block": 0}, "attention_block = 0: must be 1 or more"),
        ({"attention_block": 192, "kernel": "flash"}, "attention_block = 192: .*multiple of 128"),
        ({"kernel": "plane"}, "did you mean 'plain'"),
        ({"remat": "ful"}, "did you mean 'full'"),
        ({"rules": {"mpl": None}}, "did you mean 'mlp'"),
        ({"rules": {"mlp": "tensors"}}, "did you mean 'tensor'"),
        ({"rules": {"mlp_rows": ("tensor", "fdsp")}}, "did you mean 'fsdp'"),
        # The words of a device's share are summed over the axis: rows may not lie on it too.
        (
            {"rules": {"vocab": "fsdp", "embed": None}},
            "'batch' and 'vocab' on the mesh axis 'fsdp'",
        ),
        ({"rules": {"embed": "tensor"}}, "'embed' and '.*' on the mesh axis 'tensor'"),
        ({"rules": {"sequence": "tensor"}}, "'sequence' and '.*' on the mesh axis 'tensor'"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UsageError, match=message):
        Topology(**fields)


def test_what_a_topology_admits_and_is_by_default():
    assert Topology(attention_block=1, slices=2, data=4).attention_block == 1
    assert Topology(attention_block=128, kernel="flash").kernel == "flash"
    assert Topology() == Topology(
        data=1,
        fsdp=1,
        tensor=1,
        sequence=1,
        chip=None,
        slice=None,
        slices=1,
        microbatches=1,
        compiler_flags={},
        kernel="plain",
        attention_block=None,
        remat="none",
        loss_chunk_tokens=4096,
        loss_vocab_chunks=1,
        shard_optimizer_over_data=False,
        rules={},
        unsharded_tolerance=0.02,
    )
    mesh = Topology(data=2, fsdp=3, tensor=5, sequence=7)
    assert mesh.devices == 210
    assert mesh.pieces(("data", "tensor")) == 10
    assert mesh.mesh_text == "data=2 x fsdp=3 x tensor=5 x sequence=7"
    assert Topology(fsdp=3).mesh_text == "fsdp=3"
    assert Topology().mesh_text == "one device"


def test_rules_are_in_force_inside_and_not_outside():
    topology = Topology(fsdp=8, rules={"mlp": None})
    with in_force(topology, make_mesh(topology)):
        assert mesh_axes("batch", None, "mlp") == P(("data", "fsdp"), None, None)
        assert mesh_axes("embed", "vocab") == P("fsdp", "tensor")
        assert axis_names("mlp_rows") == ("tensor", "fsdp")
        with pytest.raises(ValueError, match="'batch' and 'embed' of one array"):
            mesh_axes("batch", "embed")
        with pytest.raises(KeyError):
            mesh_axes("bach")
    assert axis_names("mlp_rows") == ()
