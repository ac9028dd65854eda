import dataclasses
import functools
import math

import jax
import numpy as np
import optax
import pytest

from t5x_style.accounting import Architecture, StepShape, Topology
from t5x_style.accounting.layouts.divisibility import check_divisible
from t5x_style.errors import UsageError
from t5x_style.models.logical import flat
from t5x_style.partitioning import batch_sharding, check_sharded, in_force, make_mesh, shardings_of
from t5x_style.partitioning.sharding import check_heads, leaf_name
from t5x_style.step.model_state import bind_model

P = jax.sharding.PartitionSpec
TOPOLOGY = Topology(fsdp=2, tensor=4)
EVERYTHING = Architecture(
    vocab_size=64,
    layers=2,
    d_model=32,
    d_ff=64,
    heads=8,
    kv_heads=4,
    head_dim=8,
    positions="learned",
    max_length=16,
    norm="layer",
    feed_forward="swiglu",
    biases=True,
    tied_head=False,
    embedding_norm=True,
    qk_norm=True,
)

# The layers' axis is whole everywhere; rows of residual matrices carry tensor and fsdp.
GOLDEN = {
    "embedding": P("tensor", "fsdp"),
    "position_table": P(None, "fsdp"),
    "head": P("tensor", "fsdp"),
    "embedding_norm/gain": P(None),
    "embedding_norm/bias": P(None),
    "final_norm/gain": P(None),
    "final_norm/bias": P(None),
    "blocks/attention_norm/gain": P(None, None),
    "blocks/attention_norm/bias": P(None, None),
    "blocks/attention/query/weight": P(None, "fsdp", "tensor"),
    "blocks/attention/query/bias": P(None, "tensor"),
    "blocks/attention/key/weight": P(None, "fsdp", "tensor"),
    "blocks/attention/key/bias": P(None, "tensor"),
    "blocks/attention/value/weight": P(None, "fsdp", "tensor"),
    "blocks/attention/value/bias": P(None, "tensor"),
    "blocks/attention/query_norm/gain": P(None, None),
    "blocks/attention/key_norm/gain": P(None, None),
    "blocks/attention/out/weight": P(None, ("tensor", "fsdp"), None),
    "blocks/attention/out/bias": P(None, None),
    "blocks/feed_forward_norm/gain": P(None, None),
    "blocks/feed_forward_norm/bias": P(None, None),
    "blocks/feed_forward/up/weight": P(None, "fsdp", "tensor"),
    "blocks/feed_forward/up/bias": P(None, "tensor"),
    "blocks/feed_forward/gate/weight": P(None, "fsdp", "tensor"),
    "blocks/feed_forward/gate/bias": P(None, "tensor"),
    "blocks/feed_forward/down/weight": P(None, ("tensor", "fsdp"), None),
    "blocks/feed_forward/down/bias": P(None, None),
}


@functools.cache
def model(architecture=EVERYTHING, **rules):
    topology = dataclasses.replace(TOPOLOGY, rules=rules)
    mesh = make_mesh(topology)
    with in_force(topology, mesh):
        return bind_model(architecture, topology, mesh, "float32")


def by_name(tree) -> dict:
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def shards_of(name: str) -> int:
    """Pieces of a parameter on a mesh of 2 x 4."""
    sizes = {"fsdp": 2, "tensor": 4}
    return math.prod(sizes[axis] for entry in GOLDEN[name] for axis in flat(entry))


def test_golden_partition_specs():
    specs = {name: leaf.sharding.spec for name, leaf in by_name(model().abstract).items()}
    assert specs == GOLDEN


# What lies over `data` too where the optimizer state does: rows of matrices, nothing else.
OVER_DATA = {
    "embedding": P(("tensor", "data"), "fsdp"),
    "position_table": P("data", "fsdp"),
    "head": P(("tensor", "data"), "fsdp"),
    "blocks/attention/query/weight": P(None, ("fsdp", "data"), "tensor"),
    "blocks/attention/key/weight": P(None, ("fsdp", "data"), "tensor"),
    "blocks/attention/value/weight": P(None, ("fsdp", "data"), "tensor"),
    "blocks/attention/out/weight": P(None, ("tensor", "fsdp", "data"), None),
    "blocks/feed_forward/up/weight": P(None, ("fsdp", "data"), "tensor"),
    "blocks/feed_forward/gate/weight": P(None, ("fsdp", "data"), "tensor"),
    "blocks/feed_forward/down/weight": P(None, ("tensor", "fsdp", "data"), None),
}


def test_golden_specs_of_gradients_and_optimizer_state():
    topology = Topology(data=2, fsdp=2, tensor=2)
    for over_data, golden in ((False, GOLDEN), (True, GOLDEN | OVER_DATA)):
        asked = dataclasses.replace(topology, shard_optimizer_over_data=over_data)
        with in_force(asked, mesh := make_mesh(asked)):
            bound = bind_model(EVERYTHING, asked, mesh, "float32")
        specs = {name: leaf.sharding.spec for name, leaf in by_name(bound.updates).items()}
        assert specs == golden
        assert {
            name: leaf.sharding.spec for name, leaf in by_name(bound.abstract).items()
        } == GOLDEN


def test_an_axis_that_splits_a_parameter_is_not_asked_twice():
    rules = {"embed": ("fsdp", "data")}
    topology = Topology(data=2, fsdp=4, rules=rules, shard_optimizer_over_data=True)
    with in_force(topology, mesh := make_mesh(topology)):
        bound = bind_model(EVERYTHING, topology, mesh, "float32")
    assert by_name(bound.updates)["head"].sharding.spec == P("tensor", ("fsdp", "data"))


def test_parameters_are_born_in_their_shards():
    with in_force(TOPOLOGY, make_mesh(TOPOLOGY)):
        parameters = model().fresh_parameters(0)
    split = 0
    for name, leaf in by_name(parameters).items():
        shards = shards_of(name)
        assert len(leaf.addressable_shards) == 8
        for shard in leaf.addressable_shards:
            assert shard.data.size == leaf.size // shards, name
        split += shards == 8
    assert split == 2 + 7  # embedding, head, and every matrix of a block


def test_the_optimizers_moments_lie_like_their_parameters():
    mesh = make_mesh(TOPOLOGY)
    abstract = model().abstract
    state = jax.eval_shape(optax.chain(optax.adam(1e-3), optax.ema(0.9)).init, abstract)
    found = by_name(shardings_of(state, abstract, mesh))
    moments = {name: sharding for name, sharding in found.items() if "count" not in name}
    assert len(moments) == 3 * len(GOLDEN)  # two of Adam, one of the average
    for name, sharding in moments.items():
        (own,) = [item for item in GOLDEN if name.endswith(f"/{item}") and deepest(name, item)]
        assert sharding.spec == GOLDEN[own]
    for name in found.keys() - moments.keys():
        assert found[name].is_fully_replicated


def deepest(name: str, ending: str) -> bool:
    """Whether no longer parameter's name ends `name`."""
    return not any(len(other) > len(ending) and name.endswith(f"/{other}") for other in GOLDEN)


def test_a_batch_lies_on_the_axes_that_split_it():
    mesh = make_mesh(Topology(data=2, fsdp=2, tensor=2))
    placed = jax.device_put(np.zeros((8, 5)), batch_sharding(mesh))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 5)}


# --- refusals ---


@pytest.mark.parametrize(
    ("changes", "sizes", "batch", "message"),
    [
        ({}, {"data": 2, "fsdp": 4}, 12, "the batch = 12 .* data x fsdp = 8.* is 16"),
        (
            {"heads": 4, "kv_heads": 4},
            {"tensor": 8},
            8,
            "Architecture.heads = 4 .* tensor = 8.* is 8",
        ),
        ({"kv_heads": 2}, {"tensor": 4}, 8, "Architecture.kv_heads = 2"),
        ({"d_ff": 60}, {"tensor": 4, "fsdp": 2}, 8, "Architecture.d_ff = 60 .* = 8"),
        ({"vocab_size": 63}, {"tensor": 2}, 8, "Architecture.vocab_size = 63"),
        ({"d_model": 36}, {"fsdp": 8}, 8, "Architecture.d_model = 36"),
        ({"heads": 1, "kv_heads": 1, "head_dim": 12}, {"fsdp": 8}, 8, "heads x head_dim = 12"),
    ],
)
def test_sizes_that_the_mesh_does_not_divide_are_refused(changes, sizes, batch, message):
    base = dataclasses.replace(EVERYTHING, kv_heads=8)
    check_divisible(StepShape(base, 16, 12), Topology(**sizes))
    with pytest.raises(UsageError, match=message):
        check_divisible(
            StepShape(dataclasses.replace(base, **changes), batch, 12), Topology(**sizes)
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 36}, "Architecture.d_model = 36 .* fsdp x data = 8.* is 40"),
        ({"vocab_size": 66}, "Architecture.vocab_size = 66 .* tensor x data = 4.* is 68"),
        ({"d_ff": 68}, "Architecture.d_ff = 68 .* fsdp x data = 8.* is 72"),
        ({"head_dim": 3, "heads": 4}, "heads x head_dim = 12 .* fsdp x data = 8.* is 16"),
        ({"max_length": 13}, "Architecture.max_length = 13 .* data = 4.* is 16"),
    ],
)
def test_rows_that_data_does_not_divide_are_refused(changes, message):
    odd = dataclasses.replace(EVERYTHING, **{"head_dim": 6, "d_ff": 64} | changes)
    check_divisible(StepShape(odd, 8, 12), Topology(data=4, fsdp=2))
    with pytest.raises(UsageError, match=message):
        check_divisible(
            StepShape(odd, 8, 12), Topology(data=4, fsdp=2, shard_optimizer_over_data=True)
        )


def test_chunks_that_do_not_divide_the_vocabulary_are_refused():
    check_divisible(StepShape(EVERYTHING, 8, 12), Topology(tensor=2, loss_vocab_chunks=8))
    message = r"loss_vocab_chunks = 12 .* the 32 words .* divisor is 8"
    with pytest.raises(UsageError, match=message):
        check_divisible(StepShape(EVERYTHING, 8, 12), Topology(tensor=2, loss_vocab_chunks=12))
    prime = dataclasses.replace(EVERYTHING, vocab_size=31)
    for chunks, nearest in ((3, 1), (40, 31)):
        with pytest.raises(UsageError, match=f"the 31 words .* divisor is {nearest}$"):
            check_divisible(StepShape(prime, 8, 12), Topology(loss_vocab_chunks=chunks))
    with pytest.raises(UsageError, match=r"BATCH_SIZE = 8 is not a multiple of .* = 3"):
        check_divisible(StepShape(EVERYTHING, 8, 12), Topology(microbatches=3))
    with pytest.raises(UsageError, match="loss_vocab_chunks = 0: must be 1 or more"):
        Topology(loss_vocab_chunks=0)


def test_rules_that_keep_an_axis_whole_are_heard():
    odd = dataclasses.replace(EVERYTHING, kv_heads=8, vocab_size=63)
    with pytest.raises(UsageError, match=r"vocab_size = 63 .* tensor = 2.* is 64"):
        check_divisible(StepShape(odd, 8, 12), Topology(tensor=2))
    check_divisible(StepShape(odd, 8, 12), Topology(tensor=2, rules={"vocab": None}))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"kv_heads": None}, "'heads' on the mesh's tensor and 'kv_heads' on no axis of the mesh"),
        ({"heads": None, "heads_rows": "fsdp"}, "'heads' on no axis .* 'kv_heads' on the mesh's t"),
    ],
)
def test_queries_parted_from_their_keys_are_refused(rules, message):
    """A device pairs the heads that it holds by number: the result would be another, silently."""
    topology = Topology(fsdp=4, tensor=2, rules=rules)
    with in_force(topology, mesh := make_mesh(topology)), pytest.raises(UsageError, match=message):
        bind_model(EVERYTHING, topology, mesh, "float32")
    check_heads(EVERYTHING, dataclasses.replace(topology, fsdp=8, tensor=1))
    alone = dataclasses.replace(EVERYTHING, kv_heads=1)
    check_heads(alone, Topology(tensor=8, rules={"kv_heads": None}))


def test_a_sequence_that_its_axis_does_not_divide_is_refused():
    check_divisible(StepShape(EVERYTHING, 8, 12), Topology(sequence=2))
    with pytest.raises(
        UsageError, match=r"the sequence length = 13 .* twice the mesh's sequence = 4"
    ):
        check_divisible(StepShape(EVERYTHING, 8, 13), Topology(sequence=2))


def test_the_unsharded_share_counts_what_could_be_split_and_is_not():
    tolerant = dataclasses.replace(TOPOLOGY, unsharded_tolerance=1.0)
    unsharded = total = 0.0
    for name, leaf in by_name(model().abstract).items():
        total += leaf.size
        # Split by both axes counts nothing, whole counts all, in four of eight 4 / 7.
        unsharded += leaf.size * (8 - shards_of(name)) / 7
    assert check_sharded(model().abstract, tolerant) == pytest.approx(unsharded / total, rel=1e-12)
    with pytest.raises(UsageError, match="on a mesh of fsdp=2, tensor=4"):
        check_sharded(model().abstract, TOPOLOGY)
    assert check_sharded(model().abstract, Topology(data=8)) == 0.0


def test_the_unsharded_share_is_of_bytes():
    """Of 8 float32 that are split and 8 bfloat16 that are not, a third of the bytes."""
    mesh = make_mesh(topology := Topology(fsdp=8, unsharded_tolerance=1.0))
    tree = {
        name: jax.ShapeDtypeStruct((8,), dtype, sharding=jax.sharding.NamedSharding(mesh, spec))
        for name, dtype, spec in (("a", "float32", P("fsdp")), ("b", "bfloat16", P(None)))
    }
    assert check_sharded(tree, topology) == pytest.approx(1 / 3)
    assert check_sharded(tree, dataclasses.replace(topology, unsharded_tolerance=0.34)) > 0
    with pytest.raises(UsageError, match=r"the largest: b, a$"):
        check_sharded(tree, dataclasses.replace(topology, unsharded_tolerance=0.33))


def test_more_than_two_percent_unsharded_is_refused():
    wide = dataclasses.replace(EVERYTHING, d_model=128, d_ff=512, positions="rope", max_length=None)
    assert 0 < check_sharded(model(wide).abstract, TOPOLOGY) < 0.02
    holed = model(wide, mlp=None, mlp_rows=None)
    with pytest.raises(UsageError, match=r"unsharded.*feed_forward/down/weight"):
        check_sharded(holed.abstract, TOPOLOGY)
