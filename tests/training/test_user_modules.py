"""A team's own parts of every kind, by gin alone (tests/my_team.py)."""

import gzip
import itertools
import json
import pathlib

import gin
import pytest

from t5x_style.accounting import Architecture, total_parameters
from t5x_style.commands.main import main
from t5x_style.data import Source
from t5x_style.data.sources.documents import documents
from t5x_style.data.tokenizers.train import train_tokenizer
from t5x_style.reporting import write_report

ROOT = pathlib.Path(__file__).parents[2]
GEGLU = "tests.my_team.GEGLU"
CONFIG = """
import tests.my_team

include 'gin_configs/runs/pretrain.gin'
include 'gin_configs/mixtures/legal_general.gin'
include 'gin_configs/models/quickstart_500k.gin'
include 'gin_configs/topologies/cpu.gin'

VOCAB_SIZE = 512
TASK_FEATURE_LENGTHS = {'targets': 32}
BATCH_SIZE = 16
TRAIN_STEPS = 20
COMPUTE_DTYPE = 'float32'
LOG_PERIOD = 1
EVAL_PERIOD = 20
CHECKPOINT_PERIOD = 20

Architecture.layers = 1
Architecture.d_model = 32
Architecture.d_ff = 64
Architecture.feed_forward = 'tests.my_team.GEGLU'
Topology.chip = 'tests.my_team.MY_CHIP'
legal/Source.splits = {'train': 'legal.jsonl', 'validation': 'legal.held.jsonl'}
general/Source.splits = {'train': 'general.jsonl', 'validation': 'general.held.jsonl'}
"""
LION = """
train.optimizer = @Lion()
Lion.rate = 3e-3
"""
WORST_ROW = """
train.metrics = [@WorstRow()]
"""
STAIRCASE = """
AdamW.schedule = @Staircase()
Staircase.first = 1e-2
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> pathlib.Path:
    """Two small corpora and a vocabulary."""
    folder = tmp_path_factory.mktemp("home")
    sources = {}
    for name in ("legal", "general"):
        with gzip.open(ROOT / f"t5x_style/data/corpora/{name}.train.jsonl.gz", "rt") as corpus:
            texts = [json.loads(line)["text"][:2000] for line in itertools.islice(corpus, 110)]
        lines = [json.dumps({"id": str(i), "text": text}) for i, text in enumerate(texts)]
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(lines[:100]))
        (folder / f"{name}.held.jsonl").write_text("\n".join(lines[100:]))
        sources[name] = Source(name=name, splits={"train": str(path)})
    train_tokenizer(
        {name: documents(source, "train") for name, source in sources.items()},
        {"legal": 0.51, "general": 0.49},
        vocab_size=512,
        path=folder / "vocabulary.model",
    )
    return folder


@pytest.fixture
def call(home, monkeypatch, capsys):
    """Runs a verb on CONFIG and more of it: what --json prints."""
    monkeypatch.chdir(home)

    def run(verb: str, more: str, *flags: str) -> dict:
        (home / "run.gin").write_text(CONFIG + more)
        status = main([verb, "--gin_file=run.gin", "--json", *flags])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return json.loads(printed.out)

    yield run
    gin.clear_config()


def folders(home: pathlib.Path, name: str) -> list[str]:
    return [
        f"--gin.MODEL_DIR={home / name}",
        f"--gin.CACHE_DIR={home / 'stores'}",
        f"--gin.TOKENIZER={home / 'vocabulary.model'}",
        "--gin.train.eval_tokens=2000",
    ]


@pytest.mark.parametrize(
    ("name", "more", "fields"),
    [("lion", LION, {"rate": 3e-3}), ("staircase", STAIRCASE, {"schedule": {"first": 1e-2}})],
)
def test_a_run_of_a_teams_own_parts_learns(name, more, fields, home, call):
    result = call("train", more, *folders(home, name))
    lines = [json.loads(text) for text in (home / name / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 20
    assert result["line"]["loss"] == losses[-1] < losses[0] - 0.3
    plan = json.loads((home / name / "plan.json").read_text())
    assert plan["optimizer"].items() >= fields.items()
    architecture = Architecture(**plan["architecture"])
    assert architecture.feed_forward == GEGLU
    assert plan["parameters"]["total"] == total_parameters(architecture)
    measured = [line for line in lines if line.get("mfu_full")]
    assert measured
    for line in measured:
        flops = line["tokens_per_second"] * line["model_flops_full"] / line["tokens"]
        assert line["mfu_full"] == pytest.approx(flops / 1e15)
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    # Steps 5, 10 and 15 begin the second, third and fourth quarter.
    halvings = [1] * 4 + [0.5] * 5 + [0.25] * 5 + [0.125] * 6
    expected = [3e-3] * 20 if name == "lion" else [1e-2 * part for part in halvings]
    assert rates == pytest.approx(expected, rel=1e-6)


def test_a_teams_metric_is_in_the_evaluation_lines(home, call, capsys):
    folder = home / "measured"
    call("train", LION + WORST_ROW, *folders(home, "measured"))
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if "eval/legal/loss" in line]
    assert [line["step"] for line in evaluations] == [0, 20]
    for line in evaluations:
        for source in ("legal", "general"):
            # A maximum of rows is above their mean, and a row of 32 tokens not far above it.
            excess = line[f"eval/{source}/worst_row"] - line[f"eval/{source}/loss"]
            assert 0 < excess < 2

    (home / "evaluate.gin").write_text("import tests.my_team\nevaluate.metrics = [@WorstRow()]\n")
    flags = ["--gin_file=evaluate.gin", f"--model_dir={folder}", "--eval_tokens=2000"]
    flags.append(f"--cache_dir={home / 'stores'}")
    assert main(["evaluate", *flags, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert main(["evaluate", *flags]) == 0
    printed = capsys.readouterr().out
    assert "worst_row" in printed
    for source in ("legal", "general"):
        key = f"eval/{source}/worst_row"
        assert result[key] == pytest.approx(evaluations[-1][key], rel=1e-5)
        assert f"{result[key]:.4g}" in printed

    page = write_report([folder], home / "report.html").read_text()
    assert "Held-out text, worst_row" in page


@pytest.mark.parametrize(
    ("metrics", "name"),
    [
        ("[@WorstRow(), @again/WorstRow()]", "worst_row"),
        ("[@WorstRow()]\nWorstRow.name = 'loss'", "loss"),
    ],
)
def test_two_metrics_of_one_name_are_refused_before_training(
    metrics, name, home, monkeypatch, capsys
):
    monkeypatch.chdir(home)
    (home / "run.gin").write_text(f"{CONFIG}{LION}train.metrics = {metrics}\n")
    assert main(["train", "--gin_file=run.gin", *folders(home, "twice")]) == 2
    assert f"{name!r} is the name of two figures" in capsys.readouterr().err
    assert not (home / "twice").exists()
    gin.clear_config()


def test_compile_agrees_with_the_formula(call):
    report = call("compile", LION)
    assert report["hlo_flops_error"] == pytest.approx(0, abs=1e-9)
    assert report["unknown_loops"] == []
    sizes = report["bytes_per_chip"]
    # One float32 moment, and the steps that Lion and the run count.
    assert sizes["parameters"] <= sizes["optimizer"] <= sizes["parameters"] + 16


def test_plan_takes_a_teams_feed_forward(home, call, monkeypatch, capsys):
    monkeypatch.chdir(home)
    (home / "plan.gin").write_text(
        "include 'gin_configs/models/llama_1b.gin'\n"
        "plan.architecture = @Architecture()\n"
        f"Architecture.feed_forward = '{GEGLU}'\n"
    )
    status = main(["plan", "--gin_file=plan.gin", "--chip=v5e", "--days=3", "--chips=16", "--json"])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert GEGLU in printed.out
    gin.clear_config()
