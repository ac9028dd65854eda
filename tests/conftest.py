"""Eight virtual CPU devices for every test, and each program compiled once: set before jax."""

import atexit
import importlib.metadata
import os
import pathlib
import shutil
import signal
import tempfile

import hypothesis
import pytest

from t5x_style.config import checks
from tests import golden_numbers

# A time limit on each example says more about the machine's other work than about the code.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")

# What started pytest may ignore signals or block them, as `nohup`, a shell's `&` and services do.
# Every child inherits that, and would never hear the signals that tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
# As a user has it: output waits in a buffer, and may be found unwritable at the end alone.
os.environ.pop("PYTHONUNBUFFERED", None)

os.environ["JAX_PLATFORMS"] = "cpu"


def xla_flags(devices: int) -> str:
    """So many CPU devices, and programs that are compiled fast: most tests wait for that."""
    flags = [f"--xla_force_host_platform_device_count={devices}"]
    # Unoptimised it takes half as long, and without the emitters of fused kernels half of that.
    flags.append("--xla_backend_optimization_level=0")
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        # Later releases have no such flag, and end the process over it.
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(flags)


os.environ["XLA_FLAGS"] = xla_flags(8)

# Many tests start the same small run, some in processes of their own, which inherit this. The
# folder is new for every session, so nothing stale is ever read.
_programs = tempfile.mkdtemp(prefix="t5x_style-programs-")
atexit.register(shutil.rmtree, _programs, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# For runs that are compared bit for bit: a program that XLA's CPU backend loads from this cache
# differs in the last bits from the same program compiled.
WITHOUT_PROGRAM_CACHE = {"JAX_ENABLE_COMPILATION_CACHE": "false"}

# What takes ten seconds of processor and more, the longest first: two workers then end together.
# `tools/test --quick` leaves these files out.
SLOW_FILES = (
    "chaos/test_chaos.py",
    "sweeps/test_real_sweep.py",
    "test_end_to_end.py",
    "training/test_resume.py",
    "data/building/test_seqio_tasks.py",
    "training/test_scale_rows.py",
    "training/test_hosts.py",
    "compiling/test_compiled_for_tpu.py",
    "accounting/layouts/test_memory.py",
    "training/test_meshes.py",
    "training/test_packed_rows.py",
    "training/test_logged_losses.py",
    "checkpoints/test_initial_weights.py",
    "training/test_early_stopping.py",
    "test_tools.py",
    "chaos/test_soak.py",
    "data/building/test_worker_process.py",
    "data/test_mixtures.py",
    "commands/runs/test_compile.py",
    "step/test_batches.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark and put in front the tests of SLOW_FILES."""
    tests = pathlib.Path(__file__).parent
    ranks = {tests / name: rank for rank, name in enumerate(SLOW_FILES)}
    for item in items:
        if item.path in ranks:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Say how many golden numbers were held; one that was skipped fails the session."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # a worker, whose reports go to the first process
        return
    text, allowed = golden_numbers.verdict(reporter.stats)
    if text:
        reporter.write_line(f"\n{text}")
    if not allowed:
        reporter.write_line("failed: a golden number is skipped", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True, scope="module")
def nothing_bound():
    """What a module before left bound in gin would fill in what this one leaves to its default.

    gin's tables and the places of their bindings are cleared together, as for a new command.
    """
    checks.parse()
