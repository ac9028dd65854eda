"""The page of a run whose held-out text was replaced between two starts."""

import dataclasses

from t5x_style.reporting import read_run, write_report
from t5x_style.reporting.page import run_report
from t5x_style.reporting.run.held_out_text import HeldOutStore, HeldOutText
from tests.plans import write_plan


def test_replaced_text_is_told_and_marked_in_the_charts_of_held_out_text(
    made_up_run, tmp_path, monkeypatch
):
    model_dir = made_up_run(tmp_path / "run")
    held_out = [
        HeldOutText(step, tokens, {"general": HeldOutStore("x", "f", digest)})
        for step, tokens, digest in ((-1, 0, "a"), (200, 409_600, "b"))
    ]
    write_plan(model_dir, dataclasses.replace(read_run(model_dir).derived, held_out=held_out))
    breaks = {}

    def lines(name, series, **options):
        breaks[name] = list(options["breaks"])
        return "<svg></svg>"

    monkeypatch.setattr(run_report, "lines_svg", lines)
    page = write_report([model_dir], tmp_path / "page.html").read_text()
    assert "the held-out text of &#x27;general&#x27; was replaced at step 200" in page
    assert breaks.pop("bits_per_byte0") == [409_600]
    assert set(map(tuple, breaks.values())) == {()}


def test_runs_with_other_held_out_text_are_told_apart(made_up_run, tmp_path, monkeypatch):
    monkeypatch.setattr(run_report, "lines_svg", lambda name, series, **options: "<svg></svg>")
    runs = []
    for name, digests in {
        "a": {"legal": "x", "general": "y"},
        "b": {"legal": "x", "general": "z"},
        "c": {"legal": None, "general": "y"},
    }.items():
        runs.append(made_up_run(tmp_path / name))
        stores = {key: HeldOutStore("s", "f", value) for key, value in digests.items()}
        derived = dataclasses.replace(
            read_run(runs[-1]).derived, held_out=[HeldOutText(-1, 0, stores)]
        )
        write_plan(runs[-1], derived)
    page = write_report(runs, tmp_path / "page.html").read_text()
    told = "The held-out text of &#x27;general&#x27; is not the same in a, c and in b"
    assert told in page
    assert "text of &#x27;legal" not in page
    assert told not in write_report([runs[0], runs[2]], tmp_path / "two.html").read_text()
