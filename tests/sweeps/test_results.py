"""What a trial came to, from files written by hand."""

import json

from t5x_style.sweeps import TrialEntry, results_table, trial_result

LINES = [
    {"step": 1, "tokens": 8, "loss": 3.0, "chinchilla/besiroglu/compute_efficiency": 0.1},
    {"step": 1, "tokens": 8, "eval/legal/loss": 3.1, "eval/legal/bits_per_byte": 2.0},
    {
        "step": 2,
        "tokens": 16,
        "loss": 2.5,
        "loss_steps": 1,
        "chinchilla/besiroglu/compute_efficiency": 0.2,
    },
    {
        "step": 2,
        "tokens": 16,
        "eval/legal/loss": 2.6,
        "eval/legal/bits_per_byte": 1.5,
        "eval/legal/perplexity": 13.5,
        "eval/general/loss": 2.8,
        "eval/general/bits_per_byte": 1.7,
    },
]
EXPECTED = {
    "tokens": 16,
    "train_loss": 2.5,
    "train_loss_steps": 1,
    "compute_efficiency": 0.2,
    "legal/loss": 2.6,
    "legal/bits_per_byte": 1.5,
    "general/loss": 2.8,
    "general/bits_per_byte": 1.7,
}


def test_the_last_lines_count(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"time": 0.0, **line}) + "\n" for line in LINES)
    )
    assert trial_result(tmp_path) == EXPECTED


def test_tokens_are_those_learnt_from(tmp_path):
    lines = [LINES[0], {**LINES[2], "skipped/legal": 5, "skipped/general": 1}]
    lines = [{"time": 0.0, **line} for line in lines]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert trial_result(tmp_path)["tokens"] == 10


def test_a_trial_that_left_nothing(tmp_path):
    assert trial_result(tmp_path / "absent") == {}
    (tmp_path / "metrics.jsonl").write_text("")
    assert trial_result(tmp_path) == {}


def test_a_row_per_trial_and_a_dash_for_what_is_not_there():
    rows = results_table(
        [
            TrialEntry("a", {"X": 1, "Y": [1]}, "finished", result=EXPECTED),
            TrialEntry("b", {"X": 2, "Y": None}, "failed"),
        ]
    ).splitlines()
    assert rows[0].split()[:5] == ["X", "Y", "status", "tokens", "train_loss"]
    assert rows[2].split()[:5] == ["1", "[1]", "finished", "16", "2.5"]
    assert rows[3].split()[:5] == ["2", "None", "failed", "-", "-"]
