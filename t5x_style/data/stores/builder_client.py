"""The client of the process that builds token stores."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

from t5x_style.data.stores.corpus import Corpus
from t5x_style.errors import Fault, UsageError


class Builder:
    """`t5x_style.data.building.worker_process` in a child process, started at the first request.

    TensorFlow, if it is needed at all, is imported in the child. The child's standard input stays
    open as long as this process lives; when it closes, the child ends.
    """

    def __init__(self, corpus: Corpus):
        """For the sources, the module and the tokenizer of `corpus`."""
        self.corpus = corpus
        self.child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Builder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.child is not None:
            if kind is not None:
                self.child.kill()
            self.child.__exit__(None, None, None)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends a request to the child, and waits for the answer.

        Raises:
          UsageError, Fault: the error of the child, with its message; Fault, too, if the child
            ended without an answer.
        """
        child = self.child = self.child or _start()
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps({"corpus": self.corpus.to_json()} | request) + "\n")
            child.stdin.flush()
        line = child.stdout.readline()
        if not line:
            status = child.wait()
            ended = f"status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
            raise Fault(
                f"the process that builds token stores ended with {ended}, without an answer; any "
                f"error of its own is above. Nothing half-built is taken for a store"
            )
        answer = json.loads(line)
        if "usage_error" in answer:
            raise UsageError(answer["usage_error"])
        if "fault" in answer:
            raise Fault(answer["fault"])
        return answer


def _start() -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        # The accelerators belong to the process that trains.
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "t5x_style.data.building.worker_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        # Ctrl-C must not reach it and its pool: they would print where they were.
        start_new_session=True,
    )
