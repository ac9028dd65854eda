"""The checks of tools/chaos see a broken promise, and its faults can be drawn again."""

import itertools
import json
import pathlib
import random
import re
import shutil
import signal

import pytest

from tests import warm
from tests.chaos.home import STEPS
from tests.chaos.hooks import hold
from tests.chaos.lives import Life, Slots, processes_of
from tests.chaos.records import Broken, difference
from tests.chaos.trial import KINDS, Kind, Trial
from tests.scripts import script

chaos = script("chaos")


def test_every_kind_says_what_it_promises():
    assert len(KINDS) >= 25
    assert all(re.match(r"[A-Z].{20,}\.$", kind.promise) for kind in KINDS.values())
    listed = chaos.promises()
    assert all(kind.promise in listed for kind in KINDS.values())


def test_faults_of_a_seed_are_the_same_again_and_every_group_has_its_turn():
    order = [kind.name for kind in itertools.islice(chaos.in_turns(KINDS, 5), 2 * len(KINDS))]
    assert order == [kind.name for kind in itertools.islice(chaos.in_turns(KINDS, 5), len(order))]
    assert order != [kind.name for kind in itertools.islice(chaos.in_turns(KINDS, 6), len(order))]
    assert set(order[: len(KINDS)]) == set(KINDS)
    groups = {kind.group for kind in KINDS.values()}
    assert {KINDS[name].group for name in order[: len(groups)]} == groups


# ---- What the checks see -------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> pathlib.Path:
    """Files as a run of four steps leaves them, with a checkpoint of step 4."""
    folder = tmp_path / "run"
    for item in ("run/metadata", "state/_METADATA", "state/manifest.ocdbt", "_CHECKPOINT_METADATA"):
        (folder / "checkpoint_4" / item).parent.mkdir(parents=True, exist_ok=True)
        (folder / "checkpoint_4" / item).write_text("{}")
    lines = [{"step": step, "loss": 3.0 - step / 8, "time": 100.0 + step} for step in range(1, 5)]
    lines.insert(2, {"step": 2, "eval/legal/loss": 2.5, "time": 102.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = [{"event": name, "step": 4} for name in ("saved", "finished")]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in told))
    return folder


class OneRun:
    """A `Lab` whose undisturbed run is given."""

    may_mount = False

    def __init__(self, folder: pathlib.Path, base: pathlib.Path):
        self.home, self._base = folder / "home", base

    def base(self, processes: int) -> pathlib.Path:
        return self._base


@pytest.fixture
def trial(run, tmp_path) -> Trial:
    """A trial at its end, in which nothing is wrong: its run is a copy of the undisturbed one."""
    promised = Kind("none", "none", lambda _: None, tells=(("finished", "preempted"),), repeats=3)
    found = Trial(OneRun(tmp_path, run), promised, tmp_path / "trial", random.Random(0))  # type: ignore[arg-type]
    found.copy(run)
    return found


def rewrite(file: pathlib.Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_an_undisturbed_run_keeps_every_promise(trial):
    trial.conclude()


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("metrics.jsonl", '"loss": 2.625', '"loss": 2.6250000000000004', "line of step 3"),
        ("metrics.jsonl", '"eval/legal/loss": 2.5', '"eval/legal/loss": 2.4', "line of step 2"),
        ("metrics.jsonl", '{"step": 3', '{"step": 2', "two lines of step 2"),
        ("metrics.jsonl", '{"step": 4', '{"stop": 4', "lines of steps [4] are in one of two"),
        ("events.jsonl", '"saved", "step": 4', '"saved", "step": 3', "says that step 3 is saved"),
        ("events.jsonl", "finished", "resumed", "no event says that the run is finished"),
    ],
)
def test_a_file_that_tells_something_else_is_seen(trial, file, old, new, words):
    rewrite(trial.model_dir / file, old, new)
    with pytest.raises(Broken, match=re.escape(words)):
        trial.conclude()


def test_an_item_that_is_missing_makes_a_checkpoint_not_whole(trial):
    shutil.rmtree(trial.model_dir / "checkpoint_4/run")
    with pytest.raises(Broken, match=r"step 4 is saved; whole are \[\]"):
        trial.conclude()


def test_what_is_half_written_is_seen(trial):
    (trial.model_dir / "checkpoint_3.orbax-checkpoint-tmp").mkdir()
    with pytest.raises(Broken, match="left over"):
        trial.conclude()


def test_more_steps_again_than_promised_are_seen(trial):
    trial.repeated = 4
    with pytest.raises(Broken, match="4 steps computed again, 3 are promised"):
        trial.conclude()


def test_an_event_that_is_promised_must_be_there(trial):
    rewrite(trial.model_dir / "events.jsonl", "finished", "finished_")
    rewrite(trial.model_dir / "events.jsonl", '"saved"', '"finished"')
    trial.conclude()
    object.__setattr__(trial.kind, "tells", (("refused",),))
    with pytest.raises(Broken, match="no event refused"):
        trial.conclude()


def test_curves_of_other_numbers_of_processes_may_differ_by_rounding(trial, run):
    rewrite(trial.model_dir / "metrics.jsonl", '"loss": 2.625', f'"loss": {2.625 * (1 + 5e-8)}')
    assert difference(trial.model_dir, run, STEPS) is not None
    assert difference(trial.model_dir, run, STEPS, apart=8e-8) is None
    assert difference(trial.model_dir, run, 2) is None


def test_recovery_is_from_the_fault_to_the_first_new_step(trial):
    trial.struck, trial.reached = 101.5, 2
    assert trial.recovery_seconds() == 1.5
    trial.struck, trial.reached = 101.5, 9
    assert trial.recovery_seconds() is None


# ---- Processes -----------------------------------------------------------------------------------

# A verb that takes the place of all verbs.
STAND_IN = """
import os, sys, time
import t5x_style.commands.main as command
from tests.chaos.hooks import main
def verb(arguments):
{body}
command.main = verb
sys.exit(main(*sys.argv[1:]))
"""


def life_of(trial: Trial, body: str, monkeypatch: pytest.MonkeyPatch, *hooks: tuple):
    program = STAND_IN.format(body="\n".join(f"    {line}" for line in body.splitlines()))
    monkeypatch.setattr("tests.chaos.lives.START", program)
    trial.lives.append(life := Life(["train"], hooks, trial.held))
    return life


def test_a_process_that_outlives_its_parent_is_seen_and_killed(trial, monkeypatch):
    life = life_of(trial, "if not os.fork(): time.sleep(600)\nreturn 0", monkeypatch)
    with pytest.raises(Broken, match="are left after the end"):
        life.end()
    assert processes_of(life.pid) == []


def test_a_process_that_does_not_end_is_seen_and_killed(trial, monkeypatch):
    life = life_of(trial, "time.sleep(600)", monkeypatch)
    with pytest.raises(Broken, match="did not end in 1 s"):
        life.end(seconds=1.0)
    assert life.poll() == -signal.SIGKILL


def test_another_exit_status_is_seen(trial, monkeypatch):
    with pytest.raises(Broken, match="exit status 5, not 0"):
        trial.ends(life_of(trial, "return 5", monkeypatch))


def test_a_process_is_held_where_the_fault_is_to_be(trial, monkeypatch):
    body = """
from t5x_style.data import BatchReader
for step in (0, 1, 2):
    try: BatchReader.rows(None, [4 * step + 1, 4 * step])
    except AttributeError: open(sys.argv[0] + str(step), 'w').close()
return 0""".replace("sys.argv[0]", repr(str(trial.held / "read ")))
    life = life_of(trial, body, monkeypatch, hold("data", 1, str(trial.held)))
    life.reaches("data")
    assert sorted(path.name for path in trial.held.iterdir()) == ["data", "read 0"]
    life.release("data")
    assert life.end() == 0
    assert sorted(path.name for path in trial.held.iterdir()) == ["read 0", "read 1", "read 2"]


def test_slots_are_given_in_turn():
    slots = Slots(2)
    with slots.taken(2), slots.lent(2), slots.taken(1), slots.taken(1):
        pass


# ---- The tool ------------------------------------------------------------------------------------


def test_an_unknown_kind_is_answered_with_those_there_are(capsys):
    assert chaos.main(["--kind=SIGFPE"]) == 2
    assert "SIGKILL in a save" in capsys.readouterr().out


def test_faults_of_every_group_are_survived():
    """Twelve of them, in two minutes of an idle machine."""
    start = "raise SystemExit(script('chaos').main(['--faults=12', '--seed=1']))"
    done = warm.run(["-c", f"from tests.scripts import script; {start}"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^all +12 +12 +\d+", done.stdout, re.MULTILINE)
    tried = set(re.findall(r"^(.*?): .* 1 +1 +\d+", done.stdout, re.MULTILINE))
    assert tried == {kind.group for kind in KINDS.values()}
