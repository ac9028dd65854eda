"""The client of the process that builds: what it sends, what it makes of the answers, its end."""

import io
import json
import os
import pathlib
import subprocess
import sys

import pytest

from t5x_style.data import Corpus, Source, Tokenizer
from t5x_style.data.stores import builder_client
from t5x_style.data.stores.builder_client import Builder
from t5x_style.errors import Fault, UsageError

CORPUS = Corpus(Tokenizer("bytes"), "a", "stores", [Source(name="a", splits={"train": "x"})])


class Child:
    """A child process with these answers, which then ends with `status`."""

    def __init__(self, *answers: dict, status: int = 0, gone: bool = False):
        self.stdin = self if gone else io.StringIO()
        self.stdout = io.StringIO("".join(json.dumps(answer) + "\n" for answer in answers))
        self.status = status
        self.end: list[str] = []

    def write(self, line):
        raise BrokenPipeError

    def flush(self):
        raise AssertionError("nothing was written")

    def wait(self):
        return self.status

    def kill(self):
        self.end.append("killed")

    def __exit__(self, *_):
        self.end.append("waited for")


@pytest.fixture
def start(monkeypatch):
    """Makes a builder start this child."""
    started = []

    def child_is(child):
        monkeypatch.setattr(builder_client, "_start", lambda: started.append(child) or child)
        return started

    return child_is


def test_a_child_is_started_once_and_waited_for(start):
    child = Child({"shares": 1}, {})
    started = start(child)
    with Builder(CORPUS) as builder:
        assert started == []
        assert builder.ask({"action": "resolve"}) == {"shares": 1}
        assert builder.ask({"action": "build", "plans": []}) == {}
    assert started == [child]
    assert child.end == ["waited for"]
    sent = [json.loads(line) for line in child.stdin.getvalue().splitlines()]
    corpus = {"corpus": CORPUS.to_json()}
    assert sent == [corpus | {"action": "resolve"}, corpus | {"action": "build", "plans": []}]


def test_a_child_is_killed_if_the_caller_fails_and_none_is_started_without_a_request(start):
    child = Child({})
    started = start(child)

    def interrupted():
        with Builder(CORPUS) as builder:
            builder.ask({})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert child.end == ["killed", "waited for"]
    with Builder(CORPUS):
        pass
    assert started == [child]


@pytest.mark.parametrize(
    ("answer", "error"), [({"usage_error": "no file"}, UsageError), ({"fault": "no disk"}, Fault)]
)
def test_an_error_of_the_child_is_raised_with_its_words(start, answer, error):
    start(Child(answer))
    with pytest.raises(error, match=r"^no (file|disk)$"), Builder(CORPUS) as builder:
        builder.ask({})


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "with status 0,"), (3, "with status 3,"), (-9, "with signal SIGKILL,"), (-1, "SIGHUP")],
)
def test_a_child_that_ends_without_an_answer_is_named_by_its_end(start, status, words, gone):
    start(Child(status=status, gone=gone))
    with pytest.raises(Fault, match=words), Builder(CORPUS) as builder:
        builder.ask({})


def test_the_child_gets_neither_accelerators_nor_another_python_path(monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *command, **how: started.append((command, how)))
    monkeypatch.setattr(sys, "path", ["", "/their/code"])
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    builder_client._start()
    [(([program, *module],), how)] = started
    assert (program, module) == (sys.executable, ["-m", "t5x_style.data.building.worker_process"])
    environment = how["env"]
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(pathlib.Path.cwd()), "/their/code"]
    assert (environment["JAX_PLATFORMS"], environment["CUDA_VISIBLE_DEVICES"]) == ("cpu", "-1")
    assert environment["PATH"] == os.environ["PATH"]
    assert (how["stdin"], how["stdout"], how["text"]) == (subprocess.PIPE, subprocess.PIPE, True)


def test_ctrl_c_in_the_terminal_does_not_reach_the_child():
    """It would print the traceback of its imports. This process ends it instead."""
    child = builder_client._start()
    try:
        assert os.getsid(child.pid) != os.getsid(0)
    finally:
        child.kill()
        child.__exit__(None, None, None)
