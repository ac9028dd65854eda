"""The exit statuses and the channels of the command line, and what start-up may cost."""

import inspect
import json
import os
import runpy
import subprocess
import sys

import pytest

from t5x_style.commands import main as main_module


def test_a_verb_returns_its_result_as_json_and_speaks_on_standard_error(run_toy):
    status, result, err = run_toy()
    assert status == 0
    assert result["model"] == {"width": 8, "layers": 2, "kind": "rope", "dropout": 0.0}
    assert result["optimizer"]["learning_rate"] == 1e-3
    assert result["steps"] == 20
    assert result["dry_run"] is False
    assert "printed for people" in err


def test_dry_run_reaches_the_verb(run_toy):
    assert run_toy("--dry_run")[1]["dry_run"] is True
    assert run_toy("--dry_run=false")[1]["dry_run"] is False
    status, _, err = run_toy("--gin.toy.dry_run=True")
    assert status == 2
    assert "the caller of toy sets dry_run itself" in err


@pytest.mark.parametrize(
    ("raises", "status", "last"),
    [
        ("fault", 1, "error: the disk is full"),
        ("again", 75, "error: process 1 of 2 was lost"),
        ("preempted", 143, "preempted: saved at step 3"),
        ("interrupt", 130, "interrupted"),
        ("bug", 1, "error: ZeroDivisionError: division by zero"),
    ],
)
def test_exit_statuses(run_toy, raises, status, last):
    got, result, err = run_toy(f"--raises={raises}")
    assert (got, result) == (status, None)
    assert err.strip().splitlines()[-1] == last
    assert ("Traceback" in err) == (raises == "bug")


@pytest.mark.parametrize("status", [0, 1, 2, 75, 130, 143])
def test_a_process_ends_with_the_status_of_its_command(monkeypatch, status):
    monkeypatch.setattr(main_module, "main", lambda: status)
    with pytest.raises(SystemExit) as end:
        runpy.run_module("t5x_style", run_name="__main__")
    assert end.value.code == status


# What a command does if nothing is said about it.
DEFAULTS = {
    "plan": {"max_epochs": 4.0, "past_forty_epochs": False, "sequence_length": 2048},
    "tokenizer": {
        "vocab_size": 4096, "vocab_sizes": (), "round_to": 1, "model_type": "unigram",
        "spaces_inside_words": False, "text_symbols": (), "control_symbols": (),
        "added_terms": (), "sample_bytes": 4_000_000, "seed": 0, "compare": (), "terms": (),
    },
    "cache": {"describe": False, "verify": False, "prune": False, "model_dirs": ()},
    "compile": {
        "compute_dtype": "bfloat16", "z_loss": 0.0, "sources": 1, "eos_id": 1, "search": False,
        "search_minutes": 30.0,
    },
    "train": {
        "compute_dtype": "bfloat16", "z_loss": 0.0, "seed": 0, "max_epochs": 40.0,
        "at_cap": "refuse", "allow_blend_change": False, "log_period": 10, "eval_period": 1000,
        "checkpoint_period": 1000, "keep_checkpoints": 3, "save_patience": 1800.0,
        "save_timeout": 600.0, "from_scratch": False, "skip_steps": (), "metrics": (),
    },
    "evaluate": {"batch_size": 16, "metrics": ()},
    "generate": {
        "prompt": "", "samples": 1, "max_tokens": 128, "temperature": 0.8, "top_p": 0.95, "seed": 0,
    },
    "export": {},
    "sweep": {"concurrent_trials": 1},
    "fit": {"loss": "blended", "drop_highest": 0, "name": "own", "bootstrap": 4000, "seed": 0},
    "report": {},
    "compare": {"tolerance": 0.0},
    "config": {},
}  # fmt: skip


@pytest.mark.parametrize("verb", main_module.VERBS)
def test_the_defaults_of_a_verb(verb):
    """A parameter that is not listed has none, or is left to the verb (None)."""
    function = getattr(main_module.verb_module(verb), verb)
    defaults = {name: item.default for name, item in inspect.signature(function).parameters.items()}
    assert defaults.pop("dry_run") is False
    given = {
        k: v for k, v in defaults.items() if v is not None and v is not inspect.Parameter.empty
    }
    assert given == DEFAULTS[verb]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["tyo"], "'tyo' is not a verb; did you mean 'toy'?"),
        (["toy", "--stps=3"], "unknown flag --stps; did you mean --steps?"),
        (["toy", "--dry-run"], "unknown flag --dry-run; did you mean --dry_run?"),
        (["toy", "--MODEL_DIR=/x"], "did you mean --gin.MODEL_DIR=/x?"),
        (["toy", "--ToyModel.width=8"], "did you mean --gin.ToyModel.width=8?"),
        (["toy", "run.gin"], "did you mean --gin_file=run.gin?"),
        (["toy", "--gin_file"], "--gin_file needs a value"),
        (["toy", "--gin_file=nosuch.gin"], "--gin_file=nosuch.gin: no gin file 'nosuch.gin'"),
        (["toy", "--json=maybe"], "--json=maybe: write --json alone"),
        (["toy", "--gin_file=gs://b/x.gin"], "--gin_file = 'gs://b/x.gin': gs:// is not a file"),
        (["toy", "--gin_search_paths=a,gs://b"], "--gin_search_paths = 'gs://b': gs:// is not a"),
        (["toy", "--gin.MODEL_DIR"], "--gin.MODEL_DIR: a value is missing"),
        (["toy", "--gin.MODEL_DIR="], "an empty string is --gin.MODEL_DIR=\"''\""),
        (["toy", "--gin.=3"], "a name is missing"),
    ],
)
def test_mistyped_command_lines(toy, capsys, arguments, fragment):
    assert main_module.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert fragment in captured.err


def test_overview_names_every_verb_and_its_absence_is_a_mistake(capsys):
    assert main_module.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for verb in main_module.VERBS:
        assert f"\n  {verb} " in shown
    assert main_module.main([]) == 2


@pytest.mark.parametrize("verb", sorted(set(main_module.VERBS) - {"config"}))
def test_every_verb_refuses_what_nothing_reads_before_anything_else(verb, monkeypatch):
    from t5x_style.config.help import signature_of

    class Refused(Exception):
        pass

    def refuse():
        raise Refused

    module = main_module.verb_module(verb)
    monkeypatch.setattr(module, "refuse_unconsumed", refuse)
    with pytest.raises(Refused):
        getattr(module, verb)(**dict.fromkeys(signature_of(getattr(module, verb))))


def test_a_result_in_json_leaves_no_file_open(run_toy):
    run_toy()
    before = os.listdir("/proc/self/fd")
    assert run_toy()[0] == 0
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("verb", main_module.VERBS)
def test_every_verb_documents_every_parameter(verb, capsys):
    from t5x_style.config.help import parameter_docs, signature_of

    module = main_module.verb_module(verb)
    function = getattr(module, verb)
    assert isinstance(module.CONFIGURABLES, tuple)
    parameters = dict(signature_of(function))
    assert parameters.pop("dry_run").default is False
    assert set(parameters) <= set(parameter_docs(function))
    assert main_module.main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    for name in parameters:
        assert f"  --{name} (" in shown


def test_json_has_no_number_that_json_has_not():
    text = main_module.as_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": (1, None, True)})
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": [1, None, True]}
    np = pytest.importorskip("numpy")
    assert main_module.as_json({"n": np.float32(0.5), "i": np.int64(3)}) == '{"n": 0.5, "i": 3}'


def _cpu_seconds(*arguments: str) -> float:
    """CPU seconds of the cheapest of a few starts: a busy machine must not count."""
    seconds = [float("inf")]
    for _ in range(5):
        if min(seconds) < 0.25:
            break
        process = subprocess.Popen(
            [sys.executable, "-m", "t5x_style", *arguments], stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        seconds.append(usage.ru_utime + usage.ru_stime)
    return min(seconds)


def test_help_is_quick():
    assert _cpu_seconds("--help") < 0.3
    for verb in main_module.VERBS:
        assert _cpu_seconds(verb, "--help") < 0.6, verb


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from t5x_style.commands.main import main; main(['train', '--help']);"
        "print(sorted({'jax', 'tensorflow', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m t5x_style --help | head -1"
    shown = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("usage")
    assert "Traceback" not in shown.stderr


def test_json_keeps_what_child_processes_print_off_standard_output(toy, monkeypatch, capfd):
    monkeypatch.setattr(
        main_module, "_call", lambda *arguments: os.system("echo from a child") or {"a": 1}
    )
    assert main_module.main(["toy", "--json"]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out) == {"a": 1}
    assert "from a child" in captured.err
