"""The order of the loop's work, and the figures of its lines, on steps that compute nothing."""

import itertools
import types

import jax
import numpy as np
import pytest

from t5x_style.accounting import Ledger, Topology
from t5x_style.accounting.audit import ledger
from t5x_style.checkpoints import Saver, saving
from t5x_style.checkpoints.checkpointer import EndedSave
from t5x_style.data import BatchPlan
from t5x_style.data.stores.token_store import StoreChanged
from t5x_style.errors import Fault, Preempted
from t5x_style.partitioning import make_mesh
from t5x_style.reporting import Progress
from t5x_style.step.monitors import MONITORS
from t5x_style.step.step import NO_LIMITS
from t5x_style.training import EarlyStopping, loop, rewind
from t5x_style.training.recovery.recovery import Recovery, Rewind
from t5x_style.training.recovery.spikes import Spikes
from tests.training.runs import make_run


class Clock:
    now = 100.0

    def perf_counter(self):
        return self.now


class Loss(float):
    """The loss of a step, still computed until something waits for it."""

    def block_until_ready(self):
        self.bench.note(f"wait {self.step}", 100)
        return self


def metrics_of(loss: float, norm: float = 1.0, param_norm: float = 1.0) -> dict:
    """The metrics that a step returns."""
    applied = bool(np.isfinite([loss, norm]).all())
    return {
        "loss": loss,
        "grad_norm": norm,
        "applied": applied,
        "learning_rate": np.float32(1),
        "param_norm": np.float32(param_norm),
        "row_nats": np.full(8, loss, np.float32),
        "seen": np.array([loss, norm, param_norm, applied], np.float32),
        **dict.fromkeys(MONITORS, np.float32(1)),
    }


# Sums of losses over two sources; a step of the bench adds its loss on one token of the first.
NO_SUMS = np.zeros((3, 2), np.float32)


def sums_of(nats: float, z_nats: float, tokens: float) -> np.ndarray:
    """The sums where the steps have read the first source alone."""
    return np.array([[nats, 0], [z_nats, 0], [tokens, 0]], np.float32)


class Bench:
    """A session that writes down what the loop does, in place of doing it."""

    verification = types.SimpleNamespace(check=lambda: [])

    def __init__(
        self, run, monkeypatch, *, step=0, resumed=True, scores=(), losses=None, param_norms=None
    ):
        self.work: list[str] = []
        self.run, self.scores, self.losses = run, iter(scores), losses or {}
        self.param_norms = param_norms or {}
        self.step, self.resumed, self.state = step, resumed, {"parameters": {}}
        self.evaluation_is_due = False
        self.steps = {(8, 16): self.compute}
        self.sums, self.no_sums, self.line_step = NO_SUMS, NO_SUMS, step
        self.recovery = Recovery(run.spikes, run.plan)
        self.limits_of = lambda step, in_flight: NO_LIMITS
        self.records, self.lines = [], []
        self.mesh, self.ledger, self.evaluations = make_mesh(run.topology), Ledger(), []
        self.writer = self.checkpointer = self
        self.clock, self.in_progress = Clock(), None
        monkeypatch.setattr(ledger, "time", self.clock)
        monkeypatch.setattr(saving, "time", self.clock)
        self.saver = Saver(self, self, self.ledger, patience_seconds=60, timeout_seconds=1e9)
        monkeypatch.setattr(loop, "_read", lambda *key: self.note(f"read {key[2] + 1}", 1))

    def note(self, item, seconds=0):
        """Write down an item of work that takes so long."""
        self.work.append(item)
        self.clock.now += seconds

    def compute(self, state, batch, sums, limits):
        done = 1 + max([self.step, *(int(item[5:]) for item in self.work if item[:4] == "step")])
        self.note(f"step {done}", 10)
        loss = Loss(self.losses.get(done, 2.0))
        loss.bench, loss.step = self, done
        metrics = metrics_of(loss, param_norm=self.param_norms.get(done, 1.0))
        learnt = sums_of(float(loss), 0.5, 1) if metrics["applied"] else NO_SUMS
        return state, metrics, sums + learnt

    def evaluator(self, parameters, leave):
        self.note("evaluate", 1_000)
        return {
            f"eval/{name}/{measure}": value
            for score in self.scores_of_now()
            for name in ("domain", "general")
            for measure, value in (("bits_per_byte", score), ("tokens", 8))
        }

    def scores_of_now(self):
        score = next(self.scores, None)
        return [] if score is None else [score]

    def metrics(self, line):
        kind = "line" if "loss" in line else "score"
        if kind == "line":
            self.lines.append(line)
        self.work.append(f"{kind} {line['step']}")

    def start_flush(self):
        self.work.append("flush")
        return dict

    def save(self, step, state, record, *, best_steps, last_facts, make_room):
        assert record["tokens"] == step * 128
        assert not make_room
        self.records.append(record["losses"])
        assert last_facts() == {"unwritten": {}}
        self.note(f"save {step}" + "".join(f", best {best}" for best in best_steps), 10_000)
        self.in_progress = step, 0

    def ended(self, *, wait_seconds=0.0):
        """A save is written during two steps, or while the loop waits for it."""
        if self.in_progress is None:
            return None
        step, looks = self.in_progress
        if not wait_seconds and looks < 1:
            self.in_progress = step, looks + 1
            return None
        self.in_progress = None
        if wait_seconds:
            self.note("wait for the disk", 100_000)
        return EndedSave(step, 7.0)

    def latest_step(self):
        return next((int(item[5:]) for item in self.work if item[:5] == "save "), None)

    def event(self, kind, *, step, tokens, **fields):
        assert tokens == step * 128
        self.work.append(f"{kind} {step}" if kind != "saved" else f"event {step}")


@pytest.fixture
def work_of(tmp_path, monkeypatch):
    """What a run of these periods does, in order; and its end or its error."""

    def end(run, writer, step, *_):
        writer.event("end", step=step, tokens=step * 128)

    monkeypatch.setattr(loop, "record_end", end)

    def work(*, leave=lambda: None, log=100, evaluate=100, save=100, bench=None, **changes):
        run = make_run(
            tmp_path, log_period=log, eval_period=evaluate, checkpoint_period=save, **changes
        )
        session = Bench(run, monkeypatch, **(bench or {}))
        try:
            end = loop.run_loop(run, session, leave)
            return session.work, end | {"lines": session.lines, "records": session.records}
        except (Fault, Preempted, Rewind) as error:
            return session.work, error

    return work


def test_a_step_is_dispatched_before_the_line_of_the_one_before_it(work_of):
    work, end = work_of(steps=6, log=2)
    assert work == [
        "read 1", "step 1", "read 2",
        "step 2", "read 3",
        # The line of step 2 is written while step 3 computes. It says what was not learnt up to
        # its step, so every step up to it is looked at before.
        "step 3", "read 4", "wait 1", "wait 2", "line 2",
        "step 4", "read 5",
        "step 5", "read 6", "wait 3", "wait 4", "line 4",
        "step 6",
        # The end has a line, an evaluation and a checkpoint.
        "wait 6", "line 6", "evaluate", "flush", "save 6", "wait for the disk", "event 6",
        "end 6",
    ]  # fmt: skip
    assert end["line"]["step"] == 6
    assert end["resumed_from"] == 0


def test_lines_are_on_disk_before_each_checkpoint_and_the_step_is_done(work_of):
    work = [item for item in work_of(steps=8, save=3, log=1)[0] if item != "evaluate"]
    saves = [place for place, item in enumerate(work) if item.startswith("save ")]
    assert [work[place] for place in saves] == ["save 3", "save 6", "save 8"]
    for place in saves:
        step = work[place][5:]
        assert work[place - 3 : place + 1] == [
            f"wait {step}", f"line {step}", "flush", f"save {step}",
        ]  # fmt: skip


def test_a_checkpoint_is_told_when_it_is_whole_and_no_step_waits_for_it(work_of):
    work = work_of(steps=6, save=2)[0]
    kept = [item for item in work if item[:4] in ("step", "save", "even") or "disk" in item]
    assert kept == [
        "step 1", "step 2", "save 2",
        "step 3", "step 4", "event 2", "save 4",
        "step 5", "step 6", "event 4", "save 6", "wait for the disk", "event 6",
    ]  # fmt: skip


def test_evaluations_come_at_their_period_and_at_the_start_and_the_end(work_of, capsys):
    bench = {"scores": [4.0, 3.0, 2.0, 1.0], "resumed": False}
    work, end = work_of(steps=5, evaluate=2, bench=bench)
    assert work[:3] == ["evaluate", "score 0", "read 1"]
    assert [item for item in work if item.startswith("score")] == [
        "score 0", "score 2", "score 4", "score 5",
    ]  # fmt: skip
    assert end["evaluation"]["eval/domain/bits_per_byte"] == 1.0
    assert end["resumed_from"] is None
    printed = capsys.readouterr().out
    assert "evaluated at step 5: bits per byte domain 1.0000, general 1.0000\n" in printed
    # A resumed run has its evaluation.
    work, _ = work_of(steps=5, bench={"step": 3})
    assert work[:3] == ["read 4", "step 4", "read 5"]


def test_a_line_has_the_losses_of_all_steps_since_the_line_before(work_of):
    """And a checkpoint those since the last line, which a run that goes on from it has in its."""
    losses = {1: 9.0, 2: 7.0, 3: 5.0, 4: 3.0, 5: 1.0, 6: 2.0}
    end = work_of(steps=6, log=3, save=2, bench={"losses": losses})[1]
    assert [
        (line["step"], line["loss_steps"], line["loss"], line["z_loss"]) for line in end["lines"]
    ] == [(3, 3, 7.0, 0.5), (6, 3, 2.0, 0.5)]
    # Of the second source no token was learnt.
    assert [(line["loss/domain"], line["loss/general"]) for line in end["lines"]] == [
        (7.0, None), (2.0, None),
    ]  # fmt: skip
    none = [0.0, 0.0, 0.0]
    assert end["records"] == [
        {"line_step": 0, "sums": {"domain": [16.0, 1.0, 2.0], "general": none}},
        {"line_step": 3, "sums": {"domain": [3.0, 0.5, 1.0], "general": none}},
        {"line_step": 6, "sums": {"domain": none, "general": none}},
    ]


@pytest.mark.parametrize(
    ("steps", "lines"),
    [
        (9, [(3, 3), (6, 3), (9, 3)]),
        (10, [(3, 3), (6, 3), (10, 4)]),
        (11, [(3, 3), (6, 3), (11, 5)]),
        (4, [(4, 4)]),
        (2, [(2, 2)]),
    ],
)
def test_the_last_line_is_of_no_fewer_steps_than_the_others(work_of, steps, lines):
    """Its loss is the one that verdict, sweep and page show."""
    found = work_of(steps=steps, log=3)[1]["lines"]
    assert [(line["step"], line["loss_steps"]) for line in found] == lines


def test_early_stopping_saves_the_best_and_the_end_each_with_a_line(work_of):
    rule = EarlyStopping(patience_tokens=256, mode="stop")
    scores = [4.0, 2.0, 2.5, 2.5, 9.0]
    bench = {"scores": scores, "resumed": False}
    work, end = work_of(steps=9, evaluate=1, early_stopping=rule, bench=bench)
    assert [item for item in work if item[:4] in ("save", "line", "end ")] == [
        "save 0, best 0", "line 1", "save 1, best 1", "line 2", "line 3", "save 3, best 1",
        "end 3",
    ]  # fmt: skip
    assert end["best_step"] == 1
    assert end["reason"].startswith("early stopping at 33.3% of the planned tokens: bits per byte")


def test_seconds_are_those_of_their_cause(work_of):
    """A read takes 1 s, a dispatch 10, waiting 100, an evaluation 1,000; a checkpoint 110,000."""
    seconds = work_of(steps=5, log=2)[1]["seconds"]
    # The first batch is read before the steps begin; four steps are waited for, one at the end.
    assert {cause: spent for cause, spent in seconds.items() if spent} == {
        "data": 4, "step": 450, "evaluate": 1_000, "save": 110_000,
    }  # fmt: skip


def asked_at(number: int, name: str = "SIGHUP"):
    """A request that the loop hears when it asks for the `number`th time."""
    calls = itertools.count(1)
    return lambda: name if next(calls) >= number else None


def test_a_request_to_leave_saves_at_once_and_waits_for_the_disk(work_of):
    work, error = work_of(steps=9, leave=asked_at(3))
    assert work[-5:] == ["flush", "save 3", "wait for the disk", "event 3", "preempted 3"]
    assert str(error) == "signal SIGHUP at step 3: saved, start again to continue"
    # At the last step there is nothing to continue.
    assert work_of(steps=3, leave=asked_at(3))[1]["line"]["step"] == 3


def test_nothing_is_saved_once_a_store_has_changed(work_of, monkeypatch):
    def changed():
        raise StoreChanged("tokens.bin has changed")

    monkeypatch.setattr(Bench, "verification", types.SimpleNamespace(check=changed))
    work, error = work_of(steps=9, save=2)
    assert isinstance(error, StoreChanged)
    assert work[-1] == "store_changed 2"
    assert not [item for item in work if item[:4] in ("save", "flus")]


@pytest.mark.parametrize(
    ("periods", "last"),
    [({"save": 2}, 2), ({"evaluate": 3}, 3), ({"log": 2}, 2), ({"log": 1, "save": 2}, 2), ({}, 5)],
)
def test_a_loss_that_is_no_number_is_neither_saved_nor_evaluated(work_of, periods, last):
    """Also where the step of a checkpoint or an evaluation has no line."""
    bench = {"losses": {last: float("nan")}}
    work, error = work_of(steps=5, bench=bench, spikes=Spikes(patience=1), **periods)
    assert (error.stretch.first, error.stretch.last) == (last, last)
    assert work[-1] == f"skipped {last}"
    assert not {item[:4] for item in work} & {"save", "eval"}


@pytest.mark.parametrize("bad", [1, 2, 3, 5])
@pytest.mark.parametrize("periods", [{"save": 2}, {"evaluate": 3}, {"log": 1, "save": 2}, {}])
def test_a_loss_that_is_no_number_is_told_of_its_own_step_and_the_run_goes_on(
    work_of, periods, bad
):
    """Whether that step has a line, a checkpoint or an evaluation, or none of them."""
    usual = work_of(steps=5, **periods)[0]
    work, end = work_of(steps=5, bench={"losses": {bad: float("nan")}}, **periods)
    assert [item for item in work if item != f"skipped {bad}"] == usual
    # It is told two steps later at the latest, and before anything is made of the state.
    told, later = work.index(f"skipped {bad}"), f"step {bad + 3}"
    assert later not in work or told < work.index(later)
    assert told < len(work) - work[::-1].index("evaluate")
    assert f"save {bad}" not in work[:told]
    for line in end["lines"]:
        assert line["loss"] == (None if line["loss_steps"] == 1 and line["step"] == bad else 2.0)


@pytest.mark.parametrize(
    ("periods", "last"),
    [({"save": 2}, 2), ({"evaluate": 3}, 3), ({"log": 1, "save": 2}, 2), ({}, 5)],
)
def test_parameters_that_are_no_numbers_are_given_up_at_once(work_of, monkeypatch, periods, last):
    """Though the update that broke them was applied, and patience is left."""
    monkeypatch.setattr(rewind, "not_finite", lambda parameters: ["embedding", "final_norm/gain"])
    bench = {"param_norms": dict.fromkeys(range(last, 9), float("nan"))}
    work, error = work_of(steps=5, bench=bench, **periods)
    assert isinstance(error, Rewind)
    assert (error.stretch.first, error.stretch.last) == (last, last)
    assert work[-1] == f"warned {last}"
    assert not {item[:4] for item in work} & {"save", "eval"}


def test_an_evaluation_that_is_no_number_is_told(work_of, capsys):
    """Early stopping takes it for no gain; it does not do so in silence."""
    nan = float("nan")
    work, _ = work_of(steps=4, evaluate=2, bench={"scores": [3.0, nan, 2.0], "resumed": False})
    assert [item for item in work if item[:6] in ("score ", "warned")] == [
        "score 0", "score 2", "warned 2", "score 4",
    ]  # fmt: skip
    assert (
        "the evaluation of step 2 is not finite: eval/domain/bits_per_byte, "
        "eval/general/bits_per_byte\n"
    ) in capsys.readouterr().out


def test_no_hidden_copy_passes_between_host_and_device(work_of):
    def copies():
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            jax.jit(lambda x: x)(np.ones(3))

    assert work_of(steps=2, leave=copies)[1]["line"]["step"] == 2


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """A function from options of the run to the writer of its lines, its clock and the lines."""

    def make(devices: int, **changes):
        run = make_run(tmp_path, steps=20, **changes)
        clock, written = Clock(), []
        monkeypatch.setattr(loop, "time", clock)
        device = types.SimpleNamespace(device_kind="TPU v3")
        session = types.SimpleNamespace(
            sums=NO_SUMS,
            no_sums=NO_SUMS,
            line_step=0,
            recovery=Recovery(run.spikes, run.plan),
            mesh=types.SimpleNamespace(devices=np.array([device] * devices), size=devices),
            ledger=Ledger(),
            writer=types.SimpleNamespace(
                metrics=written.append, event=lambda *_, **fields: written.append(fields)
            ),
            checkpointer=types.SimpleNamespace(latest_step=lambda: 1_000),
        )
        return loop._Lines(run, session, Progress(2560)), clock, written, session

    return make


def test_a_line_measures_the_steps_since_the_line_before_it(lines):
    writer, clock, written, session = lines(1)
    session.ledger.add("data", 7.0)
    writer.restart_clock(2)
    for step, now, waited in ((6, 102.0, 0.5), (8, 106.0, 1.0)):
        clock.now = now
        session.ledger.add("data", waited)
        session.sums = sums_of(1000, 100, 400)
        writer.pend(step, metrics_of(2.5))
        writer.write_pending()
        writer.write_pending()  # nothing is pending
    first, second = written
    # Four steps of 8 rows of 16 tokens in two seconds, then two steps in four.
    assert (first["step_seconds"], second["step_seconds"]) == (0.5, 2.0)
    assert (first["tokens_per_second"], second["tokens_per_second"]) == (256.0, 64.0)
    assert (first["data_wait_seconds"], second["data_wait_seconds"]) == (0.125, 0.5)
    assert (first["step"], first["tokens"]) == (6, 768)
    assert writer.last == second
    # A source that no step read has no loss.
    assert (first["loss/domain"], first["loss/general"]) == (2.5, None)
    assert (first["loss"], first["grad_norm"], first["learning_rate"]) == (2.5, 1.0, 1.0)
    assert (first["z_loss"], first["loss_steps"], second["loss_steps"]) == (0.25, 6, 2)
    assert session.sums is NO_SUMS
    assert first["tokens/domain"] + first["tokens/general"] == 768
    assert first["share/domain"] == first["tokens/domain"] / 768
    assert first["epochs/domain"] == pytest.approx(first["tokens/domain"] / 4096, rel=0.05)
    assert first["goodput"] == 0.0


def test_a_line_without_a_step_since_the_clock_started_has_no_speed(lines):
    writer, _, written, session = lines(1)
    writer.restart_clock(2)
    session.sums = sums_of(2.5, 0, 1)
    writer.pend(2, metrics_of(2.5))
    writer.write_pending()
    assert not written[0].keys() & {"step_seconds", "tokens_per_second", "mfu_full"}
    assert written[0]["loss"] == 2.5


@pytest.mark.parametrize(("devices", "chips"), [(1, 1), (2, 1), (4, 2), (8, 4)])
@pytest.mark.parametrize("chip", ["v3", None])
def test_an_mfu_counts_chips_and_not_their_devices(lines, devices, chips, chip):
    """A v3 chip has two JAX devices and 123 TFLOP/s (Google's page of it)."""
    writer, clock, written, _ = lines(devices, topology=Topology(chip=chip))
    writer.restart_clock(0)
    clock.now += 8.0
    writer.pend(4, metrics_of(2.5))
    writer.write_pending()
    (line,) = written
    per_token = line["model_flops_full"] / line["tokens"]
    assert line["mfu_full"] == pytest.approx(64.0 * per_token / (chips * 123e12))
    assert line["hfu"] == pytest.approx(64.0 * line["hardware_flops"] / 512 / (chips * 123e12))


def test_an_mfu_is_of_the_lengths_that_were_learnt_at_that_speed(lines):
    plan = BatchPlan.from_settings(8, [(16, 512), (64, None)], train_steps=8)
    writer, clock, written, _ = lines(1, plan=plan, topology=Topology(chip="v3"))
    for step in (4, 6):
        clock.now += 1.0
        writer.restart_clock(step - 1)
        clock.now += 1.0
        writer.pend(step, metrics_of(2.5))
        writer.write_pending()
    short, long = (line["mfu_full"] / line["tokens_per_second"] * 123e12 for line in written)
    # Two layers of attention of width 64: 12 x 2 x 64 FLOPs more for each further position.
    assert long - short == pytest.approx(12 * 2 * 64 * (64 - 16))


@pytest.mark.parametrize(
    ("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf")), (float("-inf"), float("nan"))]
)
def test_either_number_that_is_not_finite_is_refused(lines, loss, norm):
    writer, _, written, _ = lines(1)
    rewind.observe(writer._run, writer._session, {}, 2, metrics_of(1.0, 1e30))
    rewind.observe(writer._run, writer._session, {}, 3, metrics_of(loss, norm))
    (event,) = written
    assert (event["step"], event["tokens"], event["count"]) == (3, 384, 1)
    assert event["reason"] == f"loss {loss}, gradient norm {norm}: the update was not applied"
    assert writer._session.recovery.not_learnt(3) == ((3, 1),)
