import contextlib
import io
import json

import pytest

from t5x_style.commands.main import main
from t5x_style.reporting import RunWriter


def run(*arguments: str) -> tuple[int, dict, str]:
    """Exit status, what --json prints, and what people read."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["report", *arguments, "--json"])
    return status, json.loads(out.getvalue() or "null"), err.getvalue()


@pytest.fixture
def model_dir(tmp_path):
    for name in ("quickstart", "other"):
        with RunWriter(tmp_path / name, resume_step=None) as writer:
            for step in range(1, 4):
                writer.metrics({"step": step, "tokens": 16 * step, "loss": 1 / step})
    return tmp_path / "quickstart"


def test_one_run_has_its_page_beside_it(model_dir):
    status, result, _ = run(f"--model_dirs={model_dir}")
    assert status == 0
    assert result == {"output": str(model_dir / "report.html")}
    assert "quickstart" in (model_dir / "report.html").read_text()


def test_several_runs_need_a_place_for_their_page(model_dir, tmp_path):
    both = f"--model_dirs={model_dir},{tmp_path / 'other'}"
    status, _, text = run(both)
    assert status == 2
    assert "--output is missing" in text
    status, _, _ = run(both, f"--output={tmp_path / 'page.html'}")
    assert status == 0
    assert "2 runs" in (tmp_path / "page.html").read_text()


def test_a_dry_run_writes_nothing(model_dir):
    status, _, text = run(f"--model_dirs={model_dir}", "--dry_run")
    assert status == 0
    assert "3 training lines" in text
    assert not (model_dir / "report.html").exists()


def test_wrong_directories_are_refused(model_dir):
    status, _, text = run()
    assert status == 2
    assert "--model_dirs is missing" in text
    status, _, text = run(f"--model_dirs={model_dir}x")
    assert status == 2
    assert "did you mean 'quickstart'" in text
    for flags in (
        (f"--model_dirs=gs://b/{model_dir.name}",),
        (f"--model_dirs={model_dir}", "--output=gs://b/p"),
    ):
        status, _, text = run(*flags)
        assert status == 2
        assert "gs:// is not a file system that can be read or written" in text


def test_what_of_a_run_cannot_be_read_or_is_missing_is_on_its_page(model_dir):
    whole = (model_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    last = whole[2].replace('"step": 3', '"step": 30, "loss_steps": 10')
    (model_dir / "metrics.jsonl").write_text("".join([whole[0], "<b>garbage\n", whole[1], last]))
    for dry in ((), ("--dry_run",)):
        status, _, text = run(f"--model_dirs={model_dir}", *dry)
        assert status == 0
        said = text if dry else (model_dir / "report.html").read_text()
        assert "metrics.jsonl: line 2 cannot be read" in said
        assert "metrics.jsonl: the lines about steps 3 to 20 are missing" in said


def test_a_run_whose_lines_are_gone_is_a_run(model_dir):
    (model_dir / "plan.json").write_text("{}")
    (model_dir / "metrics.jsonl").unlink()
    status, _, text = run(f"--model_dirs={model_dir}")
    assert status == 2
    assert "quickstart is a run whose metrics.jsonl is missing" in text
