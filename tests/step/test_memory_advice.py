"""What is advised when a step does not fit: changes that there are, and that save something."""

import re

import gin
import pytest

from t5x_style.accounting import Architecture, StepShape, Topology
from t5x_style.accounting.layouts.divisibility import check_divisible
from t5x_style.step.memory_advice import (
    memory_refusal,
    refused_bytes,
    unknown_flag,
    what_would_fit,
)

# Its logits are what a step holds most of.
ARCHITECTURE = Architecture(vocab_size=65536, layers=2, d_model=64, d_ff=128, heads=4)
SHAPE = StepShape(ARCHITECTURE, 16, 512)
ADVICE = re.compile(r"would (?:fit|save).* by the planner's estimate: (.*?)(?: \(saves .*\))?$")


@pytest.fixture(autouse=True)
def no_bindings():
    """What one test tells gin is not there in the next."""
    yield
    gin.clear_config()


@pytest.mark.parametrize("chunk", [1, 2, 100, 1_000_000])
@pytest.mark.parametrize("words", [1, 8])
@pytest.mark.parametrize("excess", [1, 2**40])
def test_each_advice_is_a_layout_that_can_be_asked_for(chunk, words, excess):
    topology = Topology(
        data=4, fsdp=2, microbatches=2, loss_chunk_tokens=chunk, loss_vocab_chunks=words
    )
    advised = set()
    for line in what_would_fit(SHAPE, topology, excess):
        (found,) = ADVICE.findall(line)
        gin.clear_config()
        passes = 1
        for binding in found.split(", "):
            name, _, value = binding.partition(" = ")
            advised.add(name)
            if name == "MICROBATCHES":
                passes = int(value)
                continue
            gin.parse_config(binding)
            assert value != "0"
        check_divisible(SHAPE, Topology(data=4, fsdp=2, microbatches=passes))
        Topology()
    # Halving what is not read, or a chunk of one token, saves nothing.
    assert ("Topology.loss_chunk_tokens" in advised) == (chunk > 1 and words == 1)
    assert "MICROBATCHES" not in advised  # 2 rows a device, in 2 passes already


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ("Used 20.25G of 15.75G hbm. Exceeded", (20.25 * 2**30, 15.75 * 2**30)),
        ("(1.5T) exceeds available HBM (95.5G)", (1.5 * 2**40, 95.5 * 2**30)),
        ("Used 12.5M of 512K hbm", (12.5 * 2**20, 512 * 2**10)),
        ("Used 12.5M of 512K vmem", None),
    ],
)
def test_bytes_of_the_tpu_compilers_refusals(message, found):
    assert refused_bytes(message) == found


REFUSAL = "RESOURCE_EXHAUSTED: Used 20.25G of 15.75G hbm. Exceeded hbm capacity\n" + "".join(
    f'\n  {number}. Size: {size}\n     Operator: op_name="jit(step)/{name}"{source}\n'
    for number, size, name, source in (
        (1, "8.00G", "dot", ' source_file="loss.py" source_line=12'),
        (2, "4.00G", "add", ""),
        (3, "2.00G", "mul", ""),
        (4, "1.00G", "exp", ""),
    )
)


def test_a_refusal_has_the_missing_bytes_the_three_largest_arrays_and_advice():
    topology = Topology(data=4, fsdp=2)
    first, *arrays = memory_refusal(REFUSAL, SHAPE, topology).splitlines()
    assert first == "the step needs 20.25 GiB of each device, which has 15.75 GiB"
    assert arrays[:3] == [
        "  8.00GiB: jit(step)/dot at loss.py:12",
        "  4.00GiB: jit(step)/add",
        "  2.00GiB: jit(step)/mul",
    ]
    assert arrays[3:] == what_would_fit(SHAPE, topology, 4.5 * 2**30)
    assert memory_refusal("INTERNAL: another fault", SHAPE, topology) is None


def advised(topology, excess=1, shape=SHAPE):
    lines = what_would_fit(shape, topology, excess)
    return {found: line for line in lines for found in ADVICE.findall(line)}


def test_changes_that_are_enough_come_alone_and_the_greatest_first():
    lines = what_would_fit(SHAPE, Topology(data=4, fsdp=2), 1)
    assert all(line.startswith("would fit, by the planner's estimate: ") for line in lines)
    saved = [float(re.search(r"saves ([\d.]+) GiB", line)[1]) for line in lines]
    assert len(saved) > 5
    assert saved == sorted(saved, reverse=True)
    some = what_would_fit(SHAPE, Topology(data=4, fsdp=2), int(saved[0] * 2**30 * 0.9))
    assert some == lines[: len(some)] != lines
    none = what_would_fit(SHAPE, Topology(data=4, fsdp=2), 2**40)
    assert len(none) == len(lines)
    assert all(line.startswith("would save ") for line in none)


def test_what_is_halved_doubled_and_moved():
    found = advised(Topology(data=4, fsdp=2))
    # 16 sequences of 512 tokens are 2 rows, 1,024 tokens, a device.
    assert "Topology.loss_chunk_tokens = 512" in found
    assert "Topology.loss_vocab_chunks = 16" in found
    assert "Topology.data = 2, Topology.fsdp = 4" in found
    assert "MICROBATCHES = 2" in found
    assert "Topology.shard_optimizer_over_data = True" in found
    assert "Topology.remat = 'full'" in found
    assert "Topology.remat = 'none'" not in found
    split = advised(Topology(data=2, fsdp=2, loss_vocab_chunks=16, loss_chunk_tokens=300))
    assert "Topology.loss_vocab_chunks = 32" in split
    # 4 rows: 2 passes, then 4.
    assert "MICROBATCHES = 4" in advised(Topology(data=2, fsdp=2, microbatches=2))
    assert "MICROBATCHES = 2" in split


def test_a_slice_stays_whole_and_a_vocabulary_is_cut_into_equal_chunks():
    within = advised(Topology(data=4, slices=2, fsdp=2))
    assert "Topology.data = 2, Topology.fsdp = 4" in within
    assert not any("Topology.data" in name for name in advised(Topology(data=2, slices=2, fsdp=2)))
    odd = StepShape(Architecture(65544, 2, 64, 128, 4), 16, 512)
    assert not any("vocab_chunks" in name for name in advised(Topology(data=4), shape=odd))


def test_a_flag_that_xla_does_not_know_is_named():
    message = "INVALID_ARGUMENT: No such compile option: 'xla_tpu_fast'"
    assert unknown_flag(message) == "Topology.compiler_flags: this XLA has no option 'xla_tpu_fast'"
    assert unknown_flag("INTERNAL: another fault") is None
