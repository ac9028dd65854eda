import dataclasses
import itertools
import math
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_style.accounting import Architecture, StepShape, Topology, chip
from t5x_style.accounting.audit.bloomberggpt import ARCHITECTURE as BLOOMBERGGPT
from t5x_style.accounting.layouts import meshes
from t5x_style.accounting.layouts.divisibility import check_divisible, indivisible
from t5x_style.accounting.layouts.memory import step_memory
from t5x_style.accounting.layouts.meshes import fitting_meshes
from t5x_style.errors import UsageError
from tests.calls import calls_of

LLAMA_8B = Architecture(
    vocab_size=128_256,
    layers=32,
    d_model=4096,
    d_ff=14_336,
    heads=32,
    kv_heads=8,
    tied_head=False,
)


@given(
    sizes=st.tuples(*[st.sampled_from([1, 2, 3, 4, 8])] * 4),
    batch_sequences=st.sampled_from([6, 24, 64]),
    sequence_length=st.sampled_from([40, 48, 128]),
    kv_heads=st.sampled_from([2, 4, 8]),
    d_ff=st.sampled_from([96, 160, 352]),
    vocab_size=st.sampled_from([96, 128, 250]),
)
def test_the_check_is_the_arithmetic_of_the_default_rules(
    sizes, batch_sequences, sequence_length, kv_heads, d_ff, vocab_size
):
    topology = Topology(*sizes)
    arch = Architecture(
        vocab_size=vocab_size, layers=2, d_model=96, d_ff=d_ff, heads=8, kv_heads=kv_heads
    )
    data, fsdp, tensor, sequence = sizes
    divides = not (
        batch_sequences % (data * fsdp)
        or sequence_length % (2 * sequence if sequence > 1 else 1)
        or arch.heads % tensor
        or arch.kv_heads % tensor
        or arch.d_ff % (tensor * fsdp)
        or arch.vocab_size % tensor
        or arch.d_model % fsdp
        or (arch.heads * arch.head_dim) % (tensor * fsdp)
    )
    shape = StepShape(arch, batch_sequences, sequence_length)
    assert (indivisible(shape, topology) is None) == divides
    if not divides:
        with pytest.raises(UsageError, match="is not a multiple of"):
            check_divisible(shape, topology)


def meshes_of(arch, row, chips, batch_sequences, sequence_length):
    shape = StepShape(arch, batch_sequences, sequence_length)
    return fitting_meshes(shape, Topology(kernel="blockwise"), row, chips)


def layout_of(candidate):
    return candidate.topology.mesh_text, candidate.topology.remat


@pytest.mark.parametrize(
    ("arch", "name", "chips", "batch_sequences", "sequence_length"),
    [
        (BLOOMBERGGPT, "v5p", 512, 2048, 2048),
        (BLOOMBERGGPT, "a100_40gb", 512, 2048, 2048),
        (LLAMA_8B, "v5e", 64, 192, 8192),
        (LLAMA_8B, "tpu7x", 4, 64, 8192),
        (LLAMA_8B, "h100", 24, 96, 8192),
        (LLAMA_8B, "v5p", 512, 8, 131_072),
    ],
)
def test_every_candidate_uses_all_devices_and_fits_and_the_fastest_is_first(
    arch, name, chips, batch_sequences, sequence_length
):
    candidates = meshes_of(arch, chip(name), chips, batch_sequences, sequence_length)
    assert candidates
    for item in candidates:
        assert item.topology.devices == chips * chip(name).devices_per_chip
        assert indivisible(StepShape(arch, batch_sequences, sequence_length), item.topology) is None
        rows = (
            batch_sequences / item.topology.data / item.topology.fsdp / item.topology.microbatches
        )
        assert rows == int(rows) >= 1
        assert item.bytes_per_chip["total"] <= 0.85 * chip(name).hbm_bytes
        assert item.bytes_per_chip["parameters"] <= item.bytes_per_chip["total"]
    seconds = [item.step_seconds for item in candidates]
    # The order treats steps within two per cent as equal.
    assert all(math.log(later / first) > -0.03 for first, later in itertools.pairwise(seconds))
    layouts = [layout_of(item) for item in candidates]
    assert len(layouts) == len(set(layouts))


def test_the_sequence_axis_is_for_long_sequences_and_lets_few_of_them_use_many_chips():
    short = meshes_of(LLAMA_8B, chip("v5p"), 64, 128, 8192)
    assert {item.topology.sequence for item in short} == {1}
    long = meshes_of(LLAMA_8B, chip("v5p"), 512, 8, 131_072)
    assert all(item.topology.sequence > 1 for item in long)


def test_a_sequence_is_split_from_16384_tokens_on():
    def sequence_axes(length):
        found = meshes_of(LLAMA_8B, chip("v5p"), 64, 64, length)
        return {item.topology.sequence for item in found}

    assert sequence_axes(16_384 - 128) == {1}
    assert {1, 2} < sequence_axes(16_384)


def test_a_step_has_at_most_64_microbatches_and_no_more_than_it_needs():
    tiny = Architecture(vocab_size=256, layers=2, d_model=64, d_ff=192, heads=4)

    def planned(most):
        """The layouts on a chip that holds no more than `most` microbatches of a step."""
        layout = Topology(kernel="blockwise", remat="full", microbatches=most)
        room = step_memory(StepShape(tiny, 4096, 512), layout).total
        row = dataclasses.replace(chip("v5p"), hbm_bytes=room / 0.85)
        assert 0.85 * row.hbm_bytes == room  # to the last bit
        return meshes_of(tiny, row, 1, 4096, 512)

    for most in (16, 64):
        assert min(item.topology.microbatches for item in planned(most)) == most
    with pytest.raises(UsageError, match="do not fit on 1 x v5p"):
        planned(128)


@pytest.mark.parametrize(("faster", "first"), [(1.005, "plain"), (1.03, "faster")])
@pytest.mark.parametrize("trait", ["tensor", "sequence", "microbatches"])
def test_the_plainer_layout_is_first_unless_another_is_two_percent_faster(
    trait, faster, first, monkeypatch
):
    def made_up(shape, layout, row):
        return types.SimpleNamespace(seconds=1.0 if getattr(layout, trait) > 1 else faster)

    monkeypatch.setattr(meshes, "roofline", made_up)
    length = 16_384 if trait == "sequence" else 4096
    best = meshes_of(LLAMA_8B, chip("v5p"), 64, 256, length)[0].topology
    assert (getattr(best, trait) > 1) == (first == "faster")


def test_bytes_of_a_chip_are_those_of_all_its_devices():
    """12 bytes a parameter of state, over the shards of both devices of four chips."""
    for item in meshes_of(LLAMA_8B, chip("tpu7x"), 4, 64, 8192):
        if item.topology.fsdp * item.topology.tensor == 8:
            state = item.bytes_per_chip["parameters"] + item.bytes_per_chip["optimizer"]
            assert state == pytest.approx(12 * 8.03e9 / 4, rel=1e-3)


def test_bloomberggpts_own_layout_is_among_those_that_fit():
    """Section 3.3: ZeRO-3 over 128 of 512 A100 of 40 GB, four replicas, activations recomputed."""
    found = meshes_of(BLOOMBERGGPT, chip("a100_40gb"), 512, 2048, 2048)
    assert ("data=4 x fsdp=128", "full") in {layout_of(item) for item in found}


def test_less_memory_is_less_choice():
    small = dataclasses.replace(chip("v5p"), hbm_bytes=chip("v5p").hbm_bytes // 3)
    few = meshes_of(BLOOMBERGGPT, small, 512, 2048, 2048)
    many = meshes_of(BLOOMBERGGPT, chip("v5p"), 512, 2048, 2048)
    assert {layout_of(one) for one in few} < {layout_of(one) for one in many}


def test_512_chips_take_well_under_a_second():
    assert len(calls_of(meshes_of, BLOOMBERGGPT, chip("v5p"), 512, 2048, 2048)) < 200_000


def test_a_model_that_fits_nowhere_is_refused_with_what_it_needs():
    with pytest.raises(UsageError, match=r"do not fit on 4 x v5e: .* takes .* GB of a chip"):
        meshes_of(LLAMA_8B, chip("v5e"), 4, 64, 8192)
    with pytest.raises(UsageError, match=r"85% of it is 13\.6 GB; take more chips, chips with"):
        meshes_of(LLAMA_8B, chip("v5e"), 4, 64, 8192)
    with pytest.raises(UsageError, match=r"more chips \(8, say: a mesh of 6 divides few widths\)"):
        meshes_of(LLAMA_8B, chip("v5e"), 6, 96, 8192)


def test_a_batch_that_no_mesh_divides_is_refused_with_one_that_would_do():
    small = Architecture(vocab_size=1024, layers=2, d_model=64, d_ff=192, heads=4)
    with pytest.raises(UsageError, match="batch_sequences = 66 would do"):
        meshes_of(small, chip("v5p"), 6, 64, 8192)
    assert meshes_of(small, chip("v5p"), 6, 66, 8192)


@pytest.mark.parametrize("name", ["chips", "batch_sequences", "sequence_length"])
def test_sizes_below_one_are_refused(name):
    asked = {"chips": 8, "batch_sequences": 64, "sequence_length": 2048, name: 0}
    with pytest.raises(UsageError, match=f"{name} = 0"):
        meshes_of(LLAMA_8B, chip("v5p"), **asked)
