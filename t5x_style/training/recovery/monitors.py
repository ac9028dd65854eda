"""Warns of a slow divergence, by limits on the monitors of a training line."""

import dataclasses
from collections.abc import Mapping

import gin

from t5x_style.ranges import PositiveFloat, check_ranges
from t5x_style.step.monitors import PREFIX


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Monitors:
    """Limits on the signs of a slow divergence; a warning when a training line passes one.

    Each training line has these figures under `monitor/`. A limit of None is not watched.

    Attributes:
      first_gain_rms: of the gains of the first layer's norms, which begin at 1.
      embedding_rms: of the embedding, which begins below 1.
      update_ratio: |update| / |weights| of the layer where it is largest. It is about the learning
        rate over the size of a weight; at 1 a step moves a layer by all that it is.
      largest_logit: of the batch. It grows without bound where log(Z) drifts; a z-loss holds it.

    Raises:
      UsageError: a limit is not positive.
    """

    first_gain_rms: PositiveFloat | None = 4.0
    embedding_rms: PositiveFloat | None = 10.0
    update_ratio: PositiveFloat | None = 1.0
    largest_logit: PositiveFloat | None = 100.0

    def __post_init__(self):
        check_ranges(self)

    def warnings(
        self, before: Mapping[str, float | None], line: Mapping[str, float | None]
    ) -> list[str]:
        """What a training line has passed, and the line before it (maybe empty) had not."""
        found = []
        for name, limit in dataclasses.asdict(self).items():
            then, now = before.get(PREFIX + name), line.get(PREFIX + name)
            if limit is None or now is None or (then is not None and then > limit):
                continue
            if now > limit:
                found.append(f"{name} {now:.4g} is above the limit Monitors.{name} = {limit:g}")
        return found
