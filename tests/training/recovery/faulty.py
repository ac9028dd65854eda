"""Runs of which chosen steps go wrong: numbers that are not finite, or text that is noise."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from t5x_style.data import BatchReader
from t5x_style.data.rows.reader import Rows
from t5x_style.step.program import StepProgram
from tests.training.runs import VOCABULARY


def with_noise(rows: Rows, numbers: np.ndarray, noise: range) -> Rows:
    """The rows of these numbers, where those in `noise` are random tokens."""
    for index, number in enumerate(np.asarray(numbers).tolist()):
        if number in noise:
            length = rows.tokens.shape[1]
            rows.tokens[index] = np.random.default_rng(number).integers(2, VOCABULARY, length)
    return rows


# The steps of all runs of a test session; to compile one takes longer than to run it.
_COMPILED: dict[str, Any] = {}


class Faults:
    """What goes wrong, and what the steps were given.

    Attributes:
      not_finite: the steps whose loss is not a number; the step itself leaves their update out.
      noise: the rows that are random tokens in place of the text.
      stop_at: the step at which the process is interrupted when it runs for the second time.
      before: what happens once, before a step runs.
      parameters: after the last step. state_bytes: of the whole state.
      ran: every step that ran, in order, with the sources of its rows and whether it was applied.
    """

    def __init__(self, monkeypatch):
        self.not_finite: set[int] = set()
        self.noise = range(0)
        self.ran: list[tuple[int, np.ndarray, bool]] = []
        self.parameters: dict = {}
        self.state_bytes = 0
        self.stop_at: int | None = None
        self.before: dict[int, Callable[[], None]] = {}
        compile_step, read = StepProgram.compile, BatchReader.rows

        def compile_faulty(program, *shape):
            key = repr((program.spec, program.topology, shape))
            if key not in _COMPILED:
                _COMPILED[key] = compile_step(program, *shape)
            return self._step(program, _COMPILED[key])

        def read_faulty(reader, numbers):
            return with_noise(read(reader, numbers), numbers, self.noise)

        monkeypatch.setattr(StepProgram, "compile", compile_faulty)
        monkeypatch.setattr(BatchReader, "rows", read_faulty)

    def _step(self, program, compiled):
        def step(state, batch, sums, limits):
            with jax.transfer_guard("allow"):
                number = int(state["step"]) + 1
                sources = np.asarray(batch)[:, 0]
                if number == self.stop_at and number in [ran for ran, *_ in self.ran]:
                    raise KeyboardInterrupt
                self.before.pop(number, lambda: None)()
                bad = number in self.not_finite
                if bad:
                    # Below every loss there is.
                    limits = program.place(-np.ones(2, np.float32))
                state, metrics, sums = compiled(state, batch, sums, limits)
                self.ran.append((number, sources, bool(metrics["applied"])))
                if bad:
                    seen = np.array(metrics["seen"])
                    seen[0] = np.nan
                    metrics |= {
                        "loss": program.place(seen[0]),
                        "seen": program.place(seen),
                    }
            self.parameters = jax.device_get(state["parameters"])
            self.state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            return state, metrics, sums

        return step

    def learnt_by_source(self, step: int, tokens_per_row: int) -> list[int]:
        """Tokens that the applied updates up to a step learnt from; the last run of each counts."""
        last = {number: (sources, applied) for number, sources, applied in self.ran}
        counts = np.zeros(2, int)
        for number, (sources, applied) in last.items():
            if number <= step and applied:
                counts += np.bincount(sources, minlength=2) * tokens_per_row
        return counts.tolist()
