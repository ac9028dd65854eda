"""Seconds of a training step, from the compiled program and a set of assumptions.

An estimate, not a measurement: it adds up the compiler's estimates of the operations. It leaves out
stragglers, links that two collectives share, the input and checkpoints. Only a run on chips shows
how much of the collectives overlaps with work. So a step has two figures: with all of them hidden,
and with none.
"""

import dataclasses

from t5x_style.accounting.chips import Chip
from t5x_style.compiling.estimates.assumptions import ASSUMPTIONS
from t5x_style.compiling.estimates.torus import Places
from t5x_style.compiling.hlo.collectives import NETWORK
from t5x_style.compiling.hlo.kernel_calls import AttentionWork, kernel_flops
from t5x_style.compiling.hlo.program import Program
from t5x_style.errors import Fault, UsageError, one_of
from t5x_style.quantities import SECONDS_PER_DAY


@dataclasses.dataclass(frozen=True)
class StepEstimate:
    """A step's seconds on one device by cause, and the figures that follow from them.

    Attributes:
      assumptions: name of the set.
      compute_seconds: operations that the compiler has estimated.
      kernel_seconds: Pallas kernels.
      wire_seconds: by mesh axes, as `Collective.axis`: how long the links, or for 'dcn' the
        network, are busy.
      tokens: of the step, all devices together.
      chips: all of them. peak_flops: FLOP/s of all of them together.
      model_flops: of the step, causal. hardware_flops: of the step, as executed.
    """

    assumptions: str
    compute_seconds: float
    kernel_seconds: float
    wire_seconds: dict[str, float]
    tokens: int
    chips: int
    peak_flops: float
    model_flops: float
    hardware_flops: float

    @property
    def hidden_seconds(self) -> float:
        """Seconds of the step if links, network and cores all work at the same time."""
        network = self.wire_seconds.get(NETWORK, 0.0)
        links = sum(self.wire_seconds.values()) - network
        return max(self.compute_seconds + self.kernel_seconds, links, network)

    @property
    def exposed_seconds(self) -> float:
        """Seconds of the step if they work one after the other."""
        return self.compute_seconds + self.kernel_seconds + sum(self.wire_seconds.values())

    def mfu(self, seconds: float) -> float:
        """Share of the peak that the model's causal FLOPs take, if a step takes `seconds`."""
        return self.model_flops / (seconds * self.peak_flops)

    def hfu(self, seconds: float) -> float:
        """Share of the peak that the executed FLOPs take, if a step takes `seconds`."""
        return self.hardware_flops / (seconds * self.peak_flops)

    def days(self, run_tokens: float, seconds: float) -> float:
        """Days of a run of so many tokens, if a step takes `seconds`."""
        return run_tokens / self.tokens * seconds / SECONDS_PER_DAY

    def cost(self, run_tokens: float, seconds: float, price_per_chip_hour: float) -> float:
        """Cost of that run, in the price's currency."""
        return self.days(run_tokens, seconds) * 24 * self.chips * price_per_chip_hour


def estimate(
    program: Program,
    chip: Chip,
    places: Places,
    *,
    tokens: int,
    model_flops: float,
    attention: AttentionWork | None = None,
    slices: int = 1,
    assumptions: str = "own",
) -> StepEstimate:
    """Adds up the seconds of a step.

    Args:
      program: of the step, read with the mesh that it was compiled for.
      places: `jax.Device.coords` of all devices of ONE slice, in the order of the mesh.
      tokens: of the step. model_flops: of the step by the convention 'causal'; both of all devices
        of all slices.
      attention: the work of one call of a kernel; None for a program without kernels.
      slices: that the program runs on.
      assumptions: 'own' or 'flat' (see ASSUMPTIONS).

    Raises:
      UsageError: there is no such set of assumptions, or the chip has no clock.
      Fault: a kernel of the program is not in the table of kernels, or `attention` is None.
    """
    one_of("assumptions", assumptions, ASSUMPTIONS)
    if chip.clock is None:
        raise UsageError(
            f"no estimate for a {chip.name}: the clock of its compiler's cycles is not known"
        )
    assumed = ASSUMPTIONS[assumptions]
    kernel_seconds = executed = 0.0
    if program.kernels:
        if attention is None:
            raise Fault(
                f"the program runs the kernels {', '.join(program.kernel_calls)}, but their "
                "`attention` (the work of one call) was not given"
            )
        kernel_seconds = assumed.kernel_seconds(chip, program.kernels, attention)
        executed = kernel_flops(program.kernels, attention)
    wire: dict[str, float] = {}
    for collective in program.collectives:
        if collective.axis == NETWORK:
            bandwidth = chip.network_bandwidth
        else:
            bandwidth = assumed.bandwidth(chip, [places[i] for i in collective.group], places)
        seconds = collective.count * collective.wire_bytes / bandwidth
        wire[collective.axis] = wire.get(collective.axis, 0.0) + seconds
    devices = len(places) * slices
    chips = devices // chip.devices_per_chip
    return StepEstimate(
        assumptions=assumptions,
        compute_seconds=sum(program.estimated_cycles.values()) / chip.clock,
        kernel_seconds=kernel_seconds,
        wire_seconds=dict(sorted(wire.items(), key=lambda item: -item[1])),
        tokens=tokens,
        chips=chips,
        peak_flops=chips * chip.peak_bf16_flops,
        model_flops=model_flops,
        hardware_flops=devices * (program.matmul_flops + executed),
    )
