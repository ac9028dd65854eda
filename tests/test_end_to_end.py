"""The whole way on the command line, in processes of their own, as a user goes it."""

import gzip
import itertools
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from t5x_style.commands.main import main
from t5x_style.files import OWNER_FILE, owned
from tests import warm
from tests.conftest import WITHOUT_PROGRAM_CACHE

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = """
include 'gin_configs/runs/pretrain.gin'
include 'gin_configs/mixtures/legal_general.gin'
include 'gin_configs/models/quickstart_500k.gin'
include 'gin_configs/optimizers/adamw.gin'
include 'gin_configs/topologies/cpu.gin'

VOCAB_SIZE = 512
TOKENIZER = 'vocabulary.model'
CACHE_DIR = 'stores'
MODEL_DIR = 'run'
TASK_FEATURE_LENGTHS = {'targets': 32}
BATCH_SIZE = 16
TRAIN_STEPS = 20
COMPUTE_DTYPE = 'float32'
LEARNING_RATE = 1e-2
WARMUP_TOKENS = 1_000
LOG_PERIOD = 1
EVAL_PERIOD = 10
CHECKPOINT_PERIOD = 10
SHARES = {'legal': 0.51, 'general': 0.49}

Architecture.layers = 1
Architecture.d_model = 32
Architecture.d_ff = 64
legal/Source.splits = {'train': ['legal.jsonl'], 'validation': 'legal.held.jsonl'}
general/Source.splits = {'train': 'general.jsonl', 'validation': 'general.held.jsonl'}
Corpus.mixtures = {'legal_51_general_49': %SHARES}
train.eval_tokens = 2000
"""

# Runs the command, then tells which of the heavy libraries this process has loaded.
PROGRAM = """
import sys
from t5x_style.commands.main import main
from tests.conftest import WITHOUT_PROGRAM_CACHE
status = main(sys.argv[1:])
heavy = sorted({name.split('.')[0] for name in sys.modules} & {'tensorflow', 'torch', 'seqio'})
print('loaded:', *heavy, file=sys.stderr)
sys.exit(status)
"""


ENVIRONMENT = {**os.environ, **WITHOUT_PROGRAM_CACHE, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}


def run(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    done = warm.run(["-c", PROGRAM, *arguments], cwd=folder, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def here(finished, monkeypatch, capsys):
    """The command line in this process, in the folder of the finished run: status, out, err."""
    monkeypatch.chdir(finished[0])

    def call(*arguments: str) -> tuple[int, str, str]:
        status = main(list(arguments))
        return status, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "run.gin").write_text(CONFIG)
    for name in ("legal", "general"):
        with gzip.open(ROOT / f"t5x_style/data/corpora/{name}.train.jsonl.gz", "rt") as corpus:
            documents = [json.loads(line)["text"][:2000] for line in itertools.islice(corpus, 110)]
        lines = [json.dumps({"id": str(i), "text": text}) for i, text in enumerate(documents)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines[:100]))
        (folder / f"{name}.held.jsonl").write_text("\n".join(lines[100:]))
    run(folder, "tokenizer", "--gin_file=run.gin")
    return folder


@pytest.fixture(scope="module")
def finished(trained) -> tuple[pathlib.Path, subprocess.CompletedProcess]:
    # A new interpreter, as a user starts it, so that what it loads can be seen.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "train", "--gin_file=run.gin", "--json"],
        cwd=trained,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return trained, done


def test_training_never_loads_tensorflow_and_ends_with_the_audit(finished):
    folder, done = finished
    assert done.stderr.rstrip().endswith("loaded:")
    result = json.loads(done.stdout)
    line = result["line"]
    assert line["step"] == 20
    assert line["tokens"] == 20 * 16 * 32
    assert abs(line["tokens/legal"] - 0.51 * line["tokens"]) <= 32
    assert line["chinchilla/besiroglu/compute_efficiency"] > 0
    assert line["model_flops_6nd"] > 0
    evaluations = [
        json.loads(text)
        for text in (folder / "run" / "metrics.jsonl").read_text().splitlines()
        if "eval/legal/loss" in text
    ]
    assert [item["step"] for item in evaluations] == [0, 10, 20]
    for source in ("legal", "general"):
        first, last = (
            item[f"eval/{source}/bits_per_byte"] for item in (evaluations[0], evaluations[-1])
        )
        assert last < first
        assert math.isfinite(last)
    assert sorted(path.name for path in (folder / "run").iterdir()) == [
        ".alive", "checkpoint_10", "checkpoint_20", "config.gin", "eval", "events.jsonl",
        "metrics.jsonl", "plan.json", "train", "vocabulary.model",
        "vocabulary.model.made_from.json",
    ]  # fmt: skip


def test_config_gin_alone_starts_the_same_run(finished):
    folder, done = finished
    alone = run(folder, "train", "--gin_file=run/config.gin", "--gin.MODEL_DIR=again", "--json")
    assert json.loads(alone.stdout)["line"]["loss"] == json.loads(done.stdout)["line"]["loss"]
    before, after = ((folder / name / "config.gin").read_text() for name in ("run", "again"))
    assert after == before.replace(f"'{folder}/run'", f"'{folder}/again'")
    assert f"'{folder}/legal.jsonl'" in before, "its paths are absolute"


EVERYTHING = (
    "--gin.Corpus.duplicates=@Duplicates()",
    "--gin.Corpus.contamination=@Contamination()",
    # In this order the first of two equal documents is another one than in that of the letters.
    "--gin.SHARES={'legal': 0.3, 'general': 0.7}",
    "--gin.TASK_FEATURE_LENGTHS={'targets': [(16, 2_000), (32, None)]}",
    "--gin.BATCH_SIZE=[(8, 1_000), (16, None)]",
    "--gin.Packing.windows=document_starts",
    "--gin.Packing.attend_across_documents=False",
    "--gin.EARLY_STOPPING=@EarlyStopping()",
    "--gin.EarlyStopping.patience_tokens=100_000",
    "--gin.train.max_epochs={'legal': 1e999, 'general': 40}",
    "--gin.AT_CAP=repeat",
    "--gin.legal/Source.filters=[@Length()]",
    "--gin.Length.min_characters=3",
)


def test_a_run_with_everything_is_trained_again_from_its_config_gin(trained, tmp_path):
    """Alone, and from another folder: the same stores, and the same losses to the last digit."""
    flags = ("--gin.MODEL_DIR=all", "--gin.CACHE_DIR=all_stores", *EVERYTHING, "--json")
    first = json.loads(run(trained, "train", "--gin_file=run.gin", *flags).stdout)
    stores = sorted((trained / "all_stores").iterdir())
    config = f"--gin_file={trained}/all/config.gin"
    again = json.loads(run(tmp_path, "train", config, "--gin.MODEL_DIR=again", "--json").stdout)
    assert again["line"]["loss"] == first["line"]["loss"]
    assert again["evaluation"]["eval/legal/loss"] == first["evaluation"]["eval/legal/loss"]
    assert sorted((trained / "all_stores").iterdir()) == stores, "nothing is built again"
    resumed = json.loads(run(tmp_path, "train", config, "--json").stdout)
    assert resumed["resumed_from"] == first["line"]["step"], "the same run, and finished"


def test_started_again_it_says_that_it_is_finished(here):
    status, out, _ = here("train", "--gin_file=run.gin")
    assert status == 0
    assert "is finished: 20 steps" in out


def test_a_run_that_another_process_owns_is_read_and_not_written(finished, here):
    run_files = {path: path.stat().st_mtime_ns for path in (finished[0] / "run").iterdir()}
    with owned(finished[0] / "run" / OWNER_FILE, "another start"):
        status, _, errors = here("train", "--gin_file=run.gin", "--gin.CACHE_DIR=nowhere")
        assert status == 2
        assert f"MODEL_DIR = run is in use by process {os.getpid()} on host " in errors
        assert not (finished[0] / "nowhere").exists(), "refused before any work"
        for verb in (
            ["train", "--gin_file=run.gin"],
            ["evaluate", "--model_dir=run", "--cache_dir=stores"],
            ["generate", "--model_dir=run"],
            ["report", "--model_dirs=run"],
        ):
            assert here(*verb, "--dry_run")[0] == 0, verb
    assert {path: path.stat().st_mtime_ns for path in (finished[0] / "run").iterdir()} == run_files


def test_another_architecture_in_the_same_folder_is_refused(here):
    status, _, errors = here("train", "--gin_file=run.gin", "--gin.Architecture.layers=2")
    assert status == 2
    assert "architecture.layers: 1 there, 2 asked for" in errors


# A run, and where its stores are.
RUN = ("--model_dir=run", "--cache_dir=stores")


def test_evaluate_gives_what_training_measured(finished, here):
    status, out, _ = here("evaluate", *RUN, "--eval_tokens=2000", "--json")
    assert status == 0
    again = json.loads(out)
    measured = json.loads(finished[1].stdout)["evaluation"]
    for key in ("eval/legal/loss", "eval/general/bits_per_byte"):
        assert again[key] == pytest.approx(measured[key], rel=1e-5)


def test_evaluate_refuses_a_batch_that_the_mesh_does_not_divide(finished, here):
    mesh = ["--gin.evaluate.topology=@Topology()", "--gin.Topology.data=8", "--dry_run"]
    assert here("evaluate", *RUN, "--batch_size=16", *mesh)[0] == 0
    status, _, errors = here("evaluate", *RUN, "--batch_size=12", *mesh)
    assert status == 2
    assert "the batch = 12 is not a multiple of the mesh's data x fsdp = 8" in errors


def test_generate_draws_the_same_text_from_the_same_seed(here):
    def texts(*more: str) -> list[str]:
        status, out, errors = here(
            "generate", "--model_dir=run", "--prompt=the licensee", "--samples=2",
            "--max_tokens=12", "--json", *more,
        )  # fmt: skip
        assert status == 0, errors
        return json.loads(out)["texts"]

    one = texts()
    assert one == texts()
    assert one[0] != one[1]
    greedy = texts("--temperature=0")
    assert greedy[0] == greedy[1]


def test_a_copied_run_is_read_on_another_machine(finished, tmp_path, monkeypatch, capsys):
    """It has its own vocabulary. The original one is gone, and so is the folder of the start."""
    folder = finished[0]
    shutil.copytree(folder / "run", tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    (folder / "vocabulary.model").rename(folder / "away")
    try:
        assert main(["generate", "--model_dir=copy", "--max_tokens=4"]) == 0
        assert main(["report", "--model_dirs=copy"]) == 0
        capsys.readouterr()
        assert main(["evaluate", "--model_dir=copy"]) == 2
        stores = f"--cache_dir={folder / 'stores'}"
        assert stores in capsys.readouterr().err
        evaluate = ["evaluate", "--model_dir=copy", stores]
        assert main([*evaluate, "--eval_tokens=2000", "--json"]) == 0
        again, measured = capsys.readouterr().out, json.loads(finished[1].stdout)["evaluation"]
        loss = "eval/legal/loss"
        assert json.loads(again)[loss] == pytest.approx(measured[loss], rel=1e-5)
        (folder / "stores").rename(folder / "stores_away")
        assert main(evaluate) == 2
        assert "the validation store of 'legal', " in capsys.readouterr().err
    finally:
        (folder / "away").rename(folder / "vocabulary.model")
        if (folder / "stores_away").exists():
            (folder / "stores_away").rename(folder / "stores")
    names = {line.split('"')[3] for line in (tmp_path / "copy/plan.json").read_text().splitlines()
             if line.strip().startswith('"path"')}  # fmt: skip
    assert names == {"vocabulary.model"}
    copied = (folder / "run" / "vocabulary.model").read_bytes()
    assert copied == (folder / "vocabulary.model").read_bytes()


def test_another_vocabulary_is_refused_at_a_restart(finished, here):
    folder = finished[0]
    original = (folder / "vocabulary.model").read_bytes()
    # A vocabulary of the same size, trained with another seed.
    assert here("tokenizer", "--gin_file=run.gin", "--seed=5")[0] == 0
    try:
        assert (folder / "vocabulary.model").read_bytes() != original
        status, _, errors = here("train", "--gin_file=run/config.gin")
        assert status == 2
        assert "tokenizer: the vocabulary is another than there" in errors
        # MODEL_DIR and all else are as they were.
        assert "no setting differs from the last start: a file that the sources or the" in errors
    finally:
        (folder / "vocabulary.model").write_bytes(original)


def test_dry_run_writes_nothing(finished, here):
    status, out, _ = here("train", "--gin_file=run.gin", "--gin.MODEL_DIR=dry", "--dry_run")
    assert status == 0
    assert "parameters" in out
    assert "optimum, besiroglu" in out
    assert not (finished[0] / "dry").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--gin.LERNING_RATE=0.1", "LEARNING_RATE"),
        ("--gin.LEARNING_RATE=fast", "fast"),
        ("--gin.MIXTURE_OR_TASK_NAME=legal_51_genral_49", "legal_51_general_49"),
        ("--gin.TASK_FEATURE_LENGTHS={'target': 32}", "'targets'"),
        ("--gin.COMPUTE_DTYPE=bfloat", "bfloat16"),
        ("--gin.Topology.kernel=blokwise", "blockwise"),
        ("--gin.Topology.chip=v5q", "v5p"),
        ("--gin.Topology.data=16", "devices"),
        ("--gin.BATCH_SIZE=0", "must be positive"),
        ("--gin.WARMUP_TOKENS=1_000_000", "warm-up"),
        ("--gin.Schedule.shape=cosin", "cosine"),
        ("--gin.train.max_epochs=0.001", "max_epochs"),
    ],
)
def test_mistakes_end_before_any_work(flag, message, finished, here):
    status, _, errors = here("train", "--gin_file=run.gin", "--gin.MODEL_DIR=bad", flag)
    assert status == 2, errors
    assert message in errors
    assert not (finished[0] / "bad").exists()


def test_a_plan_becomes_the_run_that_it_promised(trained):
    """FLOPs planned and FLOPs in the ledger of the run, within 0.1 %; the file needs no edit."""
    (trained / "mixture.gin").write_text(
        "include 'gin_configs/mixtures/legal_general.gin'\n"
        "TOKENIZER = 'vocabulary.model'\nCACHE_DIR = 'stores'\n"
        "legal/Source.splits = {'train': 'legal.jsonl', 'validation': 'legal.held.jsonl'}\n"
        "general/Source.splits = {'train': 'general.jsonl', 'validation': 'general.held.jsonl'}\n"
        "train.eval_tokens = 2000\n"
    )
    described = json.loads(run(trained, "cache", "--gin_file=mixture.gin", "--json").stdout)
    stores = [store for store in described["stores"] if store["split"] == "train"]
    sizes = {store["source"]: store["tokens"] for store in stores}
    planned = json.loads(
        run(
            trained, "plan", "--flops=4e10", "--law=hoffmann", "--vocab_size=512", "--json",
            "--sequence_length=32", f"--unique_tokens={sizes}", "--max_epochs=20",
            "--shares={'legal': 0.95, 'general': 0.05}", "--write=plan.gin",
        ).stdout
    )  # fmt: skip
    done = json.loads(
        run(
            trained, "train", "--gin_file=mixture.gin", "--gin_file=plan.gin",
            "--gin_file=gin_configs/topologies/cpu.gin", "--gin.COMPUTE_DTYPE='float32'",
            "--gin.MODEL_DIR='planned'", "--json",
        ).stdout
    )  # fmt: skip
    line, chosen = done["line"], planned["chosen"]
    assert line["tokens"] == planned["recipe"]["tokens"]
    assert line["model_flops_6nd"] == pytest.approx(chosen["flops"], rel=1e-3)
    assert line["model_flops_full"] == pytest.approx(planned["training_flops"]["full"], rel=1e-3)
    # What is read again counts for less, by the same decay in the plan and in the audit.
    assert max(source["epochs"] for source in planned["sources"].values()) > 1.5
    assert chosen["effective_tokens"] < 0.999 * chosen["tokens"]
    assert line["effective_tokens"] == pytest.approx(chosen["effective_tokens"], rel=1e-3)
    assert line["chinchilla/hoffmann/expected_loss"] == pytest.approx(chosen["loss"], rel=1e-4)
    assert line["chinchilla/hoffmann/compute_efficiency"] == pytest.approx(
        chosen["efficiency"], rel=1e-3
    )
    for name, source in planned["sources"].items():
        assert line[f"tokens/{name}"] == pytest.approx(source["tokens"], abs=32)
        assert line[f"epochs/{name}"] == pytest.approx(source["epochs"], rel=0.01)
