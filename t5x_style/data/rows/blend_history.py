"""The blends that a run has had. A change keeps the rows before it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_style.data import (
    BatchPlan,
    BatchReader,
    Blend,
    BlendPhase,
    SharePhase,
    Stores,
    capped,
    in_rows,
)
from t5x_style.data.blend.phases import shares_at
from t5x_style.errors import UsageError
from t5x_style.quantities import count


@dataclasses.dataclass(frozen=True)
class BlendVersion:
    """A blend that holds from a row on: the first row, or that of a resume which changed it.

    Attributes:
      row, step: where it begins.
      asked: the configuration that it was made from, in JSON types; an equal one is no change.
      phases: in rows, counted from `row`; the last without an end.
      capped_at: (row of the run, source) of each source that reaches its cap there. The others
        take its share.
    """

    row: int
    step: int
    asked: Any
    phases: tuple[BlendPhase, ...]
    capped_at: tuple[tuple[int, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The form in plan.json."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=dict))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "BlendVersion":
        """The inverse of `to_json`."""
        phases = tuple(BlendPhase(**phase) for phase in fields["phases"])
        # Plans of an older row order have another key; their identity is refused later.
        capped_at = tuple((row, name) for row, name in fields.get("capped_at", []))
        return cls(fields["row"], fields["step"], fields["asked"], phases, capped_at)

    def shares(self, row: int) -> dict[str, float]:
        """{source: share} at a row of the run."""
        return dict(phases_from(self.phases, row - self.row)[0].start)


def asked_blend(stores: Stores, caps: Mapping[str, float] | None) -> dict[str, Any]:
    """The configuration that the order of sources follows from, in JSON types.

    Args:
      caps: {source: epochs} after which the others take its share; None: without this rule.
    """
    phases = [dataclasses.asdict(phase) for phase in stores.phases]
    return json.loads(json.dumps({"phases": phases, "max_epochs": caps}, default=dict))


def blend_versions(
    stores: Stores,
    plan: BatchPlan,
    caps: Mapping[str, float] | None,
    *,
    written: Sequence[BlendVersion],
    resume: tuple[int, int] | None,
    change: bool,
) -> list[BlendVersion]:
    """The blends of a run, the configured one last.

    Phases count from the start of the run, wherever this start of it begins. So a run with a
    changed blend is configured exactly as one that had the whole schedule from the start.

    Args:
      stores, caps: as in `asked_blend`.
      plan: turns tokens into rows.
      written: the versions of the run's last start.
      resume: (row, step) of the checkpoint to resume from; None: the run begins.
      change: whether a different blend may begin at `resume`.

    Raises:
      UsageError: an earlier blend has a source that this one lacks, or all sources reach their caps
        before the end of the run.
    """
    asked = asked_blend(stores, caps)
    past: list[BlendVersion] = []
    row = step = 0
    if resume is not None and written:
        past, (row, step) = versions_before(written, asked, resume, change=change)
        # Rows that are due together come in the order of the names. A blend that is written in
        # another order is the same blend, and keeps its rows.
        asked = next(
            (version.asked for version in reversed(written) if version.asked == asked), asked
        )
    for name in {name for version in past for phase in version.phases for name in phase.start}:
        if name not in stores.train:
            raise UsageError(
                f"the run has read the source {name!r}, and the configured blend lacks it: give "
                "the phases from the start of the run, as in MIXTURE_OR_TASK_NAME = "
                "[(OLD, TOKENS), (NEW, None)]"
            )
    in_tokens = [SharePhase(**phase) for phase in asked["phases"]]
    phases = phases_from(in_rows(in_tokens, plan.rows_of_tokens, plan.lengths), row)
    capped_at: tuple[tuple[int, str], ...] = ()
    if caps is not None:
        phases, capped_at = _capped_from(row, phases, caps, past, stores, plan)
    return [*past, BlendVersion(row, step, asked, tuple(phases), capped_at)]


def versions_before(
    written: Sequence[BlendVersion], asked: Any, resume: tuple[int, int], *, change: bool
) -> tuple[list[BlendVersion], tuple[int, int]]:
    """The versions that a run keeps, and (row, step) where the configured blend begins.

    Arguments as in `blend_versions`, with at least one in `written`. A different blend without
    `change` gets the place of the last one; the run's identity refuses it.
    """
    last = written[-1]
    if asked == last.asked or not change:
        return list(written[:-1]), (last.row, last.step)
    # No checkpoint contains rows of a version that begins at or after the resume: it is dropped.
    past = [version for version in written if version.row < resume[0]]
    if past and asked == past[-1].asked:
        return past[:-1], (past[-1].row, past[-1].step)
    return past, resume


def phases_from(phases: Sequence[BlendPhase], row: int) -> list[BlendPhase]:
    """The phases from a row on; a ramp that has begun continues from its shares at the row."""
    remaining = []
    for phase in phases:
        if phase.rows is None or row <= 0:
            remaining.append(phase)
        elif row < phase.rows:
            here = shares_at(phase, row / phase.rows)
            remaining.append(BlendPhase(phase.rows - row, here, phase.end))
        row -= phase.rows or 0
    return remaining


def reader_of(
    versions: Sequence[BlendVersion],
    stores: Stores,
    plan: BatchPlan,
    seed: int,
    *,
    document_starts: bool = False,
) -> BatchReader:
    """A reader of the rows of these blends."""
    first, *changes = versions
    return BatchReader(
        Blend(first.phases, [(version.row, version.phases) for version in changes]),
        stores.train,
        sequence_lengths=plan.lengths,
        seed=seed,
        document_starts=document_starts,
        vocab_size=stores.tokenizer.vocab_size,
    )


def _capped_from(
    row: int,
    phases: Sequence[BlendPhase],
    caps: Mapping[str, float],
    past: Sequence[BlendVersion],
    stores: Stores,
    plan: BatchPlan,
) -> tuple[list[BlendPhase], tuple[tuple[int, str], ...]]:
    """The phases from `row` on, in which others take the share of a source at its cap."""
    left = {
        name: cap * min((size - 1) // length * length for _, length in plan.lengths)
        for name, cap in caps.items()
        for size in [stores.train[name].num_tokens]
    }
    if past:
        # The seed changes which windows are read, not how many.
        reader = reader_of(past, stores, plan, seed=0)
        for name, tokens in zip(reader.names, reader.tokens_by_source(row).tolist(), strict=True):
            left[name] -= tokens
    ends = [first for first, _ in plan.lengths[1:]]
    lengths = [
        (max(0, first - row), length)
        for (first, length), end in zip(plan.lengths, [*ends, None], strict=True)
        if end is None or end > row
    ]
    result, capped_at = capped(phases, left, lengths)
    if not result or result[-1].rows is not None:
        end = row + sum(phase.rows or 0 for phase in result)
        if end < plan.rows:
            raise UsageError(
                f"AT_CAP = 'renormalise': every source of the blend is at its cap of epochs after "
                f"{count(plan.tokens_of_rows(end))} of {count(plan.tokens)} tokens: shorten the "
                "run, or raise max_epochs"
            )
        # After the end of the run, where nothing is read.
        last = result[-1].end if result else phases[-1].end
        result.append(BlendPhase(None, last, last))
    return result, tuple((row + at, name) for at, name in capped_at)
