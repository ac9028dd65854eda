"""The search for a layout: mesh, remat, rows a pass and flags, each compiled and estimated."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Set
from typing import Any

from t5x_style.accounting import chip
from t5x_style.accounting.layouts.meshes import fitting_meshes
from t5x_style.accounting.layouts.roofline import EXPOSED_SHARE
from t5x_style.compiling import described_devices
from t5x_style.compiling.estimates.assumptions import CLOCKS
from t5x_style.compiling.report import RunStep, compiled_report, mesh_of, refusal_of
from t5x_style.errors import UsageError
from t5x_style.partitioning import Topology

# By which a step's seconds are estimated.
ASSUMPTIONS = "own"
# Of the time, for meshes and remat policies; the rest is for flags.
_LAYOUTS_SHARE = 0.75


@dataclasses.dataclass(frozen=True)
class Trial:
    """A layout that was compiled.

    Attributes:
      change: what is unlike the layout before, for people.
      report: see `compiled_report`; None where the compiler refused it or what it made does not
        fit, for `refusal`.
    """

    topology: Topology
    microbatches: int
    change: str
    report: dict[str, Any] | None
    refusal: str | None = None

    @property
    def seconds(self) -> float:
        """Of the step, half of what can hide hidden; infinite where there is none."""
        if self.report is None:
            return float("inf")
        estimate = self.report["estimates"][ASSUMPTIONS]
        hidden, exposed = estimate["seconds_hidden"], estimate["seconds_exposed"]
        return hidden + EXPOSED_SHARE * (exposed - hidden)

    @property
    def peak(self) -> int:
        """Bytes of a chip at the fullest moment."""
        assert self.report is not None
        return self.report["bytes_per_chip"]["peak"]

    def facts(self) -> dict[str, Any]:
        """What is told of it: mesh, remat, microbatches, compiler_flags, change, refusal; and of
        a compiled one peak (bytes of a chip), seconds, mfu_hidden and mfu_exposed."""
        facts: dict[str, Any] = {
            "mesh": self.topology.mesh_shape,
            "remat": self.topology.remat,
            "microbatches": self.microbatches,
            "compiler_flags": dict(self.topology.compiler_flags),
            "change": self.change,
            "refusal": self.refusal,
        }
        if self.report is not None:
            estimate = self.report["estimates"][ASSUMPTIONS]
            facts |= {"peak": self.peak, "seconds": self.seconds}
            facts |= {name: estimate[name] for name in ("mfu_hidden", "mfu_exposed")}
        return facts


def search(
    step: RunStep, topology: Topology, minutes: float, tell: Callable[[Trial], None]
) -> list[Trial]:
    """Compiles layouts until the time is over, one at least: meshes, remat policies and passes in
    the planner's order, then the fastest of them without its compiler flags, each and all.

    Args:
      topology: what a layout does not change is taken from it.
      tell: called after each.

    Raises:
      UsageError: no slice is described, no layout fits it, or its chip has no estimate.
    """
    if topology.chip not in CLOCKS:
        raise UsageError(
            f"Topology.chip = {topology.chip!r}: steps are estimated, and so can be ranked, of "
            f"{', '.join(CLOCKS)}"
        )
    begun = time.monotonic()
    trials: list[Trial] = []
    refused: dict[tuple[int, ...], int] = {}

    def over(share: float) -> bool:
        return bool(trials) and time.monotonic() - begun > 60 * minutes * share

    def attempt(own_step: RunStep, layout: Topology, change: str) -> Trial:
        trials.append(_compiled(own_step, layout, change))
        tell(trials[-1])
        return trials[-1]

    for own_step, layout, planned in candidates(step, topology):
        if over(_LAYOUTS_SHARE):
            break
        mesh = tuple(layout.mesh_shape.values())
        # The compiler's word on a leaner layout of this mesh.
        if planned >= refused.get(mesh, planned + 1):
            continue
        if attempt(own_step, layout, "").refusal is not None:
            refused[mesh] = planned
    best = fastest(trials)
    flags = dict(best.topology.compiler_flags)
    fewer: dict[str, Set[str]] = {f"without {name}": flags.keys() - {name} for name in flags}
    fewer["without flags"] = set()
    for change, kept in fewer.items() if flags else ():
        if over(1.0):
            break
        layout = dataclasses.replace(
            best.topology, compiler_flags={name: flags[name] for name in flags if name in kept}
        )
        attempt(dataclasses.replace(step, microbatches=best.microbatches), layout, change)
    return trials


def fastest(trials: list[Trial]) -> Trial:
    """The one whose step takes the fewest seconds.

    Raises:
      UsageError: the compiler refused them all; with its last word.
    """
    best = min(trials, key=lambda trial: trial.seconds)
    if best.report is None:
        raise UsageError(f"none of {len(trials)} layouts fits; the last: {trials[-1].refusal}")
    return best


def unbeaten(trials: list[Trial]) -> list[Trial]:
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


def candidates(step: RunStep, topology: Topology) -> Iterator[tuple[RunStep, Topology, int]]:
    """Meshes of the topology's slice under each remat policy, with the fewest passes that fit: as
    the planner ranks them, the one that it expects to be fastest first.

    Returns:
      The step with its passes, the layout, and the bytes of a device that the planner expects.

    Raises:
      UsageError: none fits.
    """
    devices = len(described_devices(topology))
    of = chip(str(topology.chip))
    for each in fitting_meshes(
        step.architecture,
        of,
        devices // of.devices_per_chip,
        step.sequences,
        step.sequence_length,
        kernel=topology.kernel,
        attention_block=topology.attention_block,
        loss_chunk_tokens=topology.loss_chunk_tokens,
        loss_vocab_chunks=topology.loss_vocab_chunks,
        shard_optimizer_over_data=topology.shard_optimizer_over_data,
        compute_dtype=step.compute_dtype,
    ):
        if each.mesh.data % topology.slices == 0:
            yield (
                dataclasses.replace(step, microbatches=each.microbatches),
                dataclasses.replace(topology, remat=each.remat, **dataclasses.asdict(each.mesh)),
                each.memory.total,
            )


def _compiled(step: RunStep, topology: Topology, change: str) -> Trial:
    try:
        report, _ = compiled_report(step, topology, mesh_of(topology))
    except UsageError as error:
        return Trial(topology, step.microbatches, change, None, str(error))
    if (refusal := refusal_of(report, step, topology)) is not None:
        return Trial(topology, step.microbatches, change, None, refusal)
    return Trial(topology, step.microbatches, change, report)
