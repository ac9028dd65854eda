from t5x_style.accounting import Architecture, audit, bloomberggpt, verdict, verdict_of_line


def test_the_verdict_on_bloomberggpt():
    lines = verdict(bloomberggpt.ARCHITECTURE, 2048, 568_747_622_400, remat="full")
    text = "\n".join(lines)
    assert "50.6B parameters on 569B tokens: 11.2 tokens per parameter" in text
    assert "1.73e23 by 6ND, 1.80e23 with full attention" in text
    (besiroglu,) = [line for line in lines if line.startswith("besiroglu")]
    assert "97.6%" in besiroglu
    assert "38.9B parameters on 738B tokens" in besiroglu
    assert "2.0121 instead of 2.0130" in besiroglu
    (approach_1,) = [line for line in lines if line.startswith("approach_1")]
    assert "efficiency" not in approach_1
    assert "extrapolate" in text


def test_within_the_fitted_range_nothing_is_said_of_extrapolation():
    # 6 N D = 1e20 or so: among Chinchilla's own runs.
    arch = Architecture(32000, 24, 2048, 5504, 16)
    assert "extrapolate" not in "\n".join(verdict(arch, 2048, 14_000_000_000))


def test_seconds_and_loss_are_told_where_they_are_known():
    arch = Architecture(4096, 4, 128, 344, 4)
    lines = verdict(
        arch, 128, 10_000_000, seconds={"step": 90.0, "save": 10.0, "lost": 0.0}, loss=3
    )
    assert "1 min 40 s in all: step 90.0%, save 10.0%" in lines
    assert any("training loss 3.0000" in line for line in lines)
    assert not any("in all" in line for line in verdict(arch, 128, 10_000_000))


def test_a_run_without_a_token_has_no_verdict():
    assert verdict(Architecture(4096, 4, 128, 344, 4), 128, 0) == [
        "no tokens yet: nothing to audit"
    ]


def test_the_line_alone_gives_the_same_verdict():
    arch = Architecture(4096, 4, 128, 344, 4)
    line = {"tokens": 10_000_000, "seconds/step": 5.0, "loss": 3.0, **audit(arch, 128, 10_000_000)}
    assert verdict_of_line(line) == verdict(arch, 128, 10_000_000, seconds={"step": 5.0}, loss=3.0)
