"""docs/your_corpus.md: every file and command of the page, on a machine with little text."""

import gzip
import os
import pathlib
import re
import shlex
import subprocess

import pytest

from tests import warm
from tests.conftest import WITHOUT_PROGRAM_CACHE

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs/your_corpus.md").read_text()
BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A machine of a few files has a small vocabulary, and a budget that is the same on any CPU.
SMALLER = {"4096": "600", "4_096": "600", "--cpu_minutes=5": "--flops=1.4e10"}
# As the command does; a warm process was started without the PYTHONPATH of the page.
T5X_STYLE = """
import os, sys
sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
from t5x_style.commands.main import main
sys.exit(main(sys.argv[1:]))
"""
MARKUP = '.\\" a comment\n.TH {name} 1\n.SH NAME\n\\fB{name}\\fR \\- shows the {name}\n'
ENTRY = """{name} (1.{number}) unstable; urgency=low

  * {name}: release {number}, with the change {number} of {name} and nothing more.

 -- A Maintainer <a@example.org>  {date}

"""


def write_text_of_a_machine(root: pathlib.Path) -> None:
    """Manual pages, changelogs and a list of packages, where Debian has them."""
    for folder in ("share/man/man1", "lib"):
        (root / folder).mkdir(parents=True)
    packages = []
    for number in range(40):
        name = f"program{number}"
        sentences = "".join(f"{name} reads the file number {i} of {name}.\n" for i in range(80))
        page = MARKUP.format(name=name) + ".SH DESCRIPTION\n" + sentences
        (root / f"share/man/man1/{name}.1.gz").write_bytes(gzip.compress(page.encode()))
        (root / f"share/doc/{name}").mkdir(parents=True)
        years = [*range(2010, 2024), 2024 + number % 2]
        entries = (
            ENTRY.format(name=name, number=year, date=f"Mon, 05 Feb {year} 10:00:00 +0100")
            for year in years
        )
        log = gzip.compress("".join(entries).encode())
        (root / f"share/doc/{name}/changelog.Debian.gz").write_bytes(log)
        packages.append(
            f"Package: {name}\nVersion: 1.{number}\nDescription: the program {number}\n"
            + "".join(f" Its option {i} reads {number + i} files of {name}.\n" for i in range(8))
        )
    (root / "lib/status").write_text("\n".join(packages))


@pytest.fixture(scope="module")
def journey(tmp_path_factory) -> dict[str, str]:
    """{command: what it printed}, of all commands of the page in order."""
    folder = tmp_path_factory.mktemp("journey")
    write_text_of_a_machine(folder / "machine")
    environment = {**os.environ, **WITHOUT_PROGRAM_CACHE, "XLA_FLAGS": ""}
    environment["PYTHONPATH"] = str(ROOT)
    (folder / "work").mkdir()
    printed = {}
    for kind, name, text in BLOCK.findall(PAGE):
        for original, smaller in SMALLER.items():
            text = text.replace(original, smaller)
        if name:
            (folder / "work" / name).write_text(text)
        elif kind == "sh":
            machine = folder / "machine"
            text = text.replace("/usr/share", f"{machine}/share").replace("\\\n", " ")
            text = text.replace("/var/lib/dpkg", f"{machine}/lib")
            for command in text.splitlines():
                printed[command] = run(command, folder / "work", environment)
    return printed


def run(command: str, folder: pathlib.Path, environment: dict[str, str]) -> str:
    """Runs a line of the page; Python in a warm process, the rest in a shell."""
    program, *arguments = shlex.split(command)
    if program == "export":
        name, _, value = arguments[0].partition("=")
        environment[name] = os.pathsep.join([value, environment[name]])
        return ""
    if program not in ("python", "t5x-style"):
        subprocess.run(command, shell=True, cwd=folder, check=True)
        return ""
    code = T5X_STYLE
    if program == "python":
        code = (folder / arguments.pop(0)).read_text()
    done = warm.run(["-c", code, *arguments], cwd=folder, env=environment)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def output(journey: dict[str, str], start: str) -> str:
    return "".join(text for command, text in journey.items() if command.startswith(start))


def test_what_was_held_out_and_what_was_dropped(journey):
    rows = {
        tuple(line.split()[:2]): line.split()
        for line in output(journey, "t5x-style cache --gin_file=ops.gin").splitlines()
    }
    # Entries of 2023 and later are validation: of each package those of 2023 and 2024 or 2025.
    assert rows["changes", "validation"][2] == "80"
    assert rows["changes", "train"][2] == str(40 * 13)
    for name in ("manual", "packages"):
        held, trained = (int(rows[name, split][2]) for split in ("validation", "train"))
        assert (held + trained, held > 0) == (40, True), name


def test_the_plan_is_the_run_and_its_own_file_starts_it_again(journey):
    assert "written: plan.gin" in output(journey, "t5x-style plan")
    again = output(journey, "t5x-style train --gin_file=runs/ops/config.gin")
    assert "is finished" in again


def test_the_run_is_evaluated_sampled_and_reported(journey):
    evaluated = output(journey, "t5x-style evaluate")
    for name in ("manual", "changes", "packages", "general"):
        assert re.search(rf"^{name} ", evaluated, re.MULTILINE), evaluated
    assert output(journey, "t5x-style generate")
    assert "report.html" in output(journey, "t5x-style report")
