"""Each published number that this framework must give again has a test that names it.

The names are those of the project's table of golden numbers. A name counts where it is a test's
name (`test_dc_law`), begins a parameter's id ("dc_epochs-4"), or is called golden in a docstring.
Four names of the table are left out, since no command computes those numbers: kaplan_N, kaplan_ND,
dcpt_form and mix_form.
"""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

GOLDEN = [
    "params_bloomberg", "params_a9", "flops_a4", "tokens_schedule", "epoch_fraction",
    "flops_8n_full", "flops_table", "hw_tflops", "wall_days", "budget", "plan_A1", "plan_A2",
    "polyfit_T3", "A1_1e21", "levine", "loss_tex", "loss_bbg", "loss_1b", "nopt_tex",
    "nopt_printed", "nopt_bes", "nopt_budget", "figure1_A3", "efficiency", "fwd_terms",
    "huber_fit", "huber_bad", "mean_trap", "dc_law", "dc_opt", "dc_epochs", "dc_bbg", "palm_mfu",
    "megatron_days", "deepseek", "steplaw", "steplaw_bbg", "sardana",
    "vocab", "alibi_40", "lr_cosine", "bpb", "table1_sums",
]  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_a_test_names_it(name):
    named = [
        path.name
        for path in TESTS.rglob("test_*.py")
        if path.name != Path(__file__).name
        and re.search(rf"(test_|[\"']|[Gg]olden )({name})(?![A-Za-z0-9_])", path.read_text())
    ]
    assert named
