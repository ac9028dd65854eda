"""What a team brings of its own, outside the package: one of each seam, in a few lines."""

import dataclasses
from typing import ClassVar

import gin
import jax
import jax.numpy as jnp
import optax

from t5x_style.accounting import Chip, FeedForwardKind
from t5x_style.errors import UsageError

# GELU with a gate (Shazeer 2020).
GEGLU = FeedForwardKind(
    gated=True,
    factor_arrays=6,
    activation=lambda up, gate: jax.nn.gelu(gate, approximate=True) * up,
)

# A chip of 1 PFLOP/s.
MY_CHIP = Chip(
    name="my_chip",
    peak_bf16_flops=1e15,
    hbm_bytes=64 * 10**9,
    hbm_bandwidth=2e12,
    devices_per_chip=1,
    device_kinds=("My chip",),
    source="its datasheet",
    interconnect="torus_2d",
    links=4,
    link_bandwidth=50e9,
    link_domain=256,
    network_bandwidth=3e9,
)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Lion:
    """Lion (Chen et al. 2023) at a constant learning rate: one float32 moment."""

    state_bytes_per_parameter: ClassVar[int] = 4

    rate: float

    def check(self, horizon_tokens):
        if horizon_tokens < 100:
            raise UsageError(f"Lion learns nothing in {horizon_tokens} tokens")

    def learning_rate(self, plan):
        return lambda step: jnp.full((), self.rate, jnp.float32)

    def transformation(self, plan, parameter_axes):
        return optax.lion(self.learning_rate(plan), weight_decay=0.0)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Staircase:
    """A learning rate that is halved at every quarter of the run."""

    first: float

    def check(self, horizon_tokens):
        if horizon_tokens < 4:
            raise UsageError(f"a Staircase of {horizon_tokens} tokens has no four steps")

    def learning_rate(self, tokens, horizon_tokens):
        quarter = jnp.floor(4 * tokens / horizon_tokens)
        return self.first * 0.5 ** jnp.minimum(quarter, 3)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class WorstRow:
    """The largest loss of a row, in nats per token."""

    name: str = "worst_row"

    def value(self, sums):
        return (sums.row_nats / sums.row_tokens).max()
