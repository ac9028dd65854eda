import html.parser
import json
import re

import pytest

from t5x_style.accounting import SourceAccount
from t5x_style.accounting.laws import ParametricLaw
from t5x_style.errors import UsageError
from t5x_style.quantities import count
from t5x_style.reporting import PlannedSource, RunWriter, read_run, write_report
from t5x_style.reporting.html import captioned, html_table
from t5x_style.reporting.html import page as html_page
from t5x_style.reporting.page import run_report
from tests.disk import Disk
from tests.plans import made_up_plan, write_plan


class Page(html.parser.HTMLParser):
    """Checks that tags close in order; keeps ids, references, text and captions."""

    VOID = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.references, self.text, self.captions = [], [], [], "", []
        self.tags, self.labels, self.rows = set(), [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "aria-label":
                self.labels.append(value)
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
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
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


def test_signs_of_divergence_have_a_chart_each_and_the_noise_a_sentence(made_up_run, tmp_path):
    model_dir = made_up_run(tmp_path / "run", steps=100)
    file = model_dir / "metrics.jsonl"
    more = {
        "monitor/largest_logit": 31.0,
        "monitor/update_ratio": 1e-3,
        "noise/signal": 2.0,
        "noise/variance": 9000.0,
    }
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [line | more if "loss" in line else line for line in lines]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of([model_dir], tmp_path / "page.html")
    signs = [caption for caption in page.captions if "divergence" in caption]
    assert signs == [
        "Signs of a slow divergence: largest_logit",
        "Signs of a slow divergence: update_ratio",
    ]
    phase = read_run(model_dir).derived.horizon.phases[-1]
    batch = count(phase.sequences * phase.sequence_length)
    assert f"Gradient noise scale: {count(4500)} tokens; a batch has {batch}" in page.text


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


def test_a_figure_is_labelled_once_though_one_is_inside():
    text = captioned("Loss & rate", '<svg a="1"><svg b="2"></svg></svg>')
    inside = '<svg role="img" aria-label="Loss &amp; rate" a="1"><svg b="2"></svg></svg>'
    assert text == f"<figure><figcaption>Loss &amp; rate</figcaption>\n{inside}</figure>"


def test_the_plan_and_the_progress_of_each_source(made_up_run, tmp_path):
    model_dir = made_up_run(tmp_path / "small")
    sources = {
        name: PlannedSource(
            SourceAccount(4_000_000, tokens, first, epochs=0.1, effective_tokens=400_000.0),
            first_share=first,
            last_share=last,
            store=name,
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


def write_run(model_dir, **last):
    """Two lines, an evaluation and two events, of numbers that are easy to recognise."""
    with RunWriter(model_dir, resume_step=None) as writer:
        writer.event("started", step=0, tokens=0, devices=8, sources={"legal": 1})
        line = {"loss/legal": 3.25, "share/legal": 0.75, "tokens/legal": 750, "epochs/legal": 0.5}
        writer.metrics({"step": 1_000, "tokens": 1_000, "loss": 3.5, **line})
        writer.metrics({"step": 1_000, "tokens": 1_000, "eval/legal/bits_per_byte": 1.25})
        writer.metrics(
            {"step": 2_000, "tokens": 2_000, "loss": 3.0, "tokens_per_param": 4.0}
            | {"tokens_per_second": 50.0, "learning_rate": 1e-3, "mfu_full": 0.25, "hfu": 0.5}
            | {"model_flops_6nd": 6e9, "hardware_flops": 8e9, **line, **last}
        )
        seconds = {"step": 90.0, "compile": 30.0, "lost": 0.0}
        writer.event("finished", step=2_000, tokens=2_000, seconds=seconds)
    return model_dir


@pytest.fixture
def charts(monkeypatch):
    """The charts of the page, in place of which nothing is drawn."""
    found = []

    def lines(name, series, *, x_label, y_label, format_y, marker, breaks):
        assert list(breaks) == []
        tick = None if format_y is None else format_y(0.5)
        found.append((name, dict(series), x_label, y_label, tick, marker))
        return "<svg></svg>"

    def bars(name, values, labels):
        found.append((name, dict(values), dict(labels)))
        return "<svg></svg>"

    monkeypatch.setattr(run_report, "lines_svg", lines)
    monkeypatch.setattr(run_report, "bars_svg", bars)
    return found


def test_each_chart_shows_its_measure(charts, tmp_path):
    audit = {"compute_efficiency": 0.75, "optimal_params": 400, "optimal_tokens": 2_500}
    audit = {f"chinchilla/hoffmann/{key}": value for key, value in audit.items()}
    page = page_of([write_run(tmp_path / "run", **audit)], tmp_path / "page.html")
    both, end = [1_000, 2_000], [2_000]
    assert charts == [
        (
            "loss0",
            {"blend": (both, [3.5, 3.0]), "legal": (both, [3.25] * 2)},
            "tokens",
            "nats per token",
            None,
            None,
        ),
        ("bits_per_byte0", {"legal": ([1_000], [1.25])}, "tokens", "bits per byte", None, "o"),
        ("share0", {"legal": (both, [0.75] * 2)}, "tokens", "share", "50.00%", None),
        ("learning_rate0", {"learning_rate": (end, [1e-3])}, "tokens", "learning rate", None, None),
        (
            "speed0",
            {"tokens_per_second": (end, [50.0])},
            "tokens",
            "tokens per second",
            "0.5",
            None,
        ),
        (
            "utilisation0",
            {"mfu_full": (end, [0.25]), "hfu": (end, [0.5])},
            "tokens",
            "share of the dense bfloat16 peak",
            "50.0%",
            None,
        ),
        ("efficiency0", {"hoffmann": (end, [0.75])}, "tokens", "C' / C", "50%", None),
        (
            "seconds0",
            {"step": 90.0, "compile": 30.0},
            {"step": "1 min 30 s (75.0%)", "compile": "30 s (25.0%)"},
        ),
    ]
    assert page.captions[-1] == "Where the time went"


def test_a_metric_of_ones_own_has_a_chart_with_its_name(charts, tmp_path):
    model_dir = write_run(tmp_path / "run")
    with RunWriter(model_dir, resume_step=2_000) as writer:
        writer.metrics({"step": 2_000, "tokens": 2_000, "eval/legal/worst_row": 9.0})
    page = page_of([model_dir], tmp_path / "page.html")
    assert charts[-2] == (
        "metric0_0",
        {"legal": ([2_000], [9.0])},
        "tokens",
        "worst_row",
        None,
        "o",
    )
    assert "Held-out text, worst_row" in page.captions


def test_runs_that_are_compared_keep_their_colour_in_every_chart(charts, tmp_path):
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two", tokens_per_second=None)]
    page = page_of(runs, tmp_path / "page.html")
    both, none = [1_000, 2_000], ([], [])
    drawn = {name: series for name, series, *_ in charts}
    assert drawn["loss0"] == {"one": (both, [3.5, 3.0]), "two": (both, [3.5, 3.0])}
    assert drawn["loss1"] == {"one": (both, [3.25] * 2), "two": (both, [3.25] * 2)}
    assert drawn["speed0"] == {"one": ([2_000], [50.0]), "two": none}
    assert drawn["seconds1"] == {"step": 90.0, "compile": 30.0}
    assert {"Training loss: blend", "Training loss: legal", "Speed", "Held-out text"} < set(
        page.captions
    )
    assert page.captions[-2:] == ["Where the time went: one", "Where the time went: two"]


def test_each_table_has_its_figures(charts, tmp_path):
    model_dir = write_run(tmp_path / "run")
    account = SourceAccount(4_000, 1_500, 0.75, epochs=0.375, effective_tokens=1_499.6)
    sources = {"legal": PlannedSource(account, 0.75, 0.75, "legal")}
    write_plan(model_dir, made_up_plan({}, sources=sources))
    rows = page_of([model_dir], tmp_path / "page.html").rows
    assert rows[:2] == [
        [
            "run",
            "steps",
            "tokens",
            "parameters",
            "training loss",
            "legal, bits per byte",
            "time",
            "state",
        ],
        ["run", "2,000", "2.00K", "500", "3.0000", "1.2500", "2 min 00 s", "finished"],
    ]
    flops = [
        row[:2]
        for row in rows
        if row[0] in ("6nd", "full", "hardware", "mfu_full", "mfu_causal", "hfu")
    ]
    assert flops == [
        ["6nd", "6.00e09"],
        ["hardware", "8.00e09"],
        ["mfu_full", "25.0%"],
        ["hfu", "50.0%"],
    ]
    assert ["hfu", "50.0%", "latest"] in rows
    source = rows.index(next(row for row in rows if row[0] == "source"))
    assert rows[source + 1] == [
        "legal",
        "75.00%",
        "75.00%",
        "1,500",
        "750",
        "4,000",
        "0.38",
        "0.50",
        "1,500",
    ]
    events = rows.index(["event", "step", "tokens", ""])
    assert rows[events + 1 : events + 3] == [
        ["started", "0", "0", "devices 8"],
        ["finished", "2,000", "2.00K", ""],
    ]
    assert ["horizon/tokens", "100"] in rows
    assert ["sources/legal/epochs", "0.375"] in rows


def test_a_training_loss_of_several_steps_says_which(charts, tmp_path):
    page = page_of([write_run(tmp_path / "run", loss_steps=10)], tmp_path / "page.html")
    assert page.rows[1][4] == "3.0000 (mean of steps 1,991-2,000)"
    # Its first line is of an older version, which logged the loss of one step.
    note = "the mean over the tokens since the point before it"
    assert note not in (tmp_path / "page.html").read_text()
    with RunWriter(tmp_path / "run", resume_step=0) as writer:
        writer.metrics({"step": 10, "tokens": 10, "loss": 3.0, "loss_steps": 10})
    page_of([tmp_path / "run"], tmp_path / "page.html")
    assert note in (tmp_path / "page.html").read_text()


NASTY = "<b>\"q\" & 'a'"


def test_no_name_of_the_user_is_markup(charts, tmp_path):
    """A run folder, a source, a metric, a reason and a law with angle brackets and quotes."""
    runs = [tmp_path / NASTY, tmp_path / f"{NASTY}2"]
    for model_dir in runs:
        write_run(model_dir, **{f"share/{NASTY}": 0.5, "remaining_tokens": 0})
        with RunWriter(model_dir, resume_step=2_000) as writer:
            writer.metrics({"step": 2_000, "tokens": 2_000, f"eval/{NASTY}/{NASTY}": 2.0})
            writer.event("finished", step=2_000, tokens=2_000, reason=NASTY)
        write_plan(model_dir, made_up_plan({NASTY: 1.0}, notices=[NASTY]))
        (model_dir / "config.gin").write_text(NASTY)
    for model_dirs in (runs[:1], runs):
        page = page_of(model_dirs, tmp_path / "page.html")
        assert "b" not in page.tags
        assert page.text.count(NASTY) > 8
        # The title of a chart is also a label for a screen reader.
        assert page.labels == page.captions
        assert any(NASTY in label for label in page.labels)
    source = (tmp_path / "page.html").read_text()
    assert "<title>2 runs</title>" in source


def test_a_page_is_on_the_disk_when_its_path_is_returned(charts, tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    assert disk.has_name(write_report([write_run(tmp_path / "run")], tmp_path / "page.html"))


def test_the_parts_of_a_page():
    table = html_table(["a", "1"], [["2 < 3", None], ["x", "-1"]])
    assert table == (
        '<div class="scroll"><table>\n<tr><th>a</th><th>1</th></tr>\n'
        '<tr><td class="number">2 &lt; 3</td><td>-</td></tr>\n'
        "<tr><td>x</td><td>-1</td></tr>\n</table></div>"
    )
    whole = html_page("a & b", ["<p>1</p>", "", "<p>2</p>"])
    assert "<title>a &amp; b</title>" in whole
    assert "<body>\n<p>1</p>\n<p>2</p>\n</body>" in whole
