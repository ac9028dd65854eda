"""What is advised when a step does not fit: changes that there are, and that save something."""

import re

import gin
import pytest

from t5x_style.accounting import Architecture, StepShape, Topology
from t5x_style.accounting.layouts.divisibility import check_divisible
from t5x_style.step.memory_advice import what_would_fit

# Its logits are what a step holds most of.
ARCHITECTURE = Architecture(vocab_size=65536, layers=2, d_model=64, d_ff=128, heads=4)
SHAPE = StepShape(ARCHITECTURE, 16, 512)
ADVICE = re.compile(r"would (?:fit|save).* by the planner's estimate: (.*?)(?: \(saves .*\))?$")


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
