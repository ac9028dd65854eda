"""What the tree promises: hashed pins, no host, no path of one machine, documents that are true."""

import importlib.util
import pkgutil
import platform
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import t5x_style

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "t5x_style"
LOCKS = sorted(path.stem for path in (ROOT / "requirements").glob("*.txt"))
PIN = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(?:\[[\w,-]+\])?==(?P<version>[^\s;\\]+)")
# Written in halves, or this file would be the first to break its own rule.
REGISTRY_HOST = re.compile(
    r"(py" r"pi\.org|pythonhosted\.|npmjs\.|conda\.|find-" r"links=|git" r"\+https?:)"
)
# A Python file anywhere, a script of tools/, a gin file or folder that ships, a page of docs/.
NAMED_PATH = re.compile(
    r"[\w/]+\.py\b|\btools/\w+|\bgin_configs/(?:\w+/)*(?:\w+\.gin\b)?|\bdocs/[\w/]+\.\w+"
)
MACHINE_PATH = re.compile(r"(?<![\w.~}/*-])/(root|home|work|opt|Users|mnt)/\w")


def tracked_files() -> list[Path]:
    """Each file or link that git tracks, or would once added."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = (ROOT / name for name in listed.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_symlink() or path.is_file()]


def pins(lock: str) -> dict[str, str]:
    """{canonical name: versions} of a requirement file; a name forked by a marker has several."""
    found: dict[str, str] = {}
    for line in (ROOT / f"requirements/{lock}.txt").read_text().splitlines():
        if match := PIN.match(line):
            name = canonicalize_name(match["name"])
            found[name] = f"{found[name]} {match['version']}" if name in found else match["version"]
    return found


@pytest.mark.parametrize("pattern", [REGISTRY_HOST, MACHINE_PATH], ids=["registry", "machine"])
def test_no_file_names_a_registry_or_a_machine(pattern):
    files = [path for path in tracked_files() if not path.is_symlink()]
    texts = {path: path.read_text() for path in files if b"\0" not in path.read_bytes()}
    assert len(texts) > 20
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert hits == []


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_a_hash(lock):
    text = (ROOT / f"requirements/{lock}.txt").read_text()
    blocks = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip())
    assert blocks
    for block in blocks:
        assert PIN.match(block), block.splitlines()[0]
        assert "--hash=sha256:" in block, block.splitlines()[0]


@pytest.mark.parametrize("lock", sorted({*LOCKS} - {"oracle", "tests", "uv"}))
def test_a_lock_answers_pyproject(lock):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + project["optional-dependencies"].get(lock, [])
    pinned = pins(lock)
    for requirement in map(Requirement, asked):
        versions = pinned[canonicalize_name(requirement.name)].split()
        assert all(requirement.specifier.contains(version) for version in versions), requirement


def test_the_development_tools_stand_on_the_base_that_users_get():
    development = pins("dev")
    assert {name: development.get(name) for name in pins("base")} == pins("base")


def test_every_extra_that_users_are_offered_has_code_behind_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    code = "\n".join(path.read_text() for path in (ROOT / "t5x_style").rglob("*.py"))
    # `dev` is for this checkout; `tpu` and `gpu` bring jax's backends, which it loads itself.
    for name in extras.keys() - {"dev", "tpu", "gpu"}:
        modules = [re.split(r"[>=<\[;]", package)[0].replace("-", "_") for package in extras[name]]
        imported = [
            module
            for module in modules
            if re.search(rf"^\s*(import|from) {module}\b", code, re.MULTILINE)
        ]
        assert imported, f"nothing imports {extras[name]} of the extra {name}"
    table = (ROOT / "README.md").read_text().partition("## Installing")[2]
    offered = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert "clean" in offered
    assert offered <= extras.keys()


def test_continuous_integration_is_a_script():
    """The scripts of tools/ are in tests/test_tools.py."""
    path = ROOT / ".ci/run"
    assert path.stat().st_mode & 0o111, "not executable"
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_continuous_integration_runs_every_check():
    lines = (ROOT / ".ci/run").read_text().splitlines()
    checks = {path.name for path in (ROOT / "tools").glob("check_*")}
    # This one needs no environment of its own: the suite runs it.
    checks -= {"check_claims"}
    assert checks == {"check_beam", "check_flops", "check_gpu"}
    assert [check for check in checks if f"phase tools/{check}" not in lines] == []


def test_tests_are_skipped_only_for_packages_that_a_check_installs():
    texts = [path.read_text() for path in (ROOT / "tests").rglob("*.py")]
    asked = {
        name
        for text in texts
        for name in re.findall(r"(?:importorskip|find_spec)\(\s*[\"'](\w+)", text)
    }
    assert {"apache_beam", "libtpu", "py3langid", "rensa", "torch"} <= asked
    by_check = {"apache_beam", "torch", "transformers", "jax_cuda13_plugin"}
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        by_check.add("libtpu")  # there is none for other machines
    missing = [name for name in sorted(asked - by_check) if importlib.util.find_spec(name) is None]
    assert missing == [], "run tools/setup dev"


def test_every_module_is_imported():
    modules = list(pkgutil.walk_packages(t5x_style.__path__, "t5x_style."))
    assert len(modules) > 100
    for module in modules:
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)


def test_the_wheel_is_whole(tmp_path):
    """A wheel carries what a checkout runs on: every module, the gin files, the corpora."""
    # Built from a copy: setuptools leaves build/ and an egg-info beside what it builds.
    source = tmp_path / "source"
    for path in tracked_files():
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            copy.symlink_to(path.readlink())
        else:
            copy.write_bytes(path.read_bytes())
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())

    wanted = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")}
    wanted |= {
        f"t5x_style/{path.relative_to(ROOT)}" for path in (ROOT / "gin_configs").rglob("*.gin")
    }
    wanted |= {
        str(path.relative_to(ROOT))
        for path in (PACKAGE / "data/corpora").iterdir()
        if path.is_file()
    }
    assert len(wanted) > 20
    assert sorted(wanted - inside) == []
    assert not [name for name in inside if name.startswith(("tests/", "tools/"))]


def documents() -> list[Path]:
    """README and docs/, but for the log of experiments, which names files of its time."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in found if path.name != "log.md"]


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_every_path_that_a_document_names_exists(document):
    """A path is from the root or, as on the map of rooms, from t5x_style/; a bare name is anywhere.

    A class or function that a document places in a file is defined there.
    """
    text = document.read_text()
    named = set(NAMED_PATH.findall(text))
    code = {
        path.name for folder in ("t5x_style", "tests") for path in (ROOT / folder).rglob("*.py")
    }
    # A page may give files to write, as the title of a block.
    given = set(re.findall(r"^```\w+ (\S+)$", text, re.MULTILINE))
    named -= given
    bare = {name for name in named if "/" not in name}
    assert bare - code == set()
    missing = {
        name for name in named - bare if not ((ROOT / name).exists() or (PACKAGE / name).exists())
    }
    assert missing == set()
    for name, path in re.findall(r"`(\w+)`\s+in\s+`(?:t5x_style/)?([\w/]+\.py)`", text):
        assert re.search(rf"^(?:class|def) {name}\b", (PACKAGE / path).read_text(), re.MULTILINE)
