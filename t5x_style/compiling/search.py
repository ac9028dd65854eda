"""The search for a layout: mesh, remat, microbatches and flags, each compiled and estimated."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

from t5x_style.accounting import CHIPS, StepShape, Topology, chip
from t5x_style.accounting.layouts.meshes import fitting_meshes
from t5x_style.accounting.layouts.roofline import EXPOSED_SHARE
from t5x_style.compiling.described_tpus import described_devices
from t5x_style.compiling.report import CompileReport, compiled_report, mesh_of, refusal_of
from t5x_style.errors import UsageError
from t5x_style.step.spec import StepSpec

# The assumptions by which a step's seconds are estimated.
ASSUMPTIONS = "own"
# Share of the time for meshes and remat policies; the rest is for flags.
_LAYOUTS_SHARE = 0.75


@dataclasses.dataclass(frozen=True)
class Trial:
    """A layout that was compiled.

    Attributes:
      change: how it differs from the layout before, for people.
      report: None where the compiler refused the layout, or its program does not fit.
      refusal: the reason, in that case.
    """

    topology: Topology
    change: str
    report: CompileReport | None
    refusal: str | None = None

    @property
    def seconds(self) -> float:
        """Of the step, with EXPOSED_SHARE of the hideable seconds exposed; infinite without a
        report."""
        if self.report is None:
            return float("inf")
        estimate = self.report.estimates[ASSUMPTIONS]
        hidden, exposed = estimate.hidden_seconds, estimate.exposed_seconds
        return hidden + EXPOSED_SHARE * (exposed - hidden)

    @property
    def mfu(self) -> tuple[float, float]:
        """Causal, with all collectives hidden and with none. The trial must have a report."""
        assert self.report is not None
        estimate = self.report.estimates[ASSUMPTIONS]
        return estimate.mfu(estimate.hidden_seconds), estimate.mfu(estimate.exposed_seconds)

    @property
    def peak(self) -> int:
        """Bytes of a chip at the fullest moment. The trial must have a report."""
        assert self.report is not None
        assert self.report.memory is not None
        return self.report.memory.peak

    def to_json(self) -> dict[str, Any]:
        """mesh, remat, microbatches, compiler_flags, change, refusal; and with a report peak
        (bytes of a chip), seconds, mfu_hidden and mfu_exposed."""
        found: dict[str, Any] = {
            "mesh": self.topology.mesh_shape,
            "remat": self.topology.remat,
            "microbatches": self.topology.microbatches,
            "compiler_flags": dict(self.topology.compiler_flags),
            "change": self.change,
            "refusal": self.refusal,
        }
        if self.report is not None:
            hidden, exposed = self.mfu
            found |= {"peak": self.peak, "seconds": self.seconds}
            found |= {"mfu_hidden": hidden, "mfu_exposed": exposed}
        return found


def search(
    spec: StepSpec,
    shape: StepShape,
    topology: Topology,
    minutes: float,
    when_compiled: Callable[[Trial], None],
) -> list[Trial]:
    """Compiles layouts until the time is over, but at least one.

    First meshes, remat policies and microbatches in the planner's order; then the fastest of them
    without each of its compiler flags, and without all.

    Args:
      topology: the fields that no layout changes.
      when_compiled: called after each trial.

    Raises:
      UsageError: the topology has no slice, no layout fits it, or its chip has no estimate.
    """
    timed = [name for name, row in CHIPS.items() if row.clock is not None]
    if topology.chip is None or chip(topology.chip).clock is None:
        raise UsageError(
            f"Topology.chip = {topology.chip!r}: a search ranks layouts by estimated seconds, "
            f"and only {', '.join(timed)} have estimates"
        )
    begun = time.monotonic()
    trials: list[Trial] = []
    refused: dict[str, int] = {}

    def time_is_over(share: float) -> bool:
        return bool(trials) and time.monotonic() - begun > 60 * minutes * share

    def attempt(layout: Topology, change: str) -> Trial:
        trials.append(_compiled(spec, shape, layout, change))
        when_compiled(trials[-1])
        return trials[-1]

    for layout, planned in candidates(shape, topology):
        if time_is_over(_LAYOUTS_SHARE):
            break
        # The compiler refused a layout of this mesh with fewer planned bytes.
        if planned >= refused.get(layout.mesh_text, planned + 1):
            continue
        if attempt(layout, "").refusal is not None:
            refused[layout.mesh_text] = planned
    best = fastest(trials).topology
    flags = dict(best.compiler_flags)
    fewer: dict[str, Set[str]] = {f"without {name}": flags.keys() - {name} for name in flags}
    fewer["without flags"] = set()
    for change, kept in fewer.items() if flags else ():
        if time_is_over(1.0):
            break
        rest = {name: flags[name] for name in flags if name in kept}
        attempt(dataclasses.replace(best, compiler_flags=rest), change)
    return trials


def fastest(trials: Sequence[Trial]) -> Trial:
    """The trial whose step takes the fewest seconds.

    Raises:
      UsageError: the compiler refused them all. The message has the last refusal.
    """
    best = min(trials, key=lambda trial: trial.seconds)
    if best.report is None:
        refusal = trials[-1].refusal
        raise UsageError(f"none of {len(trials)} layouts fits. Refusal of the last: {refusal}")
    return best


def unbeaten(trials: Sequence[Trial]) -> list[Trial]:
    """The Pareto set: no other trial is as fast in as little memory, and better in one of them."""
    done = [trial for trial in trials if trial.report is not None]
    return [
        trial
        for trial in done
        if not any(
            other.seconds <= trial.seconds
            and other.peak <= trial.peak
            and (other.seconds, other.peak) != (trial.seconds, trial.peak)
            for other in done
        )
    ]


def candidates(shape: StepShape, topology: Topology) -> Iterator[tuple[Topology, int]]:
    """Meshes of the topology's slice under each remat policy, with the fewest microbatches that
    fit, in the planner's order, the fastest by its estimate first.

    Returns:
      The layout, and the planner's estimate of a device's bytes.

    Raises:
      UsageError: none fits.
    """
    row = chip(str(topology.chip))
    chips = len(described_devices(topology)) // row.devices_per_chip
    for candidate in fitting_meshes(shape, topology, row, chips):
        if candidate.topology.data % topology.slices == 0:
            layout = dataclasses.replace(candidate.topology, slices=topology.slices)
            yield layout, candidate.memory.total


def _compiled(spec: StepSpec, shape: StepShape, topology: Topology, change: str) -> Trial:
    try:
        report, _ = compiled_report(spec, shape, topology, mesh_of(topology))
    except UsageError as error:
        return Trial(topology, change, None, str(error))
    if (refusal := refusal_of(report)) is not None:
        return Trial(topology, change, None, refusal)
    return Trial(topology, change, report)
