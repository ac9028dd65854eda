"""WHAT a run computes: the value that, with a `Topology`, determines the train step."""

import dataclasses

from t5x_style.accounting import Architecture, StepShape
from t5x_style.data import BatchPlan, Packing
from t5x_style.errors import one_of
from t5x_style.optim import Optimizer
from t5x_style.plugins import check_fulfils
from t5x_style.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt, check_ranges
from t5x_style.step.model_state import COMPUTE_DTYPES
from t5x_style.step.step import AS_STORED


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """Whatever changes the numbers that a step computes, the parameters and the batch apart.

    Attributes:
      architecture: of the model.
      optimizer: makes the transformation and the learning rate.
      plan: of the whole run; the learning rate follows its tokens.
      compute_dtype: of activations and multiplied weights, one of COMPUTE_DTYPES.
      packing: how documents share a row.
      z_loss: coefficient of log(Z)^2.
      sources: number of sources in the run's blend.
      eos_id: the token that ends a document.
    """

    architecture: Architecture
    optimizer: Optimizer
    plan: BatchPlan
    compute_dtype: str = "bfloat16"
    packing: Packing = AS_STORED
    z_loss: NonNegativeFloat = 0.0
    sources: PositiveInt = 1
    eos_id: NonNegativeInt = 1

    def __post_init__(self):
        check_ranges(self, "train")
        check_fulfils("train.optimizer", self.optimizer, Optimizer)
        one_of("train.compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
        for phase in self.plan.phases:
            self.architecture.check_length(phase.sequence_length)

    def shape(self, sequences: int, sequence_length: int) -> StepShape:
        """A step of that shape as plain numbers, for the accounts."""
        return StepShape(
            self.architecture,
            sequences,
            sequence_length,
            self.compute_dtype,
            self.optimizer.state_bytes_per_parameter,
        )

    @property
    def shapes(self) -> list[StepShape]:
        """Every shape of the run's steps, once."""
        return [self.shape(*shape) for shape in self.plan.shapes_from(0)]
