"""No verb writes over a file that it did not make, and each replaces its own."""

import json
import pathlib

import pytest

from t5x_style.__main__ import main
from t5x_style.files import OWNER_FILE
from tests.plans import made_up_plan, write_plan

BUDGET = ("--flops=1e18", "--unique_tokens={'legal': 2e9}")
COMPILE = (
    "compile",
    "--gin_file=gin_configs/runs/pretrain.gin",
    "--gin_file=gin_configs/models/quickstart_500k.gin",
    "--gin_file=gin_configs/optimizers/adamw.gin",
    "--gin.TASK_FEATURE_LENGTHS={'targets': 16}",
    "--gin.BATCH_SIZE=8",
    "--gin.TRAIN_STEPS=20",
    "--gin.LEARNING_RATE=1e-3",
    "--gin.WARMUP_TOKENS=100",
    "--gin.VOCAB_SIZE=64",
)
# Verb -> (name of the file that it writes, its command line).
WRITES = {
    "plan": ("plan.gin", ("plan", *BUDGET, "--write={}")),
    "svg": ("plan.svg", ("plan", *BUDGET, "--figure={}")),
    "png": ("plan.png", ("plan", *BUDGET, "--figure={}")),
    "page": ("plan.html", ("plan", *BUDGET, "--figure={}")),
    "preset": ("a.svg", ("plan", "--preset=bloomberggpt", "--figure={}")),
    "fit": ("law.json", ("fit", "--points=points.csv", "--bootstrap=0", "--output={}")),
    "report": ("page.html", ("report", "--model_dirs=run", "--output={}")),
    "compile": ("program.txt", (*COMPILE, "--keep_hlo={}")),
}
# A user's own file may talk of the verb that writes such files.
FOREIGN = "# my own file; t5x-style plan --write=plan.gin writes another\n"


@pytest.fixture
def here(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    points = [(n, d, 1.7 + 400 / n**0.34 + 400 / d**0.28) for n in (1e6, 1e7, 1e8)
              for d in (1e8, 1e9, 1e10)]  # fmt: skip
    lines = ["params,tokens,loss", *(",".join(map(repr, point)) for point in points)]
    pathlib.Path("points.csv").write_text("\n".join(lines))
    run = pathlib.Path("run")
    run.mkdir()
    write_plan(run, made_up_plan({"legal": 1.0}))
    (run / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "tokens": 10, "time": 0.0, "loss": 2.0}) + "\n"
    )
    return tmp_path


@pytest.mark.parametrize("verb", WRITES)
def test_a_file_of_somebody_else_stays_and_an_own_one_is_replaced(verb, here, capsys):
    name, arguments = WRITES[verb]
    command = [argument.replace("{}", name) for argument in arguments]
    file = here / name
    file.write_text(FOREIGN)
    assert main(command) == 2
    captured = capsys.readouterr()
    flag = arguments[-1].partition("=")[0]
    assert f"{flag}={name} is there and was not written by t5x-style" in captured.err
    assert captured.out == "", "refused before any work"
    assert file.read_text() == FOREIGN
    file.unlink()
    assert main(command) == 0
    written = file.read_bytes()
    file.write_bytes(written + b"\n")  # an own file of another time
    assert main(command) == 0
    assert file.read_bytes() != written + b"\n"


def test_a_search_of_layouts_refuses_before_it_compiles(here, capsys):
    (here / "layout.gin").write_text(FOREIGN)
    chip = ("--gin.Topology.chip=v5e", "--gin.Topology.slice=2x2")
    assert main([*COMPILE, *chip, "--search", "--write=layout.gin"]) == 2
    assert "--write=layout.gin is there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.gin", "include 'gin_configs/runs/quickstart.gin'\n"),
        ("metrics.jsonl", '{"epoch": 1}\n'),
        ("events.jsonl", '{"what": 1}\n'),
        ("vocabulary.model", "somebody's"),
        ("plan.json", '{"plan": "of the house"}'),
        ("plan.json", "no JSON"),
    ],
)
def test_a_run_begins_in_no_folder_with_files_of_its_names(name, content, here, capsys):
    """Say the folder of the user's own config.gin: MODEL_DIR=. would have replaced it."""
    folder = here / "mine"
    folder.mkdir()
    (folder / name).write_text(content)
    flags = ("--gin_file=gin_configs/runs/quickstart.gin", "--gin.MODEL_DIR=mine")
    for dry in ((), ("--dry_run",)):
        assert main(["train", *flags, *dry]) == 2
        error = capsys.readouterr().err
        assert f"MODEL_DIR = mine has {name}" in error
        assert "not written by a run" in error
    assert {file.name: file.read_text() for file in folder.iterdir()} == {name: content}
    assert not (here / "runs").exists(), "refused before any work"


def test_what_a_kill_left_of_the_first_start_is_the_run_s_own(here, capsys):
    """An empty file, a lock and a plan.json are the first that a start writes."""
    for names in (("metrics.jsonl", OWNER_FILE), ("plan.json", "config.gin", "vocabulary.model")):
        folder = here / names[0].partition(".")[0]
        folder.mkdir()
        for name in names:
            (folder / name).write_text("")
        if "plan.json" in names:
            write_plan(folder, made_up_plan({"legal": 1.0}))
        flags = ("--gin_file=gin_configs/runs/quickstart.gin", f"--gin.MODEL_DIR={folder.name}")
        assert main(["train", *flags, "--dry_run"]) == 2
        assert "no such file; train one with" in capsys.readouterr().err
