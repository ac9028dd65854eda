import contextlib
import io
import json
import subprocess
import sys

import pytest

from t5x_style.accounting.audit import bloomberggpt
from t5x_style.commands.main import main

SMALL = tuple(
    f"--gin.Architecture.{name}={value}"
    for name, value in {
        "vocab_size": 32_000,
        "layers": 24,
        "d_model": 1024,
        "d_ff": 2816,
        "heads": 16,
    }.items()
)
TWO = "--unique_tokens={'legal': 2e9, 'general': 30e9}"


def run(*arguments: str) -> tuple[int, dict, str]:
    """Exit status, what --json prints, and what people read."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["plan", *arguments, "--json"])
    return status, json.loads(out.getvalue() or "null"), err.getvalue()


def test_a_budget_in_flops():
    status, result, text = run("--flops=3.51e23")
    assert status == 0
    found = result["optima"]
    # Figures that BloombergGPT's paper prints.
    assert found["approach_1"]["params"] == pytest.approx(52.993e9, rel=1e-4)
    assert found["approach_2"]["tokens"] == pytest.approx(1175.766e9, rel=1e-4)
    assert "besiroglu" in text


def test_chips_and_days_are_a_budget():
    _, result, text = run("--chip=v5e", "--chips=256", "--days=7", "--mfu=0.5")
    flops = 256 * 197e12 * 7 * 86400 * 0.5
    assert result["budget"]["flops"] == pytest.approx(flops)
    assert "50.0% MFU by 6ND" in text
    _, again, _ = run(f"--flops={flops}", "--chip=v5e", "--chips=256", "--mfu=0.5")
    assert again["budget"]["days"] == pytest.approx(7)


def test_a_chip_of_ones_own(tmp_path):
    name, file = "tests.my_team.MY_CHIP", tmp_path / "plan.gin"
    budget = (f"--chip={name}", "--chips=16", "--days=3", "--mfu=0.5", f"--write={file}")
    status, result, text = run(*budget, TWO)
    assert status == 0, text
    assert result["budget"]["flops"] == pytest.approx(16 * 1e15 * 3 * 86400 * 0.5)
    assert f"Topology.chip = '{name}'" in file.read_text()
    status, _, text = run("--chip=tests.my_team.MY_CHIPS", "--chips=16", "--days=3")
    assert (status, "has no 'MY_CHIPS'; did you mean 'MY_CHIP'?" in text) == (2, True)


def test_money_and_gpu_hours_are_budgets():
    _, by_hours, _ = run("--chip=h100", "--chip_hours=20000")
    _, by_money, text = run("--chip=h100", "--money=50000", "--price_per_chip_hour=2.5")
    assert by_hours["budget"]["flops"] == pytest.approx(by_money["budget"]["flops"])
    assert by_money["budget"]["cost"] == pytest.approx(50_000)
    assert "costing 50,000" in text


def test_scarce_data():
    _, result, text = run("--flops=1e22", TWO, "--shares={'legal': 0.51, 'general': 0.49}")
    assert {name: row["share"] for name, row in result["sources"].items()} == {
        "legal": 0.51,
        "general": 0.49,
    }
    assert sum(row["tokens"] for row in result["sources"].values()) == pytest.approx(
        result["recipe"]["tokens"]
    )
    assert {row["scarce_source"] for row in result["within_data"].values()} == {"legal"}
    assert result["sources"]["legal"]["epochs"] <= 4
    assert "limited by legal" in text
    together = result["cap_costs"][-1]
    assert together["source"] is None
    assert together["loss"] > 0


def test_every_section_of_a_full_plan_is_there():
    status, result, text = run(
        "--chip=v5p", "--chips=64", "--days=10", "--price_per_chip_hour=4.2", TWO,
        "--shares=choose", "--domain=legal", "--max_epochs={'legal': 12, 'general': 4}",
        "--served_tokens=1e12", "--sequence_length=4096",
    )  # fmt: skip
    assert status == 0
    for word in ("budget:", "cost of each data limit", "to be served", "model: L", "epochs",
                 "learning rate", "checkpoints", "mesh", "remat", "optimizer", "as planned",
                 "MFU -50%", "tokens of legal +50%"):  # fmt: skip
        assert word in text, word
    best = result["meshes"][0]
    assert best["bytes_per_chip"]["total"] < 95e9
    memory = result["remat_memory"]
    assert set(memory) == {
        "none", "save_dots", "full", "save_attention", "save_qkv", "save_qkv_out", "offload"
    }  # fmt: skip
    assert memory["none"]["activations"] > memory["save_dots"]["activations"]
    assert memory["save_dots"]["activations"] > memory["full"]["activations"]
    assert memory[best["remat"]]["total"] == best["bytes_per_chip"]["total"]
    assert result["recipe"]["batch_sequences"] % 64 == 0
    assert result["checkpoints"]["bytes"] == 12 * sum(result["parameters"].values())


def test_a_batch_may_be_settled():
    asked = ("--chip=v5p", "--chips=512", "--days=0.005", "--batch_sequences=512")
    status, result, text = run(*asked)
    assert status == 0
    assert result["recipe"]["batch_sequences"] == 512
    assert "as asked for; StepLaw" in text


def test_a_model_is_held_against_the_laws():
    _, result, text = run("--flops=1e20", "--architecture=@Architecture()", *SMALL)
    total = sum(result["parameters"].values())
    assert result["chosen"]["params"] == total
    assert result["audit"]["model_flops_6nd"] == pytest.approx(1e20, rel=0.01)
    assert "feed_forward_in" in text


def test_a_users_own_law_is_followed(tmp_path):
    law = tmp_path / "own.json"
    fitted = run_fit(law)
    status, result, text = run("--flops=1e20", f"--own_law={law}")
    assert status == 0
    assert result["law"] == fitted
    assert fitted in text
    assert fitted in result["optima"]
    # It is shown, with its source, beside a published law that is followed, too.
    status, result, text = run("--flops=1e20", f"--own_law={law}", "--law=hoffmann", TWO)
    assert (status, result["law"]) == (0, "hoffmann")
    assert f"{fitted}: a test" in text
    assert "muennighoff: " in text


def run_fit(path) -> str:
    """A law of made-up points, as `t5x-style fit` writes it; its name."""
    import dataclasses

    from t5x_style.accounting import LAWS
    from t5x_style.accounting.laws.own import write_law

    law = dataclasses.replace(LAWS["besiroglu"], name="legal_fit", irreducible=1.2, source="a test")
    write_law(path, law)
    return law.name


def test_the_preset_prints_bloomberggpts_accounts():
    _, result, text = run("--preset=bloomberggpt")
    assert result["total_parameters"] == 50_558_868_480
    assert result["tokens"] == 568_747_622_400
    assert result["epochs"] == pytest.approx(0.80230, abs=1e-4)
    assert result["audit"]["chinchilla/besiroglu/compute_efficiency"] == pytest.approx(
        0.97599, rel=1e-4
    )
    assert result["audit"]["chinchilla/hoffmann/compute_efficiency"] == pytest.approx(
        0.83245, rel=1e-4
    )
    by_law = result["plan"]["optima"]
    assert by_law["approach_1"]["params"] == pytest.approx(52.993e9, rel=1e-4)
    assert by_law["approach_1"]["tokens"] == pytest.approx(1111.12e9, rel=1e-4)
    assert by_law["approach_2"]["params"] == pytest.approx(49.754e9, rel=1e-4)
    assert by_law["approach_2"]["tokens"] == pytest.approx(1175.77e9, rel=1e-4)
    assert result["plan"]["budget"]["flops"] == bloomberggpt.BUDGET_FLOPS
    totals = {name: figures["total"] for name, figures in result["flops"].items()}
    for name, total in {
        "6nd": 1.72531e23,
        "chinchilla_counted": 1.76616e23,
        "palm": 1.80046e23,
        "megatron": 1.80022e23,
        "8n": 2.30042e23,
        "megatron_recompute": 2.38884e23,
        "8n_full_batches": 2.36149e23,
    }.items():
        assert totals[name] == pytest.approx(total, rel=1e-5), name
    for figure in ("50,558,868,480", "568,747,622,400", "80.23%", "708.9", "2.36e23", "2.30e23",
                   "230,0", "101.95", "32.7%", "24.5%", "25.6%", "52.4 d", "3.51e23", "53.0B",
                   "97.6%", "83.2%"):  # fmt: skip
        assert figure in text, figure


def test_a_plan_is_quick_and_light():
    """No jax, no scipy, no matplotlib: nothing that takes a second to import."""
    program = (
        "import sys\nfrom t5x_style.commands.main import main\n"
        "status = main(['plan', '--chip=v5p', '--chips=512', '--days=30', "
        "\"--unique_tokens={'a': 1e11, 'b': 1e12}\"])\n"
        "heavy = {'jax', 'scipy', 'numpy', 'matplotlib', 'tensorflow'} & set(sys.modules)\n"
        "print(status, sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_the_figure_is_drawn_and_the_plan_written(tmp_path):
    gin_file, figure = tmp_path / "plan.gin", tmp_path / "plan.svg"
    status, _, text = run("--flops=1e20", TWO, f"--write={gin_file}", f"--figure={figure}")
    assert status == 0
    assert "<svg" in figure.read_text()
    assert "Architecture.layers" in gin_file.read_text()
    assert f"written: {gin_file}" in text


def test_a_dry_run_writes_nothing(tmp_path):
    assert run("--flops=1e20", f"--write={tmp_path}/p.gin", "--dry_run")[0] == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "needs a budget"),
        (("--chip=v5e", "--days=7"), "needs --chips"),
        (("--flops=1e20", "--chip=v5e", "--chips=8", "--days=1"), "given together"),
        (("--flops=-1e20",), "--flops=-1e"),
        (("--chip=v5", "--chips=8", "--days=1"), "did you mean 'v5"),
        (("--preset=bloomberg",), "did you mean 'bloomberggpt'"),
        (("--flops=1e20", TWO, "--shares={'legl': 0.5, 'general': 0.5}"), "'legal'"),
        (("--flops=1e20", TWO, "--shares={'legal': 0.6, 'general': 0.6}"), "sum to 1.2"),
        (("--flops=1e20", TWO, "--max_epochs=0.5"), "under one epoch"),
        (("--flops=1e20", TWO, "--max_epochs=50"), "past_forty_epochs"),
        (("--flops=1e20", "--unique_tokens={'legal': -2e9}"), "must be above 0"),
        (("--flops=1e20", "--shares={'legal': 1}"), "unique_tokens"),
        (("--flops=1e20", "--law=approach_1"), "gives no loss"),
        (("--flops=1e20", "--style=lama"), "did you mean 'llama'"),
        (("--preset=bloomberggpt", "--flops=1e20"), "--flops has no effect together with --preset"),
        (("--preset=bloomberggpt", "--write=p.gin"), "--write has no effect"),
        (
            ("--flops=1e20", "--architecture=@Architecture()", "--style=llama", *SMALL),
            "--style has no effect together with --architecture",
        ),
        (("--flops=1e20", "--vocab_size=-5"), "vocab_size"),
        (("--flops=1e20", "--batch_sequences=-5"), "batch_sequences"),
        (("--chip=v5p", "--chips=512", "--days=0.005"), "batch_sequences = 512 would do"),
        (("--chip=v5p", "--chips=500", "--days=5"), "512, say"),
        (("--chip=v5e", "--chips=4", "--days=100"), "take more chips"),
        (("--flops=1e15", "--vocab_size=500000"), "vocab"),
        (("--flops=1e20", "--write=plan.txt"), "--write=plan.gin"),
        (("--flops=1e20", "--write=/no/such/folder/plan.gin"), "no folder"),
        (("--flops=1e20", "--figure=plan.pdf"), ".svg"),
        (("--flops=1e20", "--write=gs://b/p.gin"), "--write = 'gs://b/p.gin': gs:// is not a file"),
        (("--flops=1e20", "--figure=gs://b/p.svg"), "--figure = 'gs://b/p.svg': gs:// is not a"),
        (("--flops=1e20", "--own_law=gs://b/law"), "--own_law = 'gs://b/law': gs:// is not a file"),
        (("--flops=1e20", "--own_law=absent.json"), "absent.json"),
    ],
)
def test_what_makes_no_plan_is_refused(arguments, message):
    status, result, text = run(*arguments)
    assert status == 2
    assert result is None
    assert message in text.splitlines()[-1]
