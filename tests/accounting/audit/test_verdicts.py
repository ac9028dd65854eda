import dataclasses

from t5x_style.accounting import (
    Architecture,
    Auditor,
    Topology,
    audit,
    bloomberggpt,
    verdict_of_line,
)
from t5x_style.accounting.audit import verdicts
from t5x_style.accounting.laws import ParametricLaw

SMALL = Architecture(4096, 4, 128, 344, 4)


def verdict(arch, sequence_length, tokens, *, remat="none", seconds=None, loss=None):
    """The verdict on a run that was audited by the published laws."""
    line = {
        "tokens": tokens,
        "loss": loss,
        **audit(arch, sequence_length, tokens, Topology(remat=remat)),
    }
    line |= {f"seconds/{cause}": value for cause, value in (seconds or {}).items()}
    return verdict_of_line(line)


# 6 N D of SMALL on ten million tokens is 8e13.
OWN = ParametricLaw("mine", 1.5, 40.0, 60.0, 0.3, 0.3, "made up", (1e12, 1e15))


def test_the_verdict_on_bloomberggpt():
    lines = verdict(bloomberggpt.ARCHITECTURE, 2048, 568_747_622_400, remat="full")
    text = "\n".join(lines)
    assert "50.6B parameters on 569B tokens: 11.2 tokens per parameter" in text
    assert lines[1] == (
        "FLOPs: 1.73e23 by 6ND, 1.80e23 with full attention, 1.76e23 with causal attention, "
        "2.20e23 executed"
    )
    (besiroglu,) = [line for line in lines if line.startswith("besiroglu")]
    assert "97.6%" in besiroglu
    assert "38.9B parameters on 738B tokens" in besiroglu
    assert "2.0121 instead of 2.0130" in besiroglu
    (approach_1,) = [line for line in lines if line.startswith("approach_1")]
    assert "efficiency" not in approach_1
    assert "extrapolate" in text


def test_within_the_fitted_range_there_is_no_note_on_extrapolation():
    # 6 N D = 1e20 or so: among Chinchilla's own runs.
    arch = Architecture(32000, 24, 2048, 5504, 16)
    assert "extrapolate" not in "\n".join(verdict(arch, 2048, 14_000_000_000))


def test_seconds_and_loss_are_in_the_verdict_where_they_are_known():
    arch = Architecture(4096, 4, 128, 344, 4)
    lines = verdict(
        arch, 128, 10_000_000, seconds={"step": 90.0, "save": 10.0, "lost": 0.0}, loss=3
    )
    assert "1 min 40 s in all: step 90.0%, save 10.0%" in lines
    (measured,) = [line for line in lines if line.startswith("training loss")]
    assert measured.startswith("training loss 3.0000 nats per token; expected: ")
    assert "by hoffmann" in measured
    assert "Chinchilla's text and vocabulary" in measured
    assert "--own_law" in measured
    assert not any("in all" in line for line in verdict(arch, 128, 10_000_000))


def test_a_loss_of_several_steps_says_which():
    line = {"tokens": 10_000_000, "step": 100, "loss": 3.0, "loss_steps": 10}
    for law in (None, OWN):
        lines = verdict_of_line(line | Auditor(SMALL, 128, own_law=law).line_at(10_000_000), law)
        (measured,) = [text for text in lines if text.startswith("training loss")]
        assert measured.startswith("training loss 3.0000 nats per token (mean of steps 91-100)")


def test_a_run_without_a_token_has_no_verdict():
    assert verdict(Architecture(4096, 4, 128, 344, 4), 128, 0) == [
        "no tokens yet: nothing to audit"
    ]


def test_the_line_alone_gives_the_verdict_of_the_record():
    record = Auditor(SMALL, 128).audit_at(10_000_000)
    line = {"tokens": 10_000_000, "seconds/step": 5.0, "loss": 3.0, **record.line()}
    assert verdict_of_line(line) == verdicts.verdict(record, loss=3.0, seconds={"step": 5.0})


def test_a_law_of_ones_own_comes_first_and_the_loss_is_compared_with_it():
    line = {"tokens": 10_000_000, "loss": 3.0}
    line |= Auditor(SMALL, 128, own_law=OWN).line_at(10_000_000)
    lines = verdict_of_line(line, OWN)
    assert lines[2].startswith("mine: compute efficiency ")
    expected = OWN.loss(line["tokens"] / line["tokens_per_param"], 10_000_000)
    (measured,) = [text for text in lines if text.startswith("training loss")]
    assert measured == (
        f"training loss 3.0000 nats per token, {abs(3 - expected):.4f} "
        f"{'above' if expected < 3 else 'below'} the {expected:.4f} that mine expects"
    )
    # It was fitted on such runs; the others were not.
    (note,) = [text for text in lines if text.startswith("note:")]
    assert note.startswith("note: approach_1, approach_2, hoffmann and besiroglu were fitted on")


def test_a_law_of_ones_own_extrapolates_too_unless_nobody_knows():
    line = {"tokens": 10_000_000} | Auditor(SMALL, 128, own_law=OWN).line_at(10_000_000)
    small = dataclasses.replace(OWN, fitted_flops=(1e9, 1e10))
    note = "mine was fitted on 1.00e09 to 1.00e10 FLOPs; at 7.90e13 it extrapolates"
    assert note in "\n".join(verdict_of_line(line, small))
    unknown = dataclasses.replace(OWN, fitted_flops=None)
    assert "mine was fitted" not in "\n".join(verdict_of_line(line, unknown))


def test_a_line_from_before_the_law_was_there():
    line = {"tokens": 10_000_000, "loss": 3.0, **audit(SMALL, 128, 10_000_000)}
    assert verdict_of_line(line, OWN) == verdict_of_line(line)


def test_what_the_rest_of_bloomberggpts_tokens_would_have_bought():
    tokens, planned = 568_747_622_400, 708_900_000_000
    auditor = Auditor(bloomberggpt.ARCHITECTURE, 2048, planned_tokens=planned)
    (rest,) = [
        text
        for text in verdict_of_line({"tokens": tokens, **auditor.line_at(tokens)})
        if "remaining" in text
    ]
    assert rest == (
        "at 80.2% of the planned 709B tokens; the remaining 19.8% would buy, in nats per token, "
        "0.0112 by hoffmann, 0.00809 by besiroglu"
    )
    done = verdict_of_line({"tokens": planned, **auditor.line_at(planned)})
    assert not any("remaining" in text for text in done)


def test_repeated_tokens_are_counted_as_effective_ones():
    tokens = 568_747_622_400
    line = {"tokens": tokens, **audit(bloomberggpt.ARCHITECTURE, 2048, tokens)}
    assert "effective" not in verdict_of_line(line)[0]
    assert "effective" not in verdict_of_line({**line, "effective_tokens": tokens})[0]
    first = verdict_of_line({**line, "effective_tokens": 400e9})[0]
    assert "on 569B tokens (400B effective): 11.2 tokens per parameter" in first


def test_a_thousandth_of_repetition_is_none():
    tokens = 1_000_000_000
    line = {"tokens": tokens, **audit(SMALL, 128, tokens)}
    assert "effective" in verdict_of_line({**line, "effective_tokens": 0.999 * tokens})[0]
    assert "effective" not in verdict_of_line({**line, "effective_tokens": 0.9991 * tokens})[0]


def test_the_ends_of_a_range_are_fitted():
    line = {"tokens": 10_000_000} | Auditor(SMALL, 128, own_law=OWN).line_at(10_000_000)
    spent = line["model_flops_6nd"]
    for fitted in ((spent, 2 * spent), (spent / 2, spent)):
        law = dataclasses.replace(OWN, fitted_flops=fitted)
        assert "mine was fitted" not in "\n".join(verdict_of_line(line, law))


def test_a_loss_is_above_or_below_that_of_ones_own_law():
    line = {"tokens": 10_000_000} | Auditor(SMALL, 128, own_law=OWN).line_at(10_000_000)
    expected = line["chinchilla/mine/expected_loss"]
    for loss, text in (
        (expected + 0.25, "0.2500 above the"),
        (expected, "0.0000 above the"),
        (expected - 0.25, "0.2500 below the"),
    ):
        assert text in "\n".join(verdict_of_line({**line, "loss": loss}, OWN))
