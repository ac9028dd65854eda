"""How many sequences each step takes, and of what length: constants, or phases in tokens."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from t5x_style.errors import UsageError

# One number for the whole run, or (number, tokens) phases; the last has tokens None.
Phased = int | Sequence[tuple[int, int | None]]


class StepPhase(NamedTuple):
    """`steps` steps, each of `sequences` rows of `sequence_length` tokens."""

    sequences: int
    sequence_length: int
    steps: int

    @property
    def tokens(self) -> int:
        """Tokens that the phase learns."""
        return self.sequences * self.sequence_length * self.steps


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """Converts between the steps, rows and tokens of a run, by arithmetic.

    A row is one sequence. Row r is the same text for any batch size. The batch size decides how
    rows are grouped, never which rows come.

    Attributes:
      phases: the shapes of the steps, in order.
    """

    phases: tuple[StepPhase, ...]

    @classmethod
    def from_settings(
        cls,
        batch_size: Phased,
        sequence_length: Phased,
        *,
        train_tokens: int | None = None,
        train_steps: int | None = None,
    ) -> "BatchPlan":
        """Build a plan from the configuration.

        A phase of either list is rounded up to whole steps, so neither it nor the run is shorter
        than asked. The next phase of that list counts its tokens from there.

        Args:
          batch_size: sequences per step, or (sequences, tokens) phases. The last phase lasts to the
            end of the run and has tokens None.
          sequence_length: S, or (S, tokens) phases of the same kind.
          train_tokens, train_steps: the length of the run: exactly one of them.

        Raises:
          UsageError: neither or both lengths; a phase that is not positive, or that begins after
            the end of the run.
        """
        if (train_tokens is None) == (train_steps is None):
            raise UsageError(
                f"give one of TRAIN_TOKENS and TRAIN_STEPS (TRAIN_TOKENS = {train_tokens}, "
                f"TRAIN_STEPS = {train_steps})"
            )
        sizes = _phases("BATCH_SIZE", "sequences", batch_size)
        lengths = _phases("TASK_FEATURE_LENGTHS", "tokens per sequence", sequence_length)
        (size, size_left), (length, length_left) = sizes.pop(0), lengths.pop(0)
        phases: list[StepPhase] = []
        tokens = steps = 0
        while True:
            left = min(size_left, length_left)
            if left < math.inf:
                remaining = left
            elif train_tokens is not None:
                remaining = train_tokens - tokens
            else:
                assert train_steps is not None
                remaining = (train_steps - steps) * size * length
            phase = StepPhase(size, length, -(-int(remaining) // (size * length)))
            if phase.steps < 1:
                raise UsageError(
                    f"the run of TRAIN_TOKENS = {train_tokens}, TRAIN_STEPS = {train_steps} ends "
                    f"before the phase of {size} sequences of {length} tokens begins"
                )
            phases.append(phase)
            if left == math.inf:
                return cls(tuple(phases))
            steps += phase.steps
            tokens += phase.tokens
            size_left -= phase.tokens
            length_left -= phase.tokens
            if size_left <= 0:
                size, size_left = sizes.pop(0)
            if length_left <= 0:
                length, length_left = lengths.pop(0)

    def shortened(self, rows: int) -> "BatchPlan":
        """The first whole steps of the plan that take at most `rows` rows; maybe none."""
        phases, left = [], rows
        for phase in self.phases:
            steps = min(phase.steps, left // phase.sequences)
            left -= steps * phase.sequences
            if steps:
                phases.append(phase._replace(steps=steps))
            if steps < phase.steps:
                break
        return BatchPlan(tuple(phases))

    def __str__(self) -> str:
        return ", then ".join(
            f"{phase.sequences:,} x {phase.sequence_length:,} tokens ({phase.steps:,} steps)"
            for phase in self.phases
        )

    @functools.cached_property
    def steps(self) -> int:
        """Steps of the whole run."""
        return sum(phase.steps for phase in self.phases)

    @functools.cached_property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return sum(phase.tokens for phase in self.phases)

    @functools.cached_property
    def rows(self) -> int:
        """Rows of the whole run."""
        return self.rows_before(self.steps)

    @functools.cached_property
    def lengths(self) -> tuple[tuple[int, int], ...]:
        """(first row, S) of each sequence length, in order."""
        borders = self.borders
        found: list[tuple[int, int]] = []
        for phase, first in zip(self.phases, borders.first_rows.tolist(), strict=True):
            if not found or found[-1][1] != phase.sequence_length:
                found.append((first, phase.sequence_length))
        return tuple(found)

    @functools.cached_property
    def borders(self) -> "Borders":
        """Where the phases begin."""
        sizes, lengths, counts = (
            np.array(column, np.int64) for column in zip(*self.phases, strict=True)
        )
        return Borders(
            _sums_before(counts),
            _sums_before(counts * sizes),
            _sums_before(counts * sizes * lengths),
            sizes,
            lengths,
        )

    def shape(self, step: int) -> tuple[int, int]:
        """(sequences, S) of step `step`."""
        phase = self.phases[self._phase_of_step(step)]
        return phase.sequences, phase.sequence_length

    def shapes_from(self, step: int) -> list[tuple[int, int]]:
        """Each (sequences, S) of the steps from `step` on, once."""
        ends = np.cumsum([phase.steps for phase in self.phases])
        return sorted(
            {
                (phase.sequences, phase.sequence_length)
                for phase, end in zip(self.phases, ends, strict=True)
                if end > step
            }
        )

    def rows_before(self, step: int) -> int:
        """Rows taken by the steps 0 .. step - 1."""
        phase, borders = self._phase_of_step(step), self.borders
        within = step - borders.first_steps[phase]
        return int(borders.first_rows[phase] + within * borders.sizes[phase])

    def tokens_before(self, step: int) -> int:
        """Tokens learnt by the steps 0 .. step - 1."""
        phase, borders = self._phase_of_step(step), self.borders
        within = step - borders.first_steps[phase]
        per_step = borders.sizes[phase] * borders.lengths[phase]
        return int(borders.first_tokens[phase] + within * per_step)

    def rows_of_tokens(self, tokens: int) -> int:
        """The fewest rows from the start of the run that hold at least `tokens` tokens.

        After the end of the run, rows continue with the last length.
        """
        borders = self.borders
        phase = np.searchsorted(borders.first_tokens, tokens, side="right") - 1
        within = tokens - borders.first_tokens[phase]
        return int(borders.first_rows[phase] - (-within // borders.lengths[phase]))

    def tokens_of_rows(self, rows: int) -> int:
        """Tokens of the first `rows` rows; after the end of the run as in `rows_of_tokens`."""
        borders = self.borders
        phase = np.searchsorted(borders.first_rows, rows, side="right") - 1
        within = rows - borders.first_rows[phase]
        return int(borders.first_tokens[phase] + within * borders.lengths[phase])

    def _phase_of_step(self, step: int) -> int:
        return int(np.searchsorted(self.borders.first_steps, step, side="right")) - 1


class Borders(NamedTuple):
    """First step, row and token, sequences and sequence length; int64 [phases] each."""

    first_steps: np.ndarray
    first_rows: np.ndarray
    first_tokens: np.ndarray
    sizes: np.ndarray
    lengths: np.ndarray


def _sums_before(counts: np.ndarray) -> np.ndarray:
    """The sum of the counts before each phase."""
    return np.concatenate([[0], np.cumsum(counts)[:-1]])


def _phases(macro: str, what: str, asked: Phased) -> list[tuple[int, float]]:
    """(value, tokens) of each configured phase; the last has infinite tokens."""
    phases = [(asked, None)] if isinstance(asked, int) else list(asked)
    pairs = all(isinstance(phase, Sequence) and len(phase) == 2 for phase in phases)
    endless = [phase for phase in phases if pairs and phase[1] is None]
    if len(endless) != 1 or phases[-1][1] is not None:
        raise UsageError(
            f"{macro} = {asked!r}: a list of phases is [({what}, tokens of the run), ...] and ends "
            f"with ({what}, None), the one that lasts to the end of the run"
        )
    for value, tokens in phases:
        if value < 1 or (tokens is not None and tokens < 1):
            raise UsageError(f"{macro}: phase ({value}, {tokens}) must be positive")
    return [(value, math.inf if tokens is None else tokens) for value, tokens in phases]
