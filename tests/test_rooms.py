"""The map of rooms in docs/architecture.md, held against the imports that are really there."""

import ast
import graphlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "t5x_style"

# What each room may import, itself aside. A room that is not named here does not exist.
GROUND = ("errors", "quantities", "ranges", "files", "plugins", "signals")
MAY_IMPORT = {
    "errors": (),
    "quantities": (),
    "ranges": ("errors",),
    "files": ("errors",),
    "plugins": ("errors",),
    "signals": ("errors",),
    "accounting": GROUND,
    "hosts": GROUND,
    "reporting": (*GROUND, "accounting"),
    "kernels": (*GROUND, "accounting"),
    "models": (*GROUND, "accounting", "kernels"),
    "partitioning": (*GROUND, "accounting"),
    "data": (*GROUND, "accounting"),
    "optim": (*GROUND, "data"),
}
MAY_IMPORT["step"] = (*GROUND, "accounting", "kernels", "models", "partitioning", "data", "optim")
MAY_IMPORT["checkpoints"] = (*GROUND, "accounting", "hosts", "partitioning", "data", "reporting")
MAY_IMPORT["training"] = (*MAY_IMPORT["step"], "hosts", "reporting", "step", "checkpoints")
MAY_IMPORT["compiling"] = (*GROUND, "accounting", "partitioning", "reporting", "step")
MAY_IMPORT["inference"] = (*MAY_IMPORT["training"], "training")
MAY_IMPORT["sweeps"] = (*GROUND, "accounting", "reporting")
MAY_IMPORT["config"] = (*GROUND, "accounting")
MAY_IMPORT["commands"] = tuple(MAY_IMPORT)
MAY_IMPORT["__main__"] = ("commands",)

LINE_LIMITS = {"t5x_style/training/loop.py": 400, "t5x_style/models/": 350}
LINE_LIMIT = 500
FILES_LIMIT = 9
# Packages that the training process must never hold, so no module may import them at its top.
LAZY_PACKAGES = ("tensorflow", "tensorflow_datasets", "seqio", "torch", "apache_beam")
CODE_EXECUTING_FORMATS = ("pickle", "cloudpickle", "dill", "shelve", "marshal")


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported_modules(tree: ast.AST, module: str) -> Iterator[tuple[str, int]]:
    """(absolute module name, line) of each import in `tree`, those inside functions included.

    `from a import b` yields `a.b`, which may name a module or an attribute of `a`.
    """
    package = module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def module_name(path: Path) -> str:
    # A package's __init__ keeps that name: its relative imports are relative to the package.
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def forbidden_imports(source: str, module: str) -> list[str]:
    """The imports of `module` that its room may not make, as `line: name`."""
    room = module.split(".")[1]
    wrong = []
    for name, line in imported_modules(ast.parse(source), module):
        parts = name.split(".")
        if parts[0] != "t5x_style" or len(parts) < 2 or parts[1].startswith("__version"):
            continue
        if parts[1] != room and parts[1] not in MAY_IMPORT[room]:
            wrong.append(f"{line}: {name}")
    return wrong


def test_imports_point_downwards():
    assert not list(
        imported_modules(ast.parse((PACKAGE / "__init__.py").read_text()), "t5x_style.__init__")
    )
    wrong = {}
    for path in python_files("t5x_style"):
        if path == PACKAGE / "__init__.py":
            continue
        module = module_name(path)
        assert module.split(".")[1] in MAY_IMPORT, f"{path} is in no room of the map"
        if found := forbidden_imports(path.read_text(), module):
            wrong[module] = found
    assert wrong == {}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("t5x_style.accounting.laws", "from t5x_style.models import decoder"),
        ("t5x_style.models.decoder", "def f():\n    import t5x_style.training.loop"),
        ("t5x_style.data.reader", "from ..training import loop"),
        ("t5x_style.sweeps.grid", "from t5x_style import training"),
        ("t5x_style.accounting.__init__", "from ..reporting import table"),
    ],
)
def test_an_arrow_upwards_is_seen(module, source):
    assert len(forbidden_imports(source, module)) == 1


def test_the_map_shows_every_room():
    rows = re.findall(
        r"^\| `(\w+)/?` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE
    )
    assert [*rows, "__main__"] == list(MAY_IMPORT)


def test_no_room_may_import_a_room_that_may_import_it():
    graphlib.TopologicalSorter(MAY_IMPORT).prepare()


def file_imports() -> dict[str, set[str]]:
    """{module: the modules of the package that it imports}; an `__init__` is its folder's name."""
    names = {
        module_name(path).removesuffix(".__init__"): path for path in python_files("t5x_style")
    }
    graph = {}
    for name, path in names.items():
        found = set()
        for target, _ in imported_modules(ast.parse(path.read_text()), module_name(path)):
            while target and target not in names:
                target = target.rpartition(".")[0]
            found.add(target)
        graph[name] = found - {"", name, "t5x_style"}
    return graph


def test_no_file_imports_itself_in_a_circle():
    graphlib.TopologicalSorter(file_imports()).prepare()


def test_no_folder_imports_itself_in_a_circle():
    """Wings of one room, too: `data/sources/` and `data/rows/`, for instance."""
    imports = file_imports()
    # An `__init__` hands out the names of the wings below it, and is a part of none of them.
    packages = {
        module_name(path).removesuffix(".__init__")
        for path in python_files("t5x_style")
        if path.name == "__init__.py"
    }
    folders: dict[str, set[str]] = {}
    for module, targets in imports.items():
        if module in packages:
            continue
        folder = module.rpartition(".")[0]
        for target in targets:
            other = target if target in packages else target.rpartition(".")[0]
            if "t5x_style" not in (folder, other) and other != folder:
                folders.setdefault(folder, set()).add(other)
    graphlib.TopologicalSorter(folders).prepare()


def crowded_folders() -> dict[str, int]:
    """{folder: its files} where there are more than FILES_LIMIT."""
    files = Counter(
        path.parent.relative_to(ROOT)
        for path in python_files("t5x_style")
        if path.name != "__init__.py"
    )
    return {str(folder): n for folder, n in files.items() if n > FILES_LIMIT}


def test_a_folder_holds_at_most_nine_files():
    assert crowded_folders() == {}


def test_nothing_reads_formats_that_run_code():
    wrong = {}
    for path in python_files("t5x_style", "tests"):
        tree = ast.parse(path.read_text())
        names = {name.split(".")[0] for name, _ in imported_modules(tree, module_name(path))}
        found = sorted(names.intersection(CODE_EXECUTING_FORMATS))
        found += [
            f"line {node.lineno}: numpy may not unpickle"
            for node in ast.walk(tree)
            if isinstance(node, ast.keyword)
            and node.arg == "allow_pickle"
            and not (isinstance(node.value, ast.Constant) and node.value.value is False)
        ]
        if found:
            wrong[module_name(path)] = found
    assert wrong == {}


def test_tensorflow_and_torch_are_imported_inside_functions_only():
    wrong = {}
    for path in python_files("t5x_style"):
        tree = ast.parse(path.read_text())
        inside = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
        }
        top = ast.Module(
            [
                node
                for node in ast.walk(tree)
                if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in inside
            ],
            [],
        )
        names = {name.split(".")[0] for name, _ in imported_modules(top, module_name(path))}
        if found := names.intersection(LAZY_PACKAGES):
            wrong[module_name(path)] = found
    assert wrong == {}


def loaded_by(statement: str) -> set[str]:
    """The top-level packages in sys.modules of a new interpreter after `statement`."""
    program = (
        f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_accounting_and_reporting_load_light():
    loaded = loaded_by("import t5x_style.accounting, t5x_style.reporting")
    assert loaded.isdisjoint({"jax", "jaxlib", "flax", "scipy", "matplotlib", *LAZY_PACKAGES})


def test_the_package_and_the_command_line_load_nothing_heavy():
    loaded = loaded_by("import t5x_style, t5x_style.commands.main")
    assert loaded.isdisjoint({"jax", "jaxlib", "numpy", "scipy", "matplotlib", *LAZY_PACKAGES})


def long_files() -> dict[str, str]:
    """{file: "LINES of LIMIT lines"} of the files past their limit."""
    scripts = [path for path in (ROOT / "tools").iterdir() if path.is_file()]
    too_long = {}
    for path in [*python_files("t5x_style", "tests"), *scripts]:
        name = str(path.relative_to(ROOT))
        limit = next((n for start, n in LINE_LIMITS.items() if name.startswith(start)), LINE_LIMIT)
        lines = len(path.read_text().splitlines())
        if lines > limit:
            too_long[name] = f"{lines} of {limit} lines"
    return too_long


def test_files_are_readable_in_one_sitting():
    assert long_files() == {}
