"""Child processes that start warm: forked from a server that has jax imported and never used.

Importing jax, flax and orbax takes some four seconds of processor in a new interpreter. A test that
needs a process to kill, or several that meet, does not need a new interpreter: the standard
library's fork server imports them once for each worker of pytest. A kill is as real as ever. A test
of the start itself, or of what it loads, takes `subprocess`.

    done = warm.run(["-m", "tests.training.killable", folder], env={**os.environ, "A": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
"""

import atexit
import multiprocessing
import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import tempfile
import types

ROOT = pathlib.Path(__file__).parents[1]
PRELOADED = ["jax", "optax", "orbax.checkpoint", "tensorboardX", "t5x_style.training"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)
_outputs = pathlib.Path(tempfile.mkdtemp(prefix="t5x_style-warm-"))
_children: list["Child"] = []


@atexit.register
def _clean_up() -> None:
    for child in _children:
        if child.poll() is None:
            child.kill()
    shutil.rmtree(_outputs, ignore_errors=True)


class Child:
    """A process with the methods of `subprocess.Popen` that our tests use.

    Attributes:
      pid: process number. returncode: None until `poll` or `communicate` has seen the end; -N after
        signal N, as in `subprocess`.
    """

    def __init__(self, arguments: list[str], env: dict[str, str], cwd: str | os.PathLike):
        folder = tempfile.mkdtemp(dir=_outputs)
        self._files = [pathlib.Path(folder, name) for name in ("stdout", "stderr")]
        # Made now, so that they can be read whenever the child is killed.
        for path in self._files:
            path.touch()
        self._process = _context.Process(
            target=_run_python,
            args=(list(map(str, arguments)), dict(env), str(cwd), *map(str, self._files)),
        )
        before = os.environ.get("PYTHONPATH")
        # The server, started with the first child, finds the package and the tests by it.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
        try:
            self._process.start()
        finally:
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before
        self.pid = self._process.pid
        _children.append(self)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        self.returncode = self._process.exitcode
        return self.returncode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(standard output, standard error) after the end.

        Raises:
          subprocess.TimeoutExpired: after `timeout` seconds without an end.
        """
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("warm child", timeout or 0.0)
        return self.output_so_far()

    def output_so_far(self) -> tuple[str, str]:
        """(standard output, standard error) that the process has written."""
        output, errors = (path.read_text() for path in self._files)
        return output, errors


def start(
    arguments: list[str], *, env: dict[str, str] | None = None, cwd: str | os.PathLike = ROOT
) -> Child:
    """A process that runs what `python ARGUMENTS` runs: `-m MODULE …`, or `-c PROGRAM …`.

    `env` is the whole environment, as for `subprocess`. Of the variables that jax reads when it is
    imported, those that differ from the server's are set again in the child.
    """
    return Child(arguments, os.environ if env is None else env, cwd)


def run(
    arguments: list[str],
    *,
    env: dict[str, str] | None = None,
    cwd: str | os.PathLike = ROOT,
    timeout: float = 1200,
) -> subprocess.CompletedProcess:
    """`start`, and the end: returncode, stdout and stderr as text.

    Raises:
      subprocess.TimeoutExpired: after `timeout` seconds, which only a process that hangs takes.
    """
    child = start(arguments, env=env, cwd=cwd)
    try:
        output, errors = child.communicate(timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        raise
    return subprocess.CompletedProcess(arguments, child.returncode, output, errors)


def _run_python(
    arguments: list[str], env: dict[str, str], cwd: str, output: str, errors: str
) -> None:
    for descriptor, path in ((1, output), (2, errors)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    _set_jax_options()
    kind, program, *rest = arguments
    sys.argv = [program if kind == "-m" else "-c", *rest]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        exec(compile(program, "<warm>", "exec"), vars(module))


def _set_jax_options() -> None:
    """What jax would have read from the environment, had it been imported in this process."""
    import jax
    from jax._src import xla_bridge

    assert not xla_bridge.backends_are_initialized(), "a backend does not survive a fork"
    for name in ("jax_platforms", "jax_compilation_cache_dir"):
        jax.config.update(name, os.environ.get(name.upper()))
    enabled = os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "true")
    jax.config.update("jax_enable_compilation_cache", enabled != "false")
