"""The verb over the fitter: from files to a law in a file, and what it warns of."""

import contextlib
import io
import json

import numpy as np
import pytest

from t5x_style.accounting import SourceAccount
from t5x_style.accounting.laws import fitting
from t5x_style.accounting.laws.own import read_law
from t5x_style.commands.main import main
from t5x_style.reporting import PlannedSource, RunWriter
from tests.plans import made_up_plan, write_plan


def run(*arguments: str) -> tuple[int, dict, str]:
    """Exit status, what --json prints, and what people read."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["fit", *arguments, "--json"])
    return status, json.loads(out.getvalue() or "null"), err.getvalue()


@pytest.fixture(autouse=True)
def few_starts(monkeypatch):
    """The grid is the fitter's own matter; a fiftieth of it finds the laws of these points."""
    grid = fitting.starts()[::50]
    monkeypatch.setattr(fitting, "starts", lambda: grid)


def true_loss(params, tokens):
    return 1.8 + 420 / params**0.34 + 1600 / tokens**0.36


def write_points(path, *, sizes=(1e7, 1e8, 1e9, 1e10), noise=0.0, header="params,tokens,loss"):
    random = np.random.default_rng(0)
    lines = [header]
    for params in sizes:
        for tokens in (1e9, 1e10, 1e11):
            loss = true_loss(params, tokens) * np.exp(noise * random.normal())
            lines.append(f"{params},{tokens},{loss}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_csv_file_becomes_a_law_in_a_file(tmp_path):
    points = write_points(tmp_path / "points.csv", noise=1e-3)
    output = tmp_path / "own.json"
    arguments = (f"--points={points}", "--bootstrap=100", "--name=legal", f"--output={output}")
    status, result, text = run(*arguments)
    assert status == 0, text
    assert result["coefficients"]["alpha"] == pytest.approx(0.34, rel=0.05)
    low, high = result["intervals_95"]["alpha"]
    assert low < result["coefficients"]["alpha"] < high
    law = read_law(output)
    assert law.name == "legal"
    assert law.params_exponent == result["coefficients"]["alpha"]
    assert law.params_exponent_interval == tuple(result["exponent_interval_10_90"])
    assert law.fitted_flops == pytest.approx((6e16, 6e21))
    assert law.source == f"fitted to 12 points of {points}"
    assert json.loads(output.read_text())["fit"]["objective"] == result["objective"]
    # At the edge of its points the law says what the true one does.
    edge = result["budgets"][0]
    assert edge["flops"] == pytest.approx(6e21)
    assert edge["loss"] == pytest.approx(true_loss(edge["params"], edge["tokens"]), rel=0.01)
    assert edge["params_interval"][0] <= edge["params"] <= edge["params_interval"][1]
    for part in ("12 points", "legal", "95 % by bootstrap", "C = 6ND", f"wrote {output}"):
        assert part in text
    assert run(*arguments)[1] == result


def test_the_highest_losses_and_the_bootstrap_may_be_left_out(tmp_path):
    points = write_points(tmp_path / "points.csv")
    status, result, text = run(f"--points={points}", "--drop_highest=2", "--bootstrap=0")
    assert status == 0
    assert result["points"] == 10
    assert "2 of the highest losses dropped" in text
    assert result["coefficients"]["E"] == pytest.approx(1.8, rel=1e-6)
    assert result["intervals_95"] == {}
    assert result["exponent_interval_10_90"] is None
    assert result["budgets"][0]["params_interval"] is None


def test_runs_are_points(tmp_path):
    for number, (params, tokens) in enumerate(
        (p, t) for p in (10**6, 10**7, 10**8) for t in (10**8, 10**9, 10**10)
    ):
        folder = tmp_path / f"run{number}"
        with RunWriter(folder, resume_step=None) as writer:
            writer.metrics({"step": 1, "tokens": tokens, "loss": 9.0})
            loss = true_loss(params, tokens)
            writer.metrics({"step": 1, "tokens": tokens, "eval/legal/loss": loss})
        account = SourceAccount(1000, tokens, 1.0, epochs=4.0 + number, effective_tokens=1.0)
        plan = made_up_plan(
            {"legal": 1.0},
            tokens=tokens + (number == 8),
            parameters={"total": params},
            sources={"legal": PlannedSource(account, 1.0, 1.0, "legal")},
        )
        write_plan(folder, plan)
    status, result, text = run(f"--runs={tmp_path}/run*", "--bootstrap=0")
    assert status == 0
    assert result["points"] == 8
    assert result["coefficients"]["beta"] == pytest.approx(0.36, rel=1e-5)
    assert [left["name"] for left in result["left_out"]] == [f"{tmp_path}/run8"]
    assert "left out" in text
    assert "7 runs repeat a source more than 4 times" in text
    listed = [f"{tmp_path}/run{number}" for number in range(8)]
    assert run(f"--runs={listed}", "--bootstrap=0")[1]["coefficients"] == result["coefficients"]


def test_points_that_say_little_are_warned_of(tmp_path):
    points = write_points(tmp_path / "points.csv", sizes=(1e8, 2e8, 3e8), noise=0.02)
    status, result, text = run(f"--points={points}", "--bootstrap=50")
    assert status == 0
    assert "warning: N goes from 100M to 300M, a factor of 3.0" in text
    assert any("do not determine how to divide" in warning for warning in result["warnings"])


def test_runs_far_from_their_irreducible_loss_are_warned_of(tmp_path):
    """As a ladder of tiny models gave it: their losses fall as if they would fall to nothing."""
    points = tmp_path / "points.csv"
    lines = [
        f"{params},{tokens},{270 / params**0.42 + 100 / tokens**0.27}"
        for params in (7e4, 1.5e5, 3e5, 7.5e5)
        for tokens in (2e5, 6e5, 1.8e6)
    ]
    points.write_text("\n".join(["params,tokens,loss", *lines]) + "\n")
    _, result, _ = run(f"--points={points}", "--bootstrap=0")
    assert any("promises too much" in warning for warning in result["warnings"])
    seen = write_points(tmp_path / "seen.csv")
    assert "promises too much" not in run(f"--points={seen}", "--bootstrap=0")[2]


def test_a_dry_run_reads_and_stops(tmp_path, monkeypatch):
    monkeypatch.setattr("t5x_style.commands.studies.fit.fit_parametric_law", None)
    points = write_points(tmp_path / "points.csv", sizes=(1e8, 2e8, 3e8))
    output = tmp_path / "own.json"
    status, result, text = run(f"--points={points}", f"--output={output}", "--dry_run")
    assert status == 0
    assert result["points"] == 9
    assert "9 points: N 100M to 300M" in text
    assert "warning: N goes from" in text
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "are both missing"),
        (("--points=POINTS", "--runs=x"), "are both given"),
        (("--points=POINTS", "--loss=loss"), "--loss=loss is for --runs"),
        (("--runs=nosuch", "--columns={'loss': 'x'}"), "--columns is for --points"),
        (("--runs=nosuch",), "no run directory nosuch"),
        (("--points=POINTS", "--name=hoffmann"), "--name = 'hoffmann' is a law that ships"),
        (("--points=POINTS", "--bootstrap=-1"), "fit.bootstrap = -1 must be 0 or more"),
        (("--points=POINTS", "--drop_highest=12"), "--drop_highest=12"),
        (("--points=POINTS", "--drop_highest=8"), "too few points, 4: five coefficients"),
        (("--points=POINTS", "--columns={'params': 'N'}"), "no column 'N' for params"),
        (("--point=POINTS",), "did you mean --points"),
        (("--points=gs://b/points.csv",), "--points = 'gs://b/points.csv': gs:// is not a file"),
        (
            ("--points=POINTS", "--output=gs://b/law"),
            "--output = 'gs://b/law': gs:// is",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused(tmp_path, arguments, message):
    points = write_points(tmp_path / "points.csv")
    status, result, text = run(*(part.replace("POINTS", points) for part in arguments))
    assert status == 2
    assert result is None
    assert message in text.splitlines()[-1]
