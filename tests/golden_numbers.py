"""Published numbers that this framework must give again: for each the test that holds it.

A test that is skipped holds nothing. `tests/conftest.py` reads at the end of a session what became
of these tests. Four numbers of the project's table are left out, since no command computes them:
kaplan_N, kaplan_ND, dcpt_form and mix_form.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent

# The one reason for which a golden number may go without its test: the file is not ours to ship.
NO_POINTS = "CHINCHILLA_POINTS names no file of Hoffmann's points"

PARAMETERS = "accounting/test_parameter_count.py"
FLOPS = "accounting/test_flops.py"
PAPER = "accounting/audit/test_bloomberggpt.py"
CHINCHILLA = "accounting/laws/test_chinchilla.py"
FITTING = "accounting/laws/test_fitting.py"
CONSTRAINED = "accounting/laws/test_data_constrained.py"
BATCH = "accounting/laws/test_batch_and_learning_rate.py"

# Name, test and the numbers that stand in the test. A number may need several tests.
GOLDEN = [
    ("params_bloomberg", f"{PARAMETERS}::test_params_bloomberg", [50_558_868_480]),
    ("params_a9", f"{PARAMETERS}::test_params_a9", [44, 1018, 6796, 11452, 16183]),
    ("flops_a4", f"{FLOPS}::test_flops_a4", [1.03, 1.10, 1.08, 1.04, 0.99]),
    ("tokens_schedule", f"{PAPER}::test_tokens_schedule", [568_747_622_400]),
    ("epoch_fraction", f"{PAPER}::test_epoch_fraction", [0.80230]),
    ("flops_8n_full", f"{PAPER}::test_flops_8n_full", [2.361492e23]),
    ("flops_table", f"{PAPER}::test_flops_table",
     [1.72531e23, 1.76616e23, 1.80046e23, 1.80022e23, 2.30042e23, 2.38884e23]),
    ("hw_tflops", f"{PAPER}::test_hw_tflops", [101.9516e12]),
    ("wall_days", f"{PAPER}::test_wall_days", [52.3611]),
    ("budget", f"{PAPER}::test_budget", [3.51e23]),
    ("budget", "accounting/planner/test_budget.py::test_budget", [3.51e23]),
    ("plan_A1", f"{CHINCHILLA}::test_frontiers_give_what_bloomberggpt_printed[plan_A1]",
     [52.993e9, 1111.112e9]),
    ("plan_A2", f"{CHINCHILLA}::test_frontiers_give_what_bloomberggpt_printed[plan_A2]",
     [49.753e9, 1175.766e9]),
    ("polyfit_T3", f"{CHINCHILLA}::test_frontiers_are_least_squares_lines[polyfit_T3]",
     [0.49809869, -1.00366816, 0.50185426, 0.22944745]),
    ("A1_1e21", f"{CHINCHILLA}::test_A1_1e21", [1e21, 2.8603e9]),
    ("levine", "accounting/planner/test_shape.py::test_levine", [70, 7510.07]),
    ("loss_tex", f"{CHINCHILLA}::test_losses[loss_tex]", [70e9, 1.4e12, 1.92085, 1.93665, 1.97388]),
    ("loss_bbg", f"{CHINCHILLA}::test_losses[loss_bbg]", [569e9, 1.97238, 1.99319, 2.01297]),
    ("loss_1b", f"{CHINCHILLA}::test_losses[loss_1b]", [1e9, 20e9, 2.53067, 2.58005, 2.53005]),
    ("nopt_tex", f"{CHINCHILLA}::test_optima_at_gophers_budget[nopt_tex]",
     [1.30005, 0.45653, 4.0361e10, 2.3785e12]),
    ("nopt_tex", f"{CHINCHILLA}::test_nopt_tex_loss", [1.91841]),
    ("nopt_printed", f"{CHINCHILLA}::test_optima_at_gophers_budget[nopt_printed]",
     [1.34471, 0.45161, 3.2190e10, 2.9823e12]),
    ("nopt_bes", f"{CHINCHILLA}::test_optima_at_gophers_budget[nopt_bes]",
     [0.11963, 0.51261, 7.2249e10, 1.3287e12]),
    ("nopt_budget", f"{CHINCHILLA}::test_nopt_budget",
     [5.6048e10, 1.04375e12, 3.2193e10, 1.81719e12]),
    ("figure1_A3", f"{CHINCHILLA}::test_frontiers_are_least_squares_lines[figure1_A3]",
     [0.45865740, -0.27195306, 0.54098165, -0.50118019]),
    ("efficiency", f"{CHINCHILLA}::test_efficiency", [0.97599, 0.83245]),
    ("fwd_terms", f"{FLOPS}::test_fwd_terms",
     [24_772_608_000, 2_202_009_600, 17_203_200, 8_257_536_000, 66_060_288_000, 103_511_654_400,
      2_013_265_920, 105_524_920_320]),
    ("huber_fit", f"{FITTING}::test_huber_fit",
     [1.817218, 477.826, 2143.417, 0.347311, 0.367172, 0.5139, 1.0182740e-3]),
    ("huber_bad", f"{FITTING}::test_huber_bad", [1.23116e-3, 4.12101e-3]),
    ("mean_trap", f"{FITTING}::test_mean_trap", [1.03e-3]),
    ("dc_law", f"{CONSTRAINED}::test_dc_law",
     [6.34e9, 242e9, 2.2256440889984477, 8.67e9, 178e9, 2.2269634075087867]),
    ("dc_opt", f"{CONSTRAINED}::test_dc_opt", [237336955477.55, 7022364735.88, 9.4935]),
    ("dc_epochs", f"{CONSTRAINED}::test_effective_share_by_epochs[dc_epochs-4]", [0.931418]),
    ("dc_epochs", f"{CONSTRAINED}::test_effective_share_by_epochs[dc_epochs-16]", [0.661404]),
    ("dc_bbg", f"{CONSTRAINED}::test_dc_bbg", [51.90e9, 1.127e12, 47.56e9, 1.230e12]),
    ("palm_mfu", f"{FLOPS}::test_palm_mfu", [0.46229]),
    ("megatron_days", f"{FLOPS}::test_megatron_days", [33.831]),
    ("deepseek", f"{BATCH}::test_deepseek", [9.85998e-4, 1.017145e6]),
    ("steplaw", f"{BATCH}::test_steplaw", [9.16557e-4, 4.998815e6]),
    ("steplaw_bbg", f"{BATCH}::test_steplaw_bbg", [1.69772e-4, 2.98949e6]),
    ("sardana", "accounting/planner/test_service.py::test_sardana", [1.6916e22, 0.17446]),
    ("vocab", "accounting/laws/test_vocabulary.py::test_vocab",
     [39367, 42538, 36648, 62280, 67450, 59547, 83429, 90503, 81347, 211860, 230861, 217961]),
    ("alibi_40", "models/test_layers.py::test_alibi_40", [0.840896, 0.917004, 0.272627]),
    ("lr_cosine", "optim/test_schedule.py::test_lr_cosine", [3e-5, 5.98670e-5, 1.95760e-5]),
    ("bpb", "test_quantities.py::test_bpb", [2.10, 4.895, 0.61893]),
    ("table1_sums", f"{PAPER}::test_table1_sums", [3_634, 1_836, 3_454]),
]  # fmt: skip
NAMES = sorted({name for name, _, _ in GOLDEN})


def numbers_of(test: str) -> set[float]:
    """Every number in the code of a test, of a row of it, or in a table that the test names.

    Docstrings and comments do not count.

    Raises:
      LookupError: there is no such test or no such row.
    """
    file, _, name = test.partition("::")
    name, _, row = name.rstrip("]").partition("[")
    module = ast.parse((TESTS / file).read_text())
    functions = [node for node in module.body if getattr(node, "name", "") == name]
    if len(functions) != 1:
        raise LookupError(f"{file} has {len(functions)} tests {name}")
    (node,) = functions
    if row:
        rows = [call for call in ast.walk(node) if isinstance(call, ast.Call) and _id(call) == row]
        if len(rows) != 1:
            raise LookupError(f"{file}::{name} has {len(rows)} rows {row}")
        return set(_numbers(rows[0]))
    used = {named.id for named in ast.walk(node) if isinstance(named, ast.Name)}
    tables = [
        assigned.value
        for assigned in module.body
        if isinstance(assigned, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id in used for target in assigned.targets)
    ]
    texts = [table.value for table in tables if isinstance(table, ast.Constant)]
    found = {number for tree in (node, *tables) for number in _numbers(tree)}
    return found | {float(word) for text in texts for word in re.findall(r"\d+", str(text))}


def _id(call: ast.Call) -> str | None:
    """The id of a `pytest.param(..., id=...)`."""
    ids = [keyword.value for keyword in call.keywords if keyword.arg == "id"]
    return ids[0].value if ids and isinstance(ids[0], ast.Constant) else None


def _numbers(tree: ast.AST) -> Iterator[float]:
    for node in ast.walk(tree):
        sign = 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            sign, node = -1, node.operand
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield sign * node.value


def verdict(stats: dict[str, list]) -> tuple[str, bool]:
    """A line on the golden numbers, empty where none of them ran, and whether that may be.

    A number is held where all of its tests ran and passed. It may be skipped for lack of Hoffmann's
    points alone.

    Args:
      stats: {outcome: reports}, as pytest's terminal reporter counts them.
    """
    reports = [
        (outcome, report)
        for outcome, found in stats.items()
        if outcome in ("passed", "failed", "error", "skipped", "xfailed", "xpassed")
        for report in found
    ]
    states: dict[str, set[str]] = {name: set() for name in NAMES}
    for name, test, _ in GOLDEN:
        outcomes = [
            outcome if outcome != "skipped" else report.longrepr[-1]
            for outcome, report in reports
            if _concerns(report.nodeid, f"tests/{test}")
        ]
        states[name].update(outcomes or ["not run"])
    if all(found == {"not run"} for found in states.values()):
        return "", True
    held = [name for name, found in states.items() if found == {"passed"}]
    parts = [f"golden numbers: {len(held)} of {len(NAMES)} held"]
    others = {state for found in states.values() for state in found} - {"passed"}
    for state in sorted(others):
        names = [name for name, found in states.items() if state in found]
        parts.append(f"{len(names) if state == 'not run' else ', '.join(names)}: {state}")
    allowed = {"not run", "failed", "error", f"Skipped: {NO_POINTS}"}
    return "; ".join(parts), others <= allowed


def _concerns(node: str, test: str) -> bool:
    """Whether a report is of this test, of a row of it, or of its whole file."""
    return node == test or node.startswith(f"{test}[") or test.startswith(f"{node}::")
