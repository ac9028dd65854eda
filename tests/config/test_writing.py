"""A layout's gin file and a plan's, read back."""

import ast
import dataclasses
import json
import re

import pytest

from t5x_style.accounting import Architecture, Topology
from t5x_style.commands.main import load_named, main
from t5x_style.config import checks
from t5x_style.config.writing import check_target, layout_gin
from t5x_style.errors import UsageError


def test_what_is_written_is_read_back(tmp_path):
    topology = Topology(
        chip="v5p",
        slice="4x4x4",
        data=4,
        fsdp=16,
        remat="full",
        compiler_flags={"xla_a": "true", "xla_b": "1"},
    )
    path = tmp_path / "layout.gin"
    path.write_text(layout_gin(topology, "said\nof it"))
    assert "# said\n# of it\n" in path.read_text()
    checks.parse(["gin_configs/runs/pretrain.gin", str(path)], load=load_named)
    assert Topology() == topology
    # Microbatches are a part of the layout, too.
    assert "\nMICROBATCHES = 4\n" in layout_gin(dataclasses.replace(topology, microbatches=4), "")


def test_it_holds_behind_files_that_say_otherwise(tmp_path):
    before = Topology(
        data=2, fsdp=8, tensor=2, remat="full", microbatches=8, compiler_flags={"xla_a": "true"}
    )
    topology = Topology(fsdp=32)
    paths = tmp_path / "before.gin", tmp_path / "layout.gin"
    for path, text in zip(paths, (layout_gin(before, ""), layout_gin(topology, "")), strict=True):
        path.write_text(text)
    files = ["gin_configs/runs/pretrain.gin", *map(str, paths)]
    checks.parse(files, load=load_named)
    assert Topology() == topology
    assert "MICROBATCHES = 1\n" in text


BUDGETS = {
    "chips": (
        "--chip=v5e",
        "--chips=16",
        "--days=3",
        "--unique_tokens={'legal': 2e9, 'web': 3e10}",
    ),
    "flops": ("--flops=1e22", "--unique_tokens={'legal': 2e9}"),
    "cpu": ("--cpu_minutes=1",),
}


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_plan_s_file_has_the_values_that_the_plan_prints(budget, tmp_path, capsys):
    path = tmp_path / "plan.gin"
    assert main(["plan", *BUDGETS[budget], f"--write={path}", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    written = dict(re.findall(r"^([\w.]+) = (.*?)(?:  # .*)?$", path.read_text(), re.MULTILINE))
    bound = {name: ast.literal_eval(text) for name, text in written.items() if text[0] != "%"}
    recipe, period = plan["recipe"], plan["checkpoints"]["period"]
    expected = {
        "TASK_FEATURE_LENGTHS": {"targets": recipe["sequence_length"]},
        "BATCH_SIZE": recipe["batch_sequences"],
        "TRAIN_TOKENS": recipe["tokens"],
        "LEARNING_RATE": recipe["learning_rate"],
        "WARMUP_TOKENS": recipe["warmup_tokens"],
        "LOG_PERIOD": max(10, recipe["steps"] // 10_000),
        # Evaluated twice for each checkpoint.
        "EVAL_PERIOD": period // 2,
        "CHECKPOINT_PERIOD": period,
        "Schedule.final_fraction": 0.1,
        "VOCAB_SIZE": plan["architecture"]["vocab_size"],
    }
    if budget != "cpu":
        shares = {name: source["share"] for name, source in plan["sources"].items()}
        expected |= {"Corpus.mixtures": {"planned": shares}, "train.max_epochs": 4.0}
        expected["MIXTURE_OR_TASK_NAME"] = "planned"
    if budget == "chips":
        best = plan["meshes"][0]
        expected |= {f"Topology.{axis}": size for axis, size in best["mesh"].items()}
        expected |= {"Topology.chip": "v5e", "Topology.remat": best["remat"]}
        expected["MICROBATCHES"] = best["microbatches"]
        # The plan's JSON has no kernel and no chunks of the loss.
        assert bound.pop("Topology.kernel") in ("flash", "blockwise")
        assert bound.pop("Topology.loss_chunk_tokens") > 0
    if budget == "cpu":
        expected["COMPUTE_DTYPE"] = "float32"
    others = {name: value for name, value in bound.items() if "Architecture." not in name}
    assert others == expected
    text = path.read_text()
    assert ("include 'gin_configs/topologies/cpu.gin'" in text) == (budget == "cpu")
    assert ("does not know its chips" in text) == (budget == "flops")
    checks.parse([str(path)], load=load_named)
    assert dataclasses.asdict(Architecture()) == plan["architecture"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plan.txt", r"--write=.*plan\.txt: name a gin file, as in --write=plan\.gin"),
        ("none/plan.gin", r"--write=.*none/plan\.gin: no folder .*none$"),
        ("gs://b/plan.gin", r"--write = 'gs://b/plan\.gin': gs:// is not a"),
    ],
)
def test_where_a_plan_cannot_be_written(name, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        check_target(name if "://" in name else f"{tmp_path}/{name}")
    assert check_target(f"{tmp_path}/plan.gin") == tmp_path / "plan.gin"
