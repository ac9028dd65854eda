"""Every script of tools/ runs: in a mode of seconds, its Python in children that start warm."""

import collections
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

from t5x_style.training import train
from tests import warm
from tests.conftest import SLOW_FILES, WITHOUT_PROGRAM_CACHE
from tests.scripts import TOOLS, script
from tests.training.runs import make_run

ROOT = pathlib.Path(__file__).parents[1]
# The programs inside of a script of bash.
PROGRAM = re.compile(r"<<'(PYTHON|E)'\n(.*?)\n\1\n", re.DOTALL)


def program(script: str) -> str:
    """The last Python program inside of a script."""
    return PROGRAM.findall((TOOLS / script).read_text())[-1][1]


def run_program(script: str, *arguments: str, **env: str) -> str:
    """What the program of a script prints."""
    done = warm.run(["-c", program(script), *arguments], env={**os.environ, **env})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_script(script: str, *arguments: str, status: int = 0) -> str:
    """What the script as a whole prints, on both outputs."""
    done = subprocess.run(
        [TOOLS / script, *arguments],
        env={**os.environ, "T5X_STYLE_PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def names_of(script: str) -> dict:
    """The names that the Python of bench_scale defines."""
    names: dict = {}
    exec(program(script).replace("sys.exit(main(sys.argv[1:]))", ""), names)
    return names


@pytest.fixture(scope="module")
def bench_scale() -> dict:
    return names_of("bench_scale")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> str:
    model_dir = tmp_path_factory.mktemp("run")
    train(make_run(model_dir, steps=2, eval_period=1))
    return str(model_dir)


def test_every_script_is_run_here():
    here = pathlib.Path(__file__).read_text()
    # The short mode of quickstart ends .ci/run, and its verdict is run below. The faults have a
    # folder of their own: tests/chaos.
    tested_elsewhere = {"quickstart", "check_claims", "chaos", "soak", "flip_bits"}
    scripts = {path.name for path in TOOLS.iterdir() if path.is_file()} - tested_elsewhere
    assert {script for script in scripts if f'"{script}"' not in here} == set()


@pytest.mark.parametrize("script", sorted(path.name for path in TOOLS.iterdir() if path.is_file()))
def test_a_script_is_executable_and_of_its_language(script):
    path = TOOLS / script
    assert path.stat().st_mode & 0o111, "not executable"
    if "python" in path.read_text().splitlines()[0]:
        compile(path.read_text(), script, "exec")
    else:
        subprocess.run(["bash", "-n", str(path)], check=True)
    for _, text in PROGRAM.findall(path.read_text()):
        compile(text, script, "exec")


def test_the_slow_files_are_there():
    tests = pathlib.Path(__file__).parent
    assert [name for name in SLOW_FILES if not (tests / name).exists()] == []


def test_bench_scale_marks_loops_that_it_could_not_count(bench_scale):
    sizes = {"peak": 2**30, "usable": 2**31}
    report = {
        "bytes_per_chip": sizes,
        "planned_bytes_per_chip": 2**30,
        "unsharded": 0.0,
        "hlo_flops_error": -0.25,
        "estimates": {},
        "unknown_loops": [],
    }
    line = {"row": "toy", "report": report, "seconds": 1.0}
    assert "-25.000%" in bench_scale["cells"](line)
    assert bench_scale["warnings_of"](line) == []
    report["unknown_loops"] = ["while.7"]
    assert "at least -25.000%" in bench_scale["cells"](line)
    assert len(bench_scale["warnings_of"](line)) == 1
    assert bench_scale["warnings_of"](line)[0].endswith("counted once: while.7")


def test_bench_scale_prints_its_commands(bench_scale, capsys):
    assert bench_scale["main"](["--commands"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(bench_scale["ROWS"]) == 10


def test_bench_step():
    assert re.search(r"framework .* ms a step, plain", run_program("bench_step", "--smoke"))


def test_bench_cpu_step():
    assert re.search(r"t5x_style \d.* s a step", run_script("bench_cpu_step", "--smoke"))


def test_bench_reader():
    assert re.search(r"seqio's packed .* times", run_program("bench_reader", "--smoke"))


def test_bench_build():
    printed = run_program("bench_build", MEGABYTES="1", CLEAN="yes")
    assert re.search(r"all cleaning: .* times the CPU seconds", printed)
    assert "seqio is left out of --smoke" in printed
    assert "the build runs at" in printed


def test_check_beam():
    printed = run_program("check_beam", "--smoke")
    assert "files of 4 stores are the same from every engine" in printed
    has_beam = importlib.util.find_spec("apache_beam") is not None
    assert ("only the pool builds" in printed) != has_beam


def test_check_flops():
    printed = run_script("check_flops", "--smoke")
    assert "has no torch and transformers" in printed or " passed" in printed


def test_check_gpu():
    printed = run_script("check_gpu", "--smoke")
    assert re.search(r"\d+ tests collected in", printed)
    # The tests that ask for the compiler, all of which are skipped where it is not.
    file = ROOT / "tests/compiling/test_described_gpus.py"
    asking = re.findall(r"^def (test_\w+)\(.*\bcompiler\b.*\):", file.read_text(), re.MULTILINE)
    assert len(asking) >= 3
    assert [name for name in asking if f"::{name}" not in printed] == []


def test_kernel_cycles():
    """A row of KERNEL_CYCLES is what the compiler makes; a v5p's cores share one sequence."""
    printed = run_program("kernel_cycles", "--smoke")
    has_libtpu = importlib.util.find_spec("libtpu") is not None
    assert ("0 of 1 rows differ from the compiler" in printed) == has_libtpu
    assert ("on one core alone: [] of ['dkv', 'dq', 'fwd']" in printed) == has_libtpu
    assert ("skipped: libtpu is not installed" in printed) != has_libtpu


@pytest.mark.skipif(not (ROOT / ".venv/bin/uv").exists(), reason="there is no .venv with uv")
def test_lock():
    assert "none.txt, 0 pins" in run_script("lock", "--smoke")


def test_readme_chart(finished_run, tmp_path):
    run_program("readme_chart", finished_run, str(tmp_path / "chart.svg"))
    assert "domain, validation" in (tmp_path / "chart.svg").read_text()


def test_the_verdict_of_quickstart(finished_run):
    assert len(run_program("quickstart", finished_run).splitlines()) > 2


def test_setup(tmp_path):
    printed = run_script("setup", "dev", "--check", f"--venv={tmp_path}", status=1)
    assert "is not up to date with requirements/dev.txt: run tools/setup dev" in printed
    for name in ("devel", "tests", "uv"):
        assert f"there is no environment '{name}'" in run_script("setup", name, status=2)


@pytest.mark.skipif(not (ROOT / ".venv/bin/ruff").exists(), reason="there is no .venv with ruff")
def test_test():
    run_script("test", "--smoke")


def test_prose(capsys):
    prose = script("prose")
    text = "# A heading of no weight\n\nOne two `three, four. Five`\nsix. Seven [eight](nine.md).\n"
    text += "\n| A | table |\n\n```\nAnd code.\n```\n- An item\n  of four.\n- Last."
    assert prose.sentences(text) == [(3, 4), (4, 2), (11, 4), (13, 1)]
    text = "- **Bold.** From 0. `Code`\n  begins one. Wu et al. 2023 do not.\n"
    assert prose.sentences(text) == [(1, 1), (1, 2), (1, 3), (2, 6)]
    assert prose.show("a file", [(1, 40), (2, 0)])
    assert not prose.show("a sentence past 40 words", [(1, 41), (2, 0), (3, 0)])
    assert not prose.show("a mean above 20 words", [(1, 21)])
    capsys.readouterr()
    assert prose.main(["--check"]) == 0
    printed = capsys.readouterr().out
    assert "README.md: " in printed
    assert "docs/results/scale.md: " in printed
    assert "docs/log.md" not in printed
    assert "circles of imports: 0" in printed


FAULTY = b'''"""Not 1 of these."""
LIMIT: int = 9
@kept(3)
def f(a: int = 1.5) -> list[2]:
    if a <= LIMIT and not (a is None or a in (7,)):
        f(a * 2 - 1)
    while a:
        break
    if min(a, 0.0) == 4: raise ValueError(f"{a + 1}" + "5")
    return "6" + str(True)
'''


def test_mutate_knows_these_faults():
    found = [
        (fault.line, fault.before, fault.after)
        for fault in script("mutate").faults_of("t5x_style/f.py", FAULTY)
    ]
    assert sorted(found) == [
        *[(2, "9", "10"), (4, "1.5", "1.6500000000000001")],
        *[(5, "7", "8"), (5, "<=", "<"), (5, "and", "or"), (5, "in", "not in")],
        *[(5, "is", "is not"), (5, "not", ""), (5, "or", "and")],
        *[(6, "*", "/"), (6, "-", "+"), (6, "1", "2"), (6, "2", "3"), (6, "f(a * 2 - 1)", "pass")],
        *[(7, "a", "(not (a))"), (8, "break", "continue")],
        *[(9, "0.0", "1.0"), (9, "4", "5"), (9, "==", "!="), (9, "min", "max")],
        *[(9, 'raise ValueError(f"{a + 1}" + "5")', "pass"), (10, "True", "False")],
    ]


def test_mutate_draws_from_every_room():
    mutate = script("mutate")
    faults = [
        mutate.Fault(f"t5x_style/{room}/a.py", line, 0, 1, "0", "1")
        for room, lines in (("data", 900), ("optim", 90), ("step", 2), ("hosts", 1))
        for line in range(lines)
    ]
    drawn = mutate.drawn(faults, 50, seed=3)
    assert drawn == mutate.drawn(faults, 50, seed=3) != mutate.drawn(faults, 50, seed=4)
    assert len(set(drawn)) == 50
    rooms = collections.Counter(fault.room for fault in drawn)
    assert (rooms["step"], rooms["hosts"]) == (2, 1)
    assert rooms["data"] > rooms["optim"] >= 2


def test_mutate():
    assert "noticed: 1 of 1, 100.0%" in run_script("mutate", "--smoke")


def test_random_runs():
    name, arguments = "random_runs", ["--count=3", "--seed=2"]
    start = f"raise SystemExit(script({name!r}).main({arguments}))"
    done = warm.run(
        ["-c", f"from tests.scripts import script; {start}"],
        env={**os.environ, **WITHOUT_PROGRAM_CACHE},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 configurations are the same run from their own config.gin" in done.stdout
