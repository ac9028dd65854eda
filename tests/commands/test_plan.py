import contextlib
import io
import json

import pytest

from t5x_style.commands.main import main


def run(*arguments: str) -> tuple[int, dict, str]:
    """Exit status, what --json prints, and what people read."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["plan", *arguments, "--json"])
    return status, json.loads(out.getvalue() or "null"), err.getvalue()


def test_a_budget_in_flops():
    status, result, text = run("--flops=3.51e23")
    assert status == 0
    found = {row["law"]: row for row in result["allocations"]}
    # Figures that BloombergGPT's paper prints.
    assert found["approach_1"]["params"] == pytest.approx(52.993e9, rel=1e-4)
    assert found["approach_2"]["tokens"] == pytest.approx(1175.766e9, rel=1e-4)
    assert "besiroglu" in text


def test_chips_and_days_are_a_budget_and_flops_with_chips_a_time():
    _, budget, text = run("--chip=v5e", "--chips=256", "--days=7", "--mfu=0.5")
    flops = 256 * 197e12 * 7 * 86400 * 0.5
    assert budget["budget"]["flops"] == pytest.approx(flops)
    assert "50.0% MFU by 6ND" in text
    _, again, _ = run(f"--flops={flops}", "--chip=v5e", "--chips=256", "--mfu=0.5")
    assert again["budget"]["days"] == pytest.approx(7)


def test_scarce_data_holds_the_tokens_down():
    _, result, text = run(
        "--flops=1e21",
        "--unique_tokens={'legal': 2e9, 'general': 30e9}",
        "--shares={'legal': 51, 'general': 49}",
    )
    assert result["shares"] == {"legal": 0.51, "general": 0.49}
    capped = [row for row in result["allocations"] if row["scarce_source"]]
    assert {row["scarce_source"] for row in capped} == {"legal"}
    assert all(row["epochs"]["legal"] == pytest.approx(4) for row in capped)
    assert "legal ends at 4 epochs" in text


def test_a_model_is_held_against_the_laws():
    _, result, text = run(
        "--flops=1e20",
        "--architecture=@Architecture()",
        "--gin.Architecture.vocab_size=32000",
        "--gin.Architecture.layers=24",
        "--gin.Architecture.d_model=1024",
        "--gin.Architecture.d_ff=2816",
        "--gin.Architecture.heads=16",
    )
    total = sum(result["architecture"]["parameters"].values())
    assert result["architecture"]["tokens"] == pytest.approx(1e20 / 6 / total)
    assert result["architecture"]["audit"]["model_flops_6nd"] == pytest.approx(1e20)
    assert "feed_forward_in" in text


def test_the_preset_prints_bloomberggpts_accounts():
    _, result, text = run("--preset=bloomberggpt")
    assert result["total_parameters"] == 50_558_868_480
    assert result["tokens"] == 568_747_622_400
    for figure in ("50,558,868,480", "568,747,622,400", "2.36e23", "101.95", "52.993B", "97.6%"):
        assert figure in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "needs a budget"),
        (("--chip=v5e", "--days=7"), "--chip and --chips go together"),
        (("--flops=1e20", "--days=7"), "given both"),
        (("--flops=-1e20",), "--flops=-1e"),
        (("--chip=v5", "--chips=8", "--days=1"), "did you mean 'v5"),
        (("--preset=bloomberg",), "did you mean 'bloomberggpt'"),
        (("--flops=1e20", "--unique_tokens={'legal': 1e9}", "--shares={'legl': 1}"), "'legal'"),
        (("--flops=1e20", "--shares={'legal': 1}"), "unique_tokens"),
    ],
)
def test_what_makes_no_plan_is_refused(arguments, message):
    status, result, text = run(*arguments)
    assert status == 2
    assert result is None
    assert message in text.splitlines()[-1]
