"""Points of a law: what a CSV file or a run's directory says, and what cannot be compared."""

import dataclasses

import pytest

from t5x_style.errors import UsageError
from t5x_style.reporting import RunWriter, read_run
from t5x_style.reporting.run.held_out_text import HeldOutStore, HeldOutText
from t5x_style.sweeps import (
    LeftOut,
    Point,
    SweepRecord,
    TrialEntry,
    points_of_csv,
    points_of_runs,
    without_highest,
)
from tests.plans import made_up_plan, write_plan


def write_csv(tmp_path, text: str) -> str:
    path = tmp_path / "points.csv"
    path.write_text(text)
    return str(path)


def test_a_csv_file_with_our_names(tmp_path):
    path = write_csv(tmp_path, "loss,params,note,tokens\n3.5,1e8,a,2e9\n3.1,2e8,b,4e9\n")
    assert points_of_csv(path) == [
        Point(f"{path}:2", 1e8, 2e9, 3.5),
        Point(f"{path}:3", 2e8, 4e9, 3.1),
    ]


def test_flops_give_the_tokens_where_there_are_none(tmp_path):
    path = write_csv(tmp_path, "params,flops,loss\n1e8,1.2e18,3.5\n")
    assert points_of_csv(path)[0].tokens == pytest.approx(2e9)
    path = write_csv(tmp_path, "Model Size,Training FLOP,loss\n1e8,1.2e18,3.5\n")
    columns = {"params": "Model Size", "flops": "Training FLOP"}
    assert points_of_csv(path, columns)[0].tokens == pytest.approx(2e9)


def test_flops_that_were_asked_for_come_before_tokens(tmp_path):
    path = write_csv(tmp_path, "params,tokens,flops,loss\n1e8,1e9,1.2e18,3.5\n")
    assert points_of_csv(path)[0].tokens == 1e9
    assert points_of_csv(path, {"flops": "flops"})[0].tokens == pytest.approx(2e9)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("params,tokens,loss\n1,2,3\n", encoding="utf-8-sig")
    assert points_of_csv(str(path)) == [Point(f"{path}:2", 1, 2, 3)]


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("param,tokens,loss\n", None, "no column 'params' for params; did you mean 'param'"),
        ("params,loss\n", None, r"no column 'tokens' for tokens \(or flops\)"),
        ("params,tokens,loss\n", {"loss": "los"}, "no column 'los' for loss; did you mean 'loss'"),
        ("params,tokens,loss\n", {"parms": "x"}, "names 'parms'; did you mean 'params'"),
        ("a,b,c\n", {"tokens": "a", "flops": "b"}, "names tokens and flops"),
        ("params,tokens,loss\n1,2,3\n1,-2,3\n", None, r"csv:3: tokens = '-2' is not a positive"),
        ("params,tokens,loss\n1,2,nan\n", None, "csv:2: loss = 'nan'"),
        ("params,tokens,loss\n1,2,\n", None, "csv:2: loss = ''"),
        ("params,tokens,loss\n1,2\n", None, "csv:2: loss = ''"),
        ("params,tokens,loss\n1,2 B,3\n", None, "csv:2: tokens = '2 B'"),
        ("", None, "no column 'params'"),
        # A comma for the decimal point makes two cells of a number, and shifts the rest.
        ("params,tokens,loss\n1,2,3,5\n", None, "csv:2: 4 cells, but the first line names 3"),
        ("params,tokens,loss,loss\n1,2,3,4\n", None, "names the column 'loss' twice"),
        ("params,tokens,loss\n1,2,3\0\n", None, r"not text: byte 24 \(line 2\) is NUL"),
        (f"params,tokens,loss\n1,2,{'3' * 200_000}\n", None, "csv:2: field larger than field"),
    ],
)
def test_wrong_csv_files_are_refused_with_line_and_column(tmp_path, text, columns, message):
    with pytest.raises(UsageError, match=message):
        points_of_csv(write_csv(tmp_path, text), columns)


def test_ends_of_lines_and_empty_cells_are_no_matter(tmp_path):
    path = tmp_path / "points.csv"
    for end in ("\n", "\r\n", "\r"):
        path.write_text(f"params,tokens,loss,,{end}{end}1,2,3,,,{end}", newline="")
        assert points_of_csv(str(path)) == [Point(f"{path}:3", 1, 2, 3)]


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"--points=.*nosuch\.csv: No such file"):
        points_of_csv(str(tmp_path / "nosuch.csv"))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8 text"):
        points_of_csv(str(tmp_path / "binary.csv"))


@pytest.fixture
def make_run(tmp_path):
    """A function from a name (and what tells runs apart) to the files of a run."""

    def make(
        name,
        *,
        params=1000,
        reached=100,
        loss=2.0,
        tokenizer="t",
        epochs=0.5,
        source="legal",
        skipped=0,
    ):
        shares = {source: 0.25, "general": 0.75}
        with RunWriter(tmp_path / name, resume_step=None) as writer:
            for tokens in range(50, reached + 1, 50):
                early = 100 / tokens
                line = {"step": tokens, "tokens": tokens, "loss": loss * early}
                writer.metrics(line | ({"skipped/general": skipped} if skipped else {}))
                writer.metrics(
                    {
                        "step": tokens,
                        "tokens": tokens,
                        f"eval/{source}/loss": 1.0 * early,
                        "eval/general/loss": loss * early,
                    }
                )
        plan = made_up_plan(shares, parameters={"total": params})
        identity = {"tokenizer": tokenizer, "blend": shares}
        sources = {
            source: dataclasses.replace(
                planned, account=dataclasses.replace(planned.account, epochs=epochs)
            )
            for source, planned in plan.sources.items()
        }
        derived = dataclasses.replace(plan, identity=identity, sources=sources)
        write_plan(tmp_path / name, derived)
        return str(tmp_path / name)

    return make


def test_a_run_is_its_parameters_its_tokens_and_its_blended_loss(make_run):
    run = make_run("a", epochs=1.5)
    points, left_out = points_of_runs([run])
    assert points == [Point(run, 1000, 100, 0.25 * 1.0 + 0.75 * 2.0, epochs=1.5)]
    assert left_out == []


@pytest.mark.parametrize(("key", "loss"), [("loss", 2.0), ("eval/legal/loss", 1.0)])
def test_another_loss_may_be_named(make_run, key, loss):
    assert points_of_runs([make_run("a")], key)[0][0].loss == loss


def test_runs_before_their_end_are_left_out(make_run):
    done, half = make_run("done"), make_run("half", reached=50)
    points, left_out = points_of_runs([half, done])
    assert [point.name for point in points] == [done]
    assert left_out == [LeftOut(half, "at 50 of 100 tokens")]


def test_of_runs_of_one_size_the_best_one_counts(make_run):
    worse, best = make_run("worse", loss=3.0), make_run("best", loss=2.0)
    other = make_run("other", params=2000, loss=3.0)
    for order in ([worse, best, other], [best, worse, other]):
        points, left_out = points_of_runs(order)
        assert [point.name for point in points] == [best, other]
        assert left_out == [LeftOut(worse, f"same N and D as {best}, better")]


def test_updates_that_were_left_out_are_no_tokens_of_a_point(make_run):
    worse, best = make_run("worse", loss=3.0, skipped=8), make_run("best", loss=2.0, skipped=4)
    points, left_out = points_of_runs([worse, best])
    assert [(point.name, point.tokens) for point in points] == [(best, 96)]
    assert [run.name for run in left_out] == [worse]  # of the same plan


def test_patterns_and_sweeps_stand_for_their_runs(make_run, tmp_path):
    runs = [make_run(f"sweep/width={n}", params=n) for n in (10, 20)]
    (tmp_path / "sweep" / "width=10.log").write_text("")
    (tmp_path / "sweep" / "width=stores").mkdir()
    assert [p.name for p in points_of_runs([str(tmp_path / "sweep" / "width=*")])[0]] == runs
    trials = [TrialEntry(f"width={n}", {"width": n}, "finished") for n in (10, 20)]
    trials.append(TrialEntry("width=30", {"width": 30}, "failed", reason="status 1"))
    SweepRecord([], "a", trials).write(tmp_path / "sweep")
    # A run that is named twice is one point.
    points, left_out = points_of_runs([str(tmp_path / "sweep"), runs[0]])
    assert [point.name for point in points] == runs
    assert left_out == [LeftOut(str(tmp_path / "sweep" / "width=30"), "its trial is failed")]


def test_runs_that_cannot_be_compared_are_refused(make_run):
    run = make_run("a")
    with pytest.raises(UsageError, match="tokenizer is 't' in the one and 'u' in the other"):
        points_of_runs([run, make_run("b", tokenizer="u")])
    with pytest.raises(UsageError, match="blend is"):
        points_of_runs([run, make_run("c", source="medical")])


def test_runs_without_what_was_asked_for_are_refused(make_run, tmp_path):
    run = make_run("a")
    with pytest.raises(UsageError, match=r"'eval/legl/loss'.*did you mean 'eval/legal/loss'"):
        points_of_runs([run], "eval/legl/loss")
    with pytest.raises(UsageError, match="'tokens' at its end"):
        points_of_runs([run], "tokens")
    with pytest.raises(UsageError, match="no run and no sweep there"):
        points_of_runs([str(tmp_path / "nosuch*")])
    with pytest.raises(UsageError, match="--runs = 'gs://b/run': gs:// is not a file system"):
        points_of_runs(["gs://b/run"])
    with pytest.raises(UsageError, match=r"--points = 's3://b/p\.csv': s3:// is not a file system"):
        points_of_csv("s3://b/p.csv")
    with pytest.raises(UsageError, match="no run directory"):
        points_of_runs([str(tmp_path / "nosuch")])
    (tmp_path / "a" / "plan.json").unlink()
    with pytest.raises(UsageError, match=r"has no plan\.json"):
        points_of_runs([run])


def test_the_highest_losses_are_dropped():
    points = [Point(str(loss), 1, 1, loss) for loss in (3.0, 5.0, 4.0, 2.0)]
    assert without_highest(points, 0) == points
    assert [point.loss for point in without_highest(points, 2)] == [3.0, 2.0]
    assert without_highest([], 0) == []
    with pytest.raises(UsageError, match="less than the 1 points"):
        without_highest(points[:1], 1)
    for count in (-1, 4):
        with pytest.raises(UsageError, match=f"--drop_highest={count}"):
            without_highest(points, count)


def test_a_source_that_is_never_evaluated_has_no_part_in_the_loss(make_run, tmp_path):
    """As in early stopping: legal is 1/4 of the blend, general, at 3/4, has no validation split."""
    run = make_run("a", loss=7.0)
    metrics = tmp_path / "a" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("eval/general/loss", "unknown"))
    (point,) = points_of_runs([run])[0]
    assert point.loss == 1.0
    assert point.measured == "evaluation loss of legal"
    (both,) = points_of_runs([make_run("b")])[0]
    assert both.measured == "evaluation loss of legal 25.0%, general 75.0%"
    metrics.write_text(metrics.read_text().replace("eval/legal/loss", "unknown too"))
    with pytest.raises(UsageError, match="has no 'eval/SOURCE/loss' at its end"):
        points_of_runs([run])


def test_runs_with_other_held_out_text_are_no_points_of_one_law(make_run, tmp_path):
    def held_out(name, **digests):
        run = make_run(name, params=1000 + len(name))
        stores = {key: HeldOutStore(f"{name}/{key}", "f", value) for key, value in digests.items()}
        derived = read_run(run).derived
        write_plan(run, dataclasses.replace(derived, held_out=[HeldOutText(-1, 0, stores)]))
        return run

    one = held_out("a", legal="x", general="y")
    assert len(points_of_runs([one, held_out("bb", legal="x", general="y")])[0]) == 2
    # A run of an older version does not know.
    assert len(points_of_runs([one, held_out("old", legal=None, general=None)])[0]) == 2
    with pytest.raises(UsageError, match="held-out text of 'general' is a/general in the one"):
        points_of_runs([one, held_out("cccc", legal="x", general="z")])
    with pytest.raises(UsageError, match=r"'general' is not evaluated in .*ddddd"):
        points_of_runs([one, held_out("ddddd", legal="x")])
