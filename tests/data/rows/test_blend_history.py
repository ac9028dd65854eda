"""A blend that is changed at a resume: past rows stay, and later rows follow the new blend."""

import dataclasses
import json

import numpy as np
import pytest

from t5x_style.data import BatchPlan, BatchReader, BlendPhase, SharePhase
from t5x_style.data.rows.blend_history import (
    BlendVersion,
    blend_versions,
    phases_from,
    reader_of,
    versions_before,
)
from t5x_style.errors import UsageError
from t5x_style.optim import AdamW, Schedule
from t5x_style.training import derive, train
from tests.plans import write_plan
from tests.training.runs import made_up_store, make_run, stores

CONSTANT = AdamW(Schedule(peak_learning_rate=1e-2, warmup_tokens=256, shape="constant"))
OLD = SharePhase(None, {"domain": 0.51, "general": 0.49}, {"domain": 0.51, "general": 0.49})
# The same blend to token 640, which is row 40, and then a ramp to the domain alone.
ANNEALED = (
    SharePhase(640, OLD.start, OLD.end),
    SharePhase(1280, OLD.start, {"domain": 0.9, "general": 0.1}),
    SharePhase(None, {"domain": 0.9, "general": 0.1}, {"domain": 0.9, "general": 0.1}),
)
QUARTER = SharePhase(None, *[{"general": 0.75, "domain": 0.25} for _ in range(2)])


def blended(*phases: SharePhase, **more_stores):
    held = stores()
    return dataclasses.replace(held, phases=phases, train=held.train | more_stores, validation={})


def run_of(model_dir, steps: int, *phases: SharePhase, **changes):
    return make_run(
        model_dir, steps=steps, optimizer=CONSTANT, **{"stores": blended(*phases), **changes}
    )


def event(model_dir, kind: str) -> list[dict]:
    lines = map(json.loads, (model_dir / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == kind]


@pytest.fixture
def rows_read(monkeypatch) -> dict[int, bytes]:
    """{row: its source and tokens} of all rows that are read while the test runs.

    A run that reaches row 60 for the first time is interrupted there.
    """
    seen: dict[int, bytes] = {}
    read = BatchReader.rows

    def recorded(reader, numbers):
        if 60 in numbers and 60 not in seen:
            seen[60] = b""
            raise InterruptedError
        rows = read(reader, numbers)
        for at, number in enumerate(numbers.tolist()):
            seen[number] = row_of(reader, rows, at)
        return rows

    monkeypatch.setattr(BatchReader, "rows", recorded)
    return seen


def row_of(reader, rows, at: int) -> bytes:
    return reader.names[rows.source[at]].encode() + b":" + rows.tokens[at].tobytes()


def test_a_blend_that_is_written_in_another_order_keeps_its_rows():
    """With equal shares every second row is due together with another source's."""
    even = {"domain": 0.5, "general": 0.5}
    turned = dict(reversed(even.items()))
    plan = BatchPlan.from_settings(8, 16, train_steps=20)
    versions = blend_versions(
        blended(SharePhase(None, even, even)), plan, None, written=[], resume=None, change=False
    )
    written = [BlendVersion.from_json(json.loads(json.dumps(v.to_json()))) for v in versions]
    for change in (False, True):
        again = blend_versions(
            blended(SharePhase(None, turned, turned)),
            plan,
            None,
            written=written,
            resume=(40, 5),
            change=change,
        )
        readers = [reader_of(found, blended(OLD), plan, seed=0) for found in (versions, again)]
        assert readers[0].names == readers[1].names == ("domain", "general")
        rows = [reader.rows(np.arange(160)) for reader in readers]
        np.testing.assert_array_equal(rows[0].source, rows[1].source)


@pytest.mark.parametrize("new", [ANNEALED, (QUARTER,)], ids=["annealed", "constant"])
def test_interrupted_changed_and_continued(tmp_path, rows_read, new):
    """Interrupted in step 8, continued from step 5 to 10 with another blend, and then to 15."""
    with pytest.raises(InterruptedError):
        train(run_of(tmp_path, 20, OLD))
    before = {row: rows_read[row] for row in range(40)}
    with pytest.raises(UsageError, match=r"train\.allow_blend_change = True continues"):
        train(run_of(tmp_path, 10, *new))

    train(run_of(tmp_path, 10, *new, allow_blend_change=True))
    # The run now has the new configuration, and needs no permission any more.
    train(run_of(tmp_path, 15, *new))
    assert sorted(rows_read) == list(range(120))
    assert {row: rows_read[row] for row in range(40)} == before
    assert len(set(rows_read.values())) == 120, "a window was read twice"

    (change,) = event(tmp_path, "blend_changed")
    assert (change["step"], change["tokens"]) == (5, 640)
    assert change["old"] == OLD.start
    assert change["new"] == new[0].start
    # After the ten steps that were planned then, the ramp is half way.
    half = {"domain": 0.705, "general": 0.295} if new is ANNEALED else new[0].start
    assert change["new_at_end"] == pytest.approx(half)

    # Owed rows since the change: the integral of the configured shares.
    names = ("domain", "general")
    first, last = new[min(1, len(new) - 1)].start, new[-1].end
    owed, had = np.zeros(2), np.zeros(2)
    for row in range(40, 120):
        # The ramp lasts from row 40 to row 120.
        at = (row + 0.5 - 40) / 80
        owed += [(1 - at) * first[name] + at * last[name] for name in names]
        had += [rows_read[row].startswith(name.encode()) for name in names]
        assert (abs(had - owed) < 1).all()

    # A new reader reads the same rows.
    reader = run_of(tmp_path, 15, *new).reader
    again = reader.rows(np.arange(120))
    assert {row: row_of(reader, again, row) for row in range(120)} == rows_read
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert [(version["row"], version["step"]) for version in plan["blend"]] == [(0, 0), (40, 5)]


def test_a_change_that_was_never_saved_leaves_no_trace(tmp_path):
    train(run_of(tmp_path, 5, OLD))
    # Killed before its first checkpoint: only its plan remains.
    changed = run_of(tmp_path, 10, *ANNEALED, allow_blend_change=True)
    write_plan(tmp_path, derive(changed))
    for phases, rows in (((OLD,), [0]), (ANNEALED, [0, 40]), ((QUARTER,), [0, 40])):
        run = run_of(tmp_path, 10, *phases, allow_blend_change=True)
        assert [version.row for version in run.blend] == rows
        assert run.blend[0].phases == changed.blend[0].phases


def test_a_source_may_come_and_none_may_change_or_go(tmp_path):
    train(run_of(tmp_path, 5, OLD))
    third = made_up_store("t", 2048, 5)
    with_third = SharePhase(
        None, *[{"domain": 0.5, "general": 0.25, "third": 0.25} for _ in range(2)]
    )
    run = run_of(tmp_path, 10, stores=blended(with_third, third=third), allow_blend_change=True)
    line = train(run)["line"]
    assert line["tokens/third"] == 16 * 10
    assert line["share/third"] == pytest.approx(0.125)

    alone = SharePhase(None, {"third": 1.0}, {"third": 1.0})
    without = dataclasses.replace(blended(alone), train={"third": third})
    with pytest.raises(UsageError, match="has read the source"):
        run_of(tmp_path, 15, stores=without, allow_blend_change=True)
    other = blended(with_third, third=third, domain=made_up_store("other", 4096, 9))
    with pytest.raises(UsageError, match=r"stores\.domain") as refused:
        train(run_of(tmp_path, 15, stores=other, allow_blend_change=True))
    assert "allow_blend_change" not in str(refused.value)
    again = blended(with_third, third=third)
    with pytest.raises(UsageError, match="seed: 0 there, 1 asked for"):
        train(run_of(tmp_path, 15, stores=again, seed=1, allow_blend_change=True))


@pytest.mark.parametrize("resume", [None, (40, 5)])
def test_a_run_begins_with_its_first_row(resume):
    """Also if its folder has a plan and no checkpoint, or a checkpoint of a plan without blends."""
    plan = BatchPlan.from_settings(8, 16, train_steps=300)
    other = BlendVersion(0, 0, "another blend", ())
    written = [] if resume else [other]
    (version,) = blend_versions(
        blended(OLD), plan, None, written=written, resume=resume, change=True
    )
    assert (version.row, version.step, version.capped_at) == (0, 0, ())
    assert version.phases == (BlendPhase(None, OLD.start, OLD.end),)


def test_a_cap_counts_what_the_blend_before_has_given():
    """The domain has 255 windows, of which the old blend read some in its 40 rows."""
    plan = BatchPlan.from_settings(8, 16, train_steps=300)
    begin = {"resume": None, "written": [], "change": True}
    old = blend_versions(blended(OLD), plan, None, **begin)
    caps = {"domain": 1.0, "general": 40.0}
    begin |= {"resume": (40, 5), "written": old}
    versions = blend_versions(blended(QUARTER), plan, caps, **begin)
    assert versions[0] == old[0]
    (row, name), *_ = versions[1].capped_at
    reader = reader_of(versions, blended(OLD), plan, seed=0)
    given = [int(reader.blend.counts(rows)[list(reader.names).index(name)]) for rows in (40, row)]
    assert row == 40 + 4 * (255 - given[0])
    assert given[1] == 255
    assert reader.epochs(plan.rows)[list(reader.names).index(name)] == 1.0


@pytest.mark.parametrize("caps", [None, {"domain": 0.5, "general": 40.0}])
def test_a_change_inside_of_a_sequence_length_reads_no_window_twice(caps):
    plan = BatchPlan.from_settings(8, [(16, 2560), (32, None)], train_steps=40)
    begin = {"resume": None, "written": [], "change": True}
    old = blend_versions(blended(OLD), plan, caps, **begin)
    begin |= {"resume": (80, 10), "written": old}
    versions = blend_versions(blended(QUARTER), plan, caps, **begin)
    before, after = (reader_of(item, blended(OLD), plan, seed=0) for item in (old, versions))
    read = [reader.rows(np.arange(160)) for reader in (before, after)]
    np.testing.assert_array_equal(read[0].tokens[:80], read[1].tokens[:80])
    assert (read[0].source[80:] != read[1].source[80:]).any()
    rows = after.rows(np.arange(160, 320))
    windows = [row_of(after, read[1], at) for at in range(160)]
    windows += [row_of(after, rows, at) for at in range(160)]
    assert len(set(windows)) == 320


def test_a_finished_run_accepts_a_blend_whose_sources_are_at_their_caps():
    plan = BatchPlan.from_settings(8, 16, train_steps=5)
    alone = SharePhase(None, {"domain": 1.0}, {"domain": 1.0})
    caps = {"domain": 0.01, "general": 40.0}
    begin = {"written": [BlendVersion(0, 0, "old", (BlendPhase(None, OLD.start, OLD.end),))]}
    begin |= {"resume": (40, 5), "change": True}
    versions = blend_versions(blended(alone), plan, caps, **begin)
    assert versions[1].capped_at == ((40, "domain"),)
    longer = BatchPlan.from_settings(8, 16, train_steps=6)
    with pytest.raises(UsageError, match="every source of the blend is at its cap"):
        blend_versions(blended(alone), longer, caps, **begin)


def test_a_cap_of_a_changed_blend_is_reached_after_a_change_of_the_sequence_length():
    """Rows of 32 tokens begin at row 80 of the run, 40 rows after the change."""
    plan = BatchPlan.from_settings(8, [(16, 1280), (32, None)], train_steps=100)
    caps = {"domain": 0.5, "general": 40.0}
    begin = {"resume": None, "written": [], "change": True}
    begin |= {"written": blend_versions(blended(OLD), plan, None, **begin), "resume": (40, 5)}
    versions = blend_versions(blended(QUARTER), plan, caps, **begin)
    reader = reader_of(versions, blended(OLD), plan, seed=0)
    (row, name), *_ = versions[1].capped_at
    domain = reader.names.index(name)
    assert row > 80
    # Half of 127 windows of 32 tokens, and of those the most that fit.
    cap = 127 * 32 / 2
    assert cap - 32 < reader.tokens_by_source(row)[domain] < cap + 32
    assert reader.tokens_by_source(plan.rows)[domain] < cap + 32


def test_phases_from_a_row_on():
    ramp = BlendPhase(10, {"a": 1.0}, {"a": 0.5, "b": 0.5})
    rest = BlendPhase(None, {"b": 1.0}, {"b": 1.0})
    assert phases_from([ramp, rest], 0) == [ramp, rest]
    assert phases_from([ramp, rest], 4) == [
        BlendPhase(6, {"a": 0.8, "b": 0.2}, {"a": 0.5, "b": 0.5}),
        rest,
    ]
    assert phases_from([ramp, rest], 10) == phases_from([ramp, rest], 99) == [rest]


def test_which_versions_stay():
    one, two, three = (BlendVersion(10 * n, n, f"blend {n}", ()) for n in range(3))
    written = [one, two, three]
    assert versions_before(written, "blend 2", (25, 3), change=False) == ([one, two], (20, 2))
    assert versions_before(written, "blend 2", (25, 3), change=True) == ([one, two], (20, 2))
    assert versions_before(written, "new", (25, 3), change=True) == (written, (25, 3))
    # Without permission the place is the same; the identity refuses it.
    assert versions_before(written, "new", (25, 3), change=False) == ([one, two], (20, 2))
    # No checkpoint is after the row of the third.
    assert versions_before(written, "new", (20, 2), change=True) == ([one, two], (20, 2))
    assert versions_before(written, "blend 1", (20, 2), change=True) == ([one], (10, 1))
    assert versions_before([one], "new", (0, 0), change=True) == ([], (0, 0))


def test_a_version_in_json_and_back():
    version = BlendVersion(
        40,
        5,
        {"phases": [], "max_epochs": None},
        (BlendPhase(10, {"a": 1.0}, {"b": 1.0}), BlendPhase(None, {"b": 1.0}, {"b": 1.0})),
        ((50, "a"),),
    )
    assert BlendVersion.from_json(json.loads(json.dumps(version.to_json()))) == version
