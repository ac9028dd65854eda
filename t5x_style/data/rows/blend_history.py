"""The blends that a run has had: rows that are past stay those of the blend they were read by."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_style.data import BatchPlan, BatchReader, Blend, BlendPhase, Stores, capped, in_rows
from t5x_style.data.blend.phases import shares_at
from t5x_style.errors import UsageError
from t5x_style.quantities import count


@dataclasses.dataclass(frozen=True)
class Chapter:
    """A blend that holds from a row on: from the first, or from a resume at which it was changed.

    Attributes:
      row, step: where it begins.
      asked: what it was made from, in JSON's own types; the same is no change.
      phases: in rows, counted from `row`; the last without an end.
      reached: (row of the run, source) of each source that is at its cap from there on, and whose
        share the others take.
    """

    row: int
    step: int
    asked: Any
    phases: tuple[BlendPhase, ...]
    reached: tuple[tuple[int, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plan.json holds it."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=dict))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Chapter":
        """The inverse of `to_json`."""
        phases = tuple(BlendPhase(**phase) for phase in fields["phases"])
        reached = tuple((row, name) for row, name in fields["reached"])
        return cls(**{**fields, "phases": phases, "reached": reached})

    def shares(self, row: int) -> dict[str, float]:
        """{source: share} at a row of the run."""
        return dict(phases_from(self.phases, row - self.row)[0].start)


def asked_blend(stores: Stores, caps: Mapping[str, float] | None) -> dict[str, Any]:
    """What the order of sources follows from, in JSON's own types.

    Args:
      caps: {source: epochs} after which others take its share; None if they do not.
    """
    phases = [dataclasses.asdict(phase) for phase in stores.phases]
    return json.loads(json.dumps({"phases": phases, "max_epochs": caps}, default=dict))


def chapters_of(
    stores: Stores,
    plan: BatchPlan,
    caps: Mapping[str, float] | None,
    *,
    written: Sequence[Chapter],
    resume: tuple[int, int] | None,
    change: bool,
) -> list[Chapter]:
    """The blends of a run, the one asked for last.

    Its phases count from the start of the run wherever it begins, so what is written for a run that
    has changed its mind is what would be written for one that always meant it.

    Args:
      stores, caps: as in `asked_blend`.
      plan: turns tokens into rows.
      written: the chapters of the run's last start.
      resume: (row, step) of the checkpoint to go on from; None: the run begins.
      change: whether another blend than the last one begins at `resume`.

    Raises:
      UsageError: an earlier blend has a source that this one has not, or all sources reach their
        caps before the end of the run.
    """
    asked = asked_blend(stores, caps)
    past: list[Chapter] = []
    row = step = 0
    if resume is not None and written:
        past, (row, step) = chapters_before(written, asked, resume, change=change)
    for name in {name for each in past for phase in each.phases for name in phase.start}:
        if name not in stores.train:
            raise UsageError(
                f"the run has read of the source {name!r}, and the blend asked for has none of it: "
                "give the phases from the start of the run, as in MIXTURE_OR_TASK_NAME = "
                "[(OLD, TOKENS), (NEW, None)]"
            )
    phases = phases_from(in_rows(stores.phases, plan.rows_of_tokens, plan.lengths), row)
    reached: tuple[tuple[int, str], ...] = ()
    if caps is not None:
        phases, reached = _within(caps, phases, row, past, stores, plan)
    return [*past, Chapter(row, step, asked, tuple(phases), reached)]


def chapters_before(
    written: Sequence[Chapter], asked: Any, resume: tuple[int, int], *, change: bool
) -> tuple[list[Chapter], tuple[int, int]]:
    """What stays of the chapters of a run, and (row, step) where the blend asked for begins.

    Arguments as in `chapters_of`, `written` with one at least. A blend that is another, and may not
    be, is taken to begin where the last one did: the run's identity refuses it.
    """
    last = written[-1]
    if asked == last.asked or not change:
        return list(written[:-1]), (last.row, last.step)
    # A chapter whose rows no checkpoint has seen has never been.
    past = [chapter for chapter in written if chapter.row < resume[0]]
    if past and asked == past[-1].asked:
        return past[:-1], (past[-1].row, past[-1].step)
    return past, resume


def phases_from(phases: Sequence[BlendPhase], row: int) -> list[BlendPhase]:
    """What is left of phases from a row on; a ramp that has begun goes on from where it stands."""
    left = []
    for phase in phases:
        if phase.rows is None or row <= 0:
            left.append(phase)
        elif row < phase.rows:
            here = shares_at(phase, row / phase.rows)
            left.append(BlendPhase(phase.rows - row, here, phase.end))
        row -= phase.rows or 0
    return left


def reader_of(
    chapters: Sequence[Chapter],
    stores: Stores,
    plan: BatchPlan,
    seed: int,
    *,
    document_starts: bool = False,
) -> BatchReader:
    """Rows of the chapters' blends."""
    first, *changes = chapters
    return BatchReader(
        Blend(first.phases, [(chapter.row, chapter.phases) for chapter in changes]),
        stores.train,
        sequence_lengths=plan.lengths,
        seed=seed,
        document_starts=document_starts,
    )


def _within(
    caps: Mapping[str, float],
    phases: Sequence[BlendPhase],
    row: int,
    past: Sequence[Chapter],
    stores: Stores,
    plan: BatchPlan,
) -> tuple[list[BlendPhase], tuple[tuple[int, str], ...]]:
    """The phases from `row` on in which others take the share of a source that is at its cap."""
    left = {
        name: cap * min((size - 1) // length * length for _, length in plan.lengths)
        for name, cap in caps.items()
        for size in [stores.train[name].num_tokens]
    }
    if past:
        # The seed says which windows come, not how many.
        reader = reader_of(past, stores, plan, seed=0)
        for name, tokens in zip(reader.names, reader.tokens_by_source(row).tolist(), strict=True):
            left[name] -= tokens
    ends = [first for first, _ in plan.lengths[1:]]
    lengths = [
        (max(0, first - row), length)
        for (first, length), end in zip(plan.lengths, [*ends, None], strict=True)
        if end is None or end > row
    ]
    within, reached = capped(phases, left, lengths)
    if not within or within[-1].rows is not None:
        end = row + sum(phase.rows or 0 for phase in within)
        if end < plan.rows:
            raise UsageError(
                f"AT_CAP = 'renormalise': every source of the blend is at its cap of epochs after "
                f"{count(plan.tokens_of_rows(end))} of {count(plan.tokens)} tokens: shorten the "
                "run, or raise max_epochs"
            )
        # Behind the end of the run, where nothing is read.
        last = within[-1].end if within else phases[-1].end
        within.append(BlendPhase(None, last, last))
    return within, tuple((row + at, name) for at, name in reached)
