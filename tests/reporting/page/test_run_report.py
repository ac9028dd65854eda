import html.parser
import re

import pytest

from t5x_style.accounting import SourceAccount
from t5x_style.accounting.laws import ParametricLaw
from t5x_style.errors import UsageError
from t5x_style.reporting import PlannedSource, RunWriter, read_run, write_report
from tests.plans import made_up_plan, write_plan


class Page(html.parser.HTMLParser):
    """Checks that tags close in order; keeps ids, references, text and captions."""

    VOID = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.references, self.text, self.captions = [], [], [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href", "src"):
                self.references.append(value)
            self.references += [
                f"#{target}" for target in re.findall(r"url\(#(.*?)\)", value or "")
            ]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "figcaption":
            self.captions.append(data)


def page_of(model_dirs, output):
    assert write_report(model_dirs, output) == output
    return Page(output.read_text(encoding="utf-8"))


def assert_needs_no_other_file(page):
    """Every reference is to something on the page itself."""
    assert len(page.ids) == len(set(page.ids))
    assert page.references
    for reference in page.references:
        assert reference.startswith("#")
        assert reference[1:] in page.ids


def test_the_page_of_one_run(made_up_run, tmp_path):
    model_dir = made_up_run(tmp_path / "quickstart")
    page = page_of([model_dir], model_dir / "report.html")
    assert_needs_no_other_file(page)
    assert page.captions == [
        "Training loss",
        "Held-out text",
        "Share in the tokens so far",
        "Learning rate",
        "Speed",
        "Utilisation of the chips",
        "Compute efficiency so far",
        "Where the time went",
    ]
    for text in (
        "besiroglu: compute efficiency",
        "tokens per parameter",
        "6 x parameters",
        "legal",
    ):
        assert text in page.text
    # The configuration as it is, markup and all.
    assert "train.name = '<a & b>'" in page.text
    assert "finished" in page.text
    assert (model_dir / "report.html").stat().st_size < 600_000


def test_a_page_that_compares_runs(made_up_run, tmp_path):
    runs = [
        made_up_run(tmp_path / "narrow", peak=1e-3),
        made_up_run(tmp_path / "wide", peak=6e-3, mfu=None),
    ]
    page = page_of(runs, tmp_path / "pages" / "comparison.html")
    assert_needs_no_other_file(page)
    for caption in (
        "Training loss: blend",
        "Held-out text: legal",
        "Held-out text: general",
        "Where the time went: narrow",
        "Where the time went: wide",
    ):
        assert caption in page.captions
    assert "2 runs" in page.text


def test_runs_with_the_same_name_have_their_paths(made_up_run, tmp_path):
    runs = [made_up_run(tmp_path / place / "run", steps=100) for place in ("a", "b")]
    page = page_of(runs, tmp_path / "page.html")
    for run in runs:
        assert str(run) in page.text


def test_a_killed_run_on_a_cpu_has_a_page(tmp_path):
    with RunWriter(tmp_path, resume_step=None) as writer:
        writer.event("started", step=0, tokens=0)
        writer.metrics({"step": 1, "tokens": 16, "loss": None, "mfu_full": None})
    page = page_of([tmp_path], tmp_path / "report.html")
    assert page.captions == []
    assert "started" in page.text


def test_a_report_needs_a_training_line(tmp_path):
    with pytest.raises(UsageError, match="needs a run"):
        write_report([], tmp_path / "page.html")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UsageError, match="no training line yet"):
        write_report([tmp_path], tmp_path / "page.html")
    with pytest.raises(UsageError, match=r"output = 'gs://bucket/page\.html': gs:// is not"):
        write_report([tmp_path], "gs://bucket/page.html")


def test_a_run_that_stopped_early_with_the_users_own_law(made_up_run, tmp_path):
    model_dir = made_up_run(tmp_path / "run", steps=100)
    law = ParametricLaw("mine", 1.5, 40.0, 60.0, 0.3, 0.3, "made up", (1e12, 1e15))
    write_plan(model_dir, made_up_plan({"legal": 1.0}, own_law=law))
    last = read_run(model_dir).training[-1]
    tokens, parameters = last["tokens"], last["tokens"] / last["tokens_per_param"]
    with RunWriter(model_dir, resume_step=100) as writer:
        own = {
            "optimal_params": 1e5,
            "optimal_tokens": 1e6,
            "expected_loss": law.loss(parameters, tokens),
            "compute_efficiency": 0.5,
        }
        writer.metrics(
            {
                **last,
                "remaining_tokens": tokens,
                **{f"chinchilla/mine/{key}": value for key, value in own.items()},
            }
        )
        writer.event("finished", step=100, tokens=tokens, reason="early stopping at 50.0% of it")
    page = page_of([model_dir], tmp_path / "page.html")
    assert "early stopping at 50.0% of it" in page.text
    assert "mine: compute efficiency 50.0%" in page.text
    assert f"the {own['expected_loss']:.4f} that mine expects" in page.text


def test_the_plan_and_the_progress_of_each_source(made_up_run, tmp_path):
    model_dir = made_up_run(tmp_path / "small")
    sources = {
        name: PlannedSource(
            SourceAccount(4_000_000, tokens, first, epochs=0.1, effective_tokens=400_000.0),
            first_share=first,
            last_share=last,
            store=name,
            validation_store=None,
        )
        for name, tokens, first, last in (
            ("legal", 400_128, 0.51, 0.9),
            ("general", 419_072, 0.49, 0.1),
        )
    }
    derived = made_up_plan({}, sources=sources)
    write_plan(model_dir, derived)
    with RunWriter(model_dir, resume_step=400) as writer:
        written = derived.to_json()["sources"]
        writer.event("finished", step=400, tokens=819_200, sources=written)
    page = page_of([model_dir], tmp_path / "report.html")
    assert re.search(
        r"legal\s*51\.00% to 90\.00%\s*51\.00%\s*400,128\s*417,792\s*4,000,000\s*0\.10\s*0\.10"
        r"\s*400,000",
        page.text,
    )
    # The table has it; the line of the event does not repeat it.
    assert "sources {" not in page.text
