"""The losses of three small models, written down: the same on every version, machine and day.

Each has the parts of a published model in small. A change that is meant to compute the same, and
does not, shows here. Whoever changes the mathematics on purpose writes the new losses down.
"""

import math

import pytest

from t5x_style.accounting import Architecture
from t5x_style.data import Packing
from t5x_style.training import train
from tests.model_dir import lines
from tests.training.runs import SEQUENCE, VOCABULARY, make_run

SMALL = {"vocab_size": VOCABULARY, "layers": 2, "d_model": 32, "d_ff": 64, "heads": 4}
# Name -> (architecture, changes of the run, losses of steps 1, 10 and 20).
MODELS = {
    "bloomberggpt": (
        Architecture(**SMALL, positions="alibi", norm="layer", feed_forward="gelu", biases=True,
                     tied_head=True, embedding_norm=True),
        {},
        (5.2399504, 3.4486117, 3.0056313),
    ),
    "llama": (
        Architecture(**SMALL, kv_heads=2, positions="rope", norm="rms", feed_forward="swiglu",
                     tied_head=False),
        {"packing": Packing(windows="document_starts", attend_across_documents=False)},
        (4.9555500, 3.4075322, 2.6618302),
    ),
    "gpt2": (
        Architecture(**SMALL, positions="learned", max_length=SEQUENCE, norm="layer",
                     feed_forward="gelu", biases=True, tied_head=True, init_std=0.02),
        {"z_loss": 1e-3, "seed": 7},
        (4.8569999, 4.1044607, 3.7095342),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_small_model_has_the_losses_that_were_written_down(name, tmp_path):
    architecture, changes, expected = MODELS[name]
    train(make_run(tmp_path, architecture=architecture, eval_tokens=0, **changes))
    losses = {line["step"]: line["loss"] for line in lines(tmp_path)}
    assert len(losses) == 20
    # An untrained model knows nothing: its loss is near that of a uniform guess.
    assert losses[1] == pytest.approx(math.log(VOCABULARY), rel=0.1)
    # Float32 sums are rounded in another order by another compiler.
    assert [losses[step] for step in (1, 10, 20)] == pytest.approx(expected, rel=2e-5)
