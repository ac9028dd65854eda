"""AdamW with global-norm clipping, decaying matrices alone."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import gin
import jax
import optax

from t5x_style.data.rows.batch_plan import BatchPlan
from t5x_style.optim.optimizer import LearningRateSchedule
from t5x_style.optim.schedule import traced_tokens_before
from t5x_style.plugins import check_fulfils
from t5x_style.ranges import NonNegativeFloat, PositiveFloat, Range, check_ranges


@gin.configurable
@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov and Hutter 2019).

    Attributes:
      schedule: the learning rate by tokens, @Schedule() or your own.
      b1, b2, epsilon: Adam's constants.
      weight_decay: per step, times the learning rate, on matrices alone: norms, biases and gains
        never decay (BloombergGPT's v1 runs diverged because they did).
      clip_norm: gradients whose global norm is greater are scaled down to it; None leaves them.
    """

    # Two float32 moments.
    state_bytes_per_parameter: ClassVar[int] = 8

    schedule: LearningRateSchedule
    b1: Annotated[float, Range(least=0, below=1)] = 0.9
    b2: Annotated[float, Range(least=0, below=1)] = 0.95
    epsilon: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    clip_norm: PositiveFloat | None = 1.0

    def __post_init__(self):
        check_fulfils("AdamW.schedule", self.schedule, LearningRateSchedule)
        check_ranges(self)

    def check(self, horizon_tokens: int) -> None:
        """Refuse a run that is too short for the schedule. Raises UsageError."""
        self.schedule.check(horizon_tokens)

    def learning_rate(self, plan: BatchPlan) -> Callable[[jax.Array], jax.Array]:
        """A function from a traced step to its learning rate, float32.

        The first step counts its own tokens, so that the warm-up never wastes a step at zero.
        """

        def rate_at(step):
            return self.schedule.learning_rate(traced_tokens_before(plan, step + 1), plan.tokens)

        return rate_at

    def transformation(self, plan: BatchPlan, parameter_axes: Any) -> optax.GradientTransformation:
        """The optax chain.

        Args:
          plan: turns steps into tokens.
          parameter_axes: pytree like the parameters, with a tuple of logical axes for each.

        Returns:
          A transformation whose `update` takes the run's step, `step=`. The learning rate is that
          of the step, also after an update that was not applied. The bias correction is that of the
          number of updates.
        """
        is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
        matrices = jax.tree.map(_is_matrix, parameter_axes, is_leaf=is_axes)
        clip = (
            optax.identity()
            if self.clip_norm is None
            else optax.clip_by_global_norm(self.clip_norm)
        )
        return optax.chain(
            clip,
            optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.epsilon),
            optax.add_decayed_weights(self.weight_decay, mask=matrices),
            _by_the_step(optax.scale_by_learning_rate(self.learning_rate(plan))),
        )


def _by_the_step(schedule: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """A schedule that counts the steps of the run and not its own updates."""

    def update(updates, state, params=None, *, step=None, **_):
        if step is not None:
            state = state._replace(count=step)
        return schedule.update(updates, state, params)

    return optax.GradientTransformationExtraArgs(schedule.init, update)


def _is_matrix(axes: tuple[str | None, ...]) -> bool:
    """Two axes or more, the stack of layers not counted; a stacked bias or gain has one."""
    return len([axis for axis in axes if axis != "layers"]) >= 2
