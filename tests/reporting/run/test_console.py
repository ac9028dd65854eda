import io

import pytest

from t5x_style.reporting import Progress, warn
from t5x_style.reporting.run import console as progress

LINE = {
    "step": 120,
    "tokens": 1_966_080,
    "loss": 5.12345,
    "share/legal": 0.5101,
    "share/general": 0.4899,
    "tokens_per_second": 81_920.0,
    "mfu_full": None,
    "mfu_causal": None,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    moved = Clock()
    monkeypatch.setattr(progress, "time", moved)
    return moved


def test_a_line_in_a_log():
    stream = io.StringIO()
    Progress(19_660_800, stream).show(LINE)
    assert stream.getvalue() == (
        "step 120 | 1.97M of 19.7M tokens (10.0%) | loss 5.1235 | legal 51.01% general 48.99% | "
        "81.9K tokens/s | 3 min 36 s left\n"
    )


def test_mfu_comes_with_its_convention():
    stream = io.StringIO()
    Progress(19_660_800, stream).show({**LINE, "mfu_full": 0.412, "mfu_causal": 0.371})
    assert "MFU full 41.2% | MFU causal 37.1%" in stream.getvalue()


def test_the_time_left_includes_evaluations(clock):
    stream = io.StringIO()
    show = Progress(1_000, stream).show
    show({**LINE, "tokens": 100, "tokens_per_second": 50.0})
    clock.now = 10.0
    # 100 tokens in 10 seconds by the clock, whatever the speed within the steps.
    show({**LINE, "tokens": 200, "tokens_per_second": 50.0})
    first, second = stream.getvalue().splitlines()
    assert first.endswith("18 s left")
    assert second.endswith("1 min 20 s left")


def test_a_terminal_gets_one_line_that_is_overwritten(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    shown = Progress(19_660_800, stream)
    shown.show(LINE)
    shown.show(LINE)
    shown.note("saved at step 120")
    shown.close()
    lines = stream.getvalue().split("\n")
    assert len(lines) == 3
    assert lines[1] == "saved at step 120"
    drawn = lines[0].split("\r")[1:]
    assert len(drawn) == 2
    assert [len(text.removesuffix("\x1b[K")) for text in drawn] == [59, 59]


class Pipe(io.StringIO):
    """Its reader sees what was flushed."""

    seen = ""

    def flush(self):
        self.seen = self.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_whoever_reads_along_sees_each_line_at_once(terminal):
    stream = Pipe()
    stream.isatty = lambda: terminal
    shown = Progress(19_660_800, stream)
    shown.show(LINE)
    assert "step 120" in stream.seen
    shown.note("evaluated")
    assert stream.seen.endswith("\nevaluated\n")
    shown.show(LINE)
    shown.close()
    assert stream.seen.endswith("\n") or not terminal
    ended = stream.seen
    shown.close()
    assert stream.getvalue() == ended


def test_no_speed_and_no_tokens_left(clock):
    stream = io.StringIO()
    show = Progress(1_000, stream).show
    show({"step": 1, "tokens": 100, "loss": 2.0})
    show({"step": 1, "tokens": 100, "loss": 2.0, "tokens_per_second": 9.0})
    clock.now = 10.0
    show({"step": 12, "tokens": 1_200, "loss": 2.0})
    assert stream.getvalue().splitlines() == [
        "step 1 | 100 of 1.00K tokens (10.0%) | loss 2.0000",
        "step 1 | 100 of 1.00K tokens (10.0%) | loss 2.0000 | 9 tokens/s | 1 min 40 s left",
        "step 12 | 1.20K of 1.00K tokens (120.0%) | loss 2.0000 | 0 s left",
    ]


def test_a_loss_of_several_steps_says_which():
    stream = io.StringIO()
    Progress(19_660_800, stream).show({**LINE, "step": 1_120, "loss_steps": 130})
    assert "| loss 5.1235, mean of steps 991-1,120 | legal" in stream.getvalue()
    stream = io.StringIO()
    Progress(19_660_800, stream).show({**LINE, "loss_steps": 1})
    assert "| loss 5.1235 | legal" in stream.getvalue()


def test_a_loss_that_is_no_number():
    stream = io.StringIO()
    Progress(19_660_800, stream).show({**LINE, "loss": None})
    assert "loss not finite" in stream.getvalue()


AUDITED = {
    **LINE,
    "tokens_per_param": 4.9,
    "remaining_tokens": 17_694_720,
    "chinchilla/besiroglu/compute_efficiency": 0.72,
    "chinchilla/besiroglu/remaining_gain": 0.01134,
    "chinchilla/mine/expected_loss": 5.2,
    "chinchilla/mine/compute_efficiency": 0.81,
    "chinchilla/mine/remaining_gain": 0.2,
}


def test_the_audit_and_the_gain_of_the_remaining_tokens():
    stream = io.StringIO()
    Progress(19_660_800, stream).show(AUDITED)
    assert (
        "| 4.9 tokens per parameter, efficiency 72%, "
        "0.0113 nats to gain in the remaining 90.0% (besiroglu) |"
    ) in stream.getvalue()
    assert "loss 5.1235 |" in stream.getvalue()


def test_at_the_end_no_gain_remains():
    stream = io.StringIO()
    Progress(19_660_800, stream).show({**AUDITED, "tokens": 19_660_800, "remaining_tokens": 0})
    assert "| 4.9 tokens per parameter, efficiency 72% (besiroglu) |" in stream.getvalue()


def test_the_users_own_law_replaces_the_published_one():
    stream = io.StringIO()
    Progress(19_660_800, stream, own_law="mine").show(AUDITED)
    assert "| loss 5.1235 (mine expects 5.2000) |" in stream.getvalue()
    assert "efficiency 81%, 0.2 nats to gain in the remaining 90.0% (mine)" in stream.getvalue()
    assert "besiroglu" not in stream.getvalue()


def test_a_console_on_a_full_disk_stops_no_run():
    """Standard output is often a file beside the run. The kernel refuses each write to this one."""
    full = open("/dev/full", "w")  # noqa: SIM115
    progress = Progress(19_660_800, full)
    progress.show(LINE)
    progress.note("evaluated")
    progress.close()
    # What is still buffered fails here at last.
    with pytest.raises(OSError, match="No space left"):
        full.close()


def test_a_warning_that_cannot_be_printed_stops_no_run(monkeypatch):
    full = open("/dev/full", "w")  # noqa: SIM115
    monkeypatch.setattr("sys.stderr", full)
    warn("the disk is full")
    with pytest.raises(OSError, match="No space left"):
        full.close()
