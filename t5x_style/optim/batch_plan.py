"""How many sequences each step takes: a constant, or phases of growing batches."""

import dataclasses
import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from t5x_style.errors import UsageError


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """Steps, rows and tokens of a run, each from the other by arithmetic.

    A row is one sequence; a step takes `batch_size(step)` rows; row r is the same text whatever
    the batch size, so the batch plan decides how rows are grouped, never which come.

    Attributes:
      phases: (sequences per step, steps) in order.
      sequence_length: S, tokens learnt per row.
    """

    phases: tuple[tuple[int, int], ...]
    sequence_length: int

    @classmethod
    def of(
        cls,
        batch_size: int | Sequence[Sequence[int | None]],
        sequence_length: int,
        *,
        train_tokens: int | None = None,
        train_steps: int | None = None,
    ) -> "BatchPlan":
        """Build a plan from what a user writes.

        Args:
          batch_size: sequences per step, or a list of (sequences, tokens) phases in which the last
            phase lasts to the end of the run and has tokens None. A phase is rounded up to whole
            steps, so that no run is shorter than asked.
          sequence_length: S.
          train_tokens, train_steps: the length of the run: exactly one of them.

        Raises:
          UsageError: neither or both lengths; a phase that is not positive, or that the run ends
            before.
        """
        if (train_tokens is None) == (train_steps is None):
            raise UsageError(
                f"give one of TRAIN_TOKENS and TRAIN_STEPS (TRAIN_TOKENS = {train_tokens}, "
                f"TRAIN_STEPS = {train_steps})"
            )
        asked = [(batch_size, None)] if isinstance(batch_size, int) else list(batch_size)
        if not asked or asked[-1][1] is not None:
            raise UsageError(
                f"BATCH_SIZE = {batch_size!r}: a list of phases ends with (sequences, None), the "
                "batch that lasts to the end of the run"
            )
        phases: list[tuple[int, int]] = []
        tokens = steps = 0
        for size, phase_tokens in asked:
            if size < 1 or (phase_tokens is not None and phase_tokens < 1):
                raise UsageError(f"BATCH_SIZE: phase ({size}, {phase_tokens}) must be positive")
            per_step = size * sequence_length
            if phase_tokens is not None:
                count = -(-phase_tokens // per_step)
            elif train_tokens is not None:
                count = -(-(train_tokens - tokens) // per_step)
            else:
                count = train_steps - steps
            if count < 1:
                raise UsageError(
                    f"the run of TRAIN_TOKENS = {train_tokens}, TRAIN_STEPS = {train_steps} ends "
                    f"before the batch-size phase of {size} sequences begins"
                )
            phases.append((size, count))
            steps += count
            tokens += count * per_step
        return cls(tuple(phases), sequence_length)

    @functools.cached_property
    def steps(self) -> int:
        """Steps of the whole run."""
        return sum(count for _, count in self.phases)

    @functools.cached_property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.tokens_before(self.steps)

    @functools.cached_property
    def _borders(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First step and first row of each phase, and its batch size; int64."""
        sizes = np.array([size for size, _ in self.phases], np.int64)
        counts = np.array([count for _, count in self.phases], np.int64)
        first_steps = np.concatenate([[0], np.cumsum(counts)[:-1]])
        first_rows = np.concatenate([[0], np.cumsum(counts * sizes)[:-1]])
        return first_steps, first_rows, sizes

    def batch_size(self, step: int) -> int:
        """Rows that step `step` takes."""
        first_steps, _, sizes = self._borders
        return int(sizes[np.searchsorted(first_steps, step, side="right") - 1])

    def rows_before(self, step: int) -> int:
        """Rows taken by the steps 0 .. step - 1."""
        first_steps, first_rows, sizes = self._borders
        phase = np.searchsorted(first_steps, step, side="right") - 1
        return int(first_rows[phase] + (step - first_steps[phase]) * sizes[phase])

    def tokens_before(self, step: int) -> int:
        """Tokens learnt by the steps 0 .. step - 1."""
        return self.rows_before(step) * self.sequence_length

    def traced_tokens_before(self, step):
        """`tokens_before` for a traced step: float32, for schedules (relative error 1e-7)."""
        first_steps, first_rows, sizes = self._borders
        phase = jnp.searchsorted(jnp.asarray(first_steps, jnp.int32), step, side="right") - 1
        # The whole part of each phase is exact on the host; only the rest is computed in float32.
        within = (step - jnp.asarray(first_steps, jnp.int32)[phase]).astype(jnp.float32)
        first_tokens = jnp.asarray(first_rows * self.sequence_length, jnp.float32)[phase]
        per_step = jnp.asarray(sizes * self.sequence_length, jnp.float32)[phase]
        return first_tokens + within * per_step
