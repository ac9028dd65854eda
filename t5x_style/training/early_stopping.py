"""Early stopping: when to end before the planned tokens because validation no longer improves.

BloombergGPT ended in this way. It was stopped at step 146,000, and the model is the checkpoint of
step 139,200, at 80 % of its 708.9 billion tokens (Wu et al. 2023). The decision depends only on the
evaluation lines of metrics.jsonl, so a run that was killed and resumed decides the same.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import gin

from t5x_style.errors import UsageError, did_you_mean, one_of
from t5x_style.quantities import count
from t5x_style.ranges import NonNegativeFloat, PositiveInt, check_ranges
from t5x_style.reporting.run.held_out_text import evaluation_weights, weights_text

MEASURES = ("bits_per_byte", "loss")
MODES = ("keep", "advise", "stop")


@dataclasses.dataclass(frozen=True)
class PlateauState:
    """The state of early stopping at the latest evaluation of a run.

    Attributes:
      step: of that evaluation.
      best_step, best_score: of the lowest score, the first if there are several.
      since_step, since_tokens: of the last score that was a gain (see EarlyStopping.min_delta).
      reason: why to stop, as text; None while there is patience.
      advise: whether to print the reason now. It is, in mode 'advise', at the first evaluation
        without patience.
      stop: whether the run ends here.
    """

    step: int
    best_step: int
    best_score: float
    since_step: int
    since_tokens: int
    reason: str | None = None
    advise: bool = False
    stop: bool = False


@gin.configurable
@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """The best checkpoint is kept; and there may be patience with a score that no longer falls.

    The score is the mean of the watched sources' measures, weighted by their shares of the blend.
    By default all sources with a share and a validation split are watched, which are those of
    `t5x-style fit`.

    Attributes:
      patience_tokens: training tokens allowed without a gain; not for the mode 'keep'.
      min_delta: a score is a gain if it is below the last gain by more than this. Many small
        improvements therefore add up to a gain; noise does not.
      sources: names of the sources that are watched; None for all.
      measure: 'bits_per_byte' or 'loss' (nats per token).
      mode: 'keep' keeps the best checkpoint, and that is all; 'advise' also prints the reason once
        per plateau; 'stop' saves and ends the run.

    Raises:
      UsageError: a value is not allowed.
    """

    patience_tokens: PositiveInt | None = None
    min_delta: NonNegativeFloat = 0.0
    sources: Sequence[str] | None = None
    measure: str = "bits_per_byte"
    mode: str = "advise"

    def __post_init__(self):
        one_of("EarlyStopping.measure", self.measure, MEASURES)
        one_of("EarlyStopping.mode", self.mode, MODES)
        check_ranges(self)
        if (self.patience_tokens is None) != (self.mode == "keep"):
            needs = "has no use for" if self.mode == "keep" else "needs"
            raise UsageError(
                f"EarlyStopping.mode = {self.mode!r} {needs} EarlyStopping.patience_tokens"
            )
        if self.sources is not None and len(set(self.sources)) != len(self.sources):
            raise UsageError(f"EarlyStopping.sources = {list(self.sources)} names a source twice")

    def weights(self, shares: Mapping[str, float], validation: Sequence[str]) -> dict[str, float]:
        """{source: weight} of the sources that are watched; the weights add up to one.

        Args:
          shares: of the blend.
          validation: the sources that have a validation split.

        Raises:
          UsageError: a named source has none, or no weight beside the others, or no source is
            watched.
        """
        watched = validation if self.sources is None else self.sources
        for name in watched:
            if name not in validation:
                raise UsageError(
                    f"EarlyStopping.sources: {name!r} has no validation split; those with one: "
                    f"{', '.join(validation) or 'none'}{did_you_mean(name, validation)}"
                )
        if not watched:
            raise UsageError(
                "EarlyStopping watches nothing: no source has a validation split"
                if self.sources is None
                else "EarlyStopping.sources = []: name a source, or None for all"
            )
        weights = evaluation_weights(shares, watched)
        for name in self.sources or ():
            if name not in weights:
                raise UsageError(
                    f"EarlyStopping.sources: {name!r} has a share of 0 of the blend, and so no "
                    f"weight beside {', '.join(weights)}: name it alone, or leave it out"
                )
        return weights

    def state(
        self, evaluations: Sequence[Mapping], weights: Mapping[str, float]
    ) -> PlateauState | None:
        """The state after these evaluation lines, in order of step; None before the first.

        A score that is not a number is not a gain. Lines with another number of tokens than the
        last one (`eval_tokens` was changed) are ignored.
        """
        sizes = [f"eval/{name}/tokens" for name in weights]
        comparable = [
            line
            for line in evaluations
            if all(size in line and line[size] == evaluations[-1].get(size) for size in sizes)
        ]
        state: PlateauState | None = None
        last_gain = math.inf  # the last score that was a gain
        for line in comparable:
            step, tokens, score = line["step"], line["tokens"], self._score(line, weights)
            if state is None:
                last_gain = score
                state = PlateauState(step, step, score, step, tokens)
                continue
            since_step, since_tokens = state.since_step, state.since_tokens
            if score < last_gain - self.min_delta:
                last_gain, since_step, since_tokens = score, step, tokens
            best_score, best_step = min((state.best_score, state.best_step), (score, step))
            reason = None
            if tokens - since_tokens >= (self.patience_tokens or math.inf):
                reason = (
                    f"{self._score_text(weights)} has not fallen by more than {self.min_delta:g} "
                    f"in the {count(tokens - since_tokens)} tokens since step {since_step:,}; best "
                    f"{best_score:.4f} at step {best_step:,}, now {score:.4f}"
                )
            state = PlateauState(
                step,
                best_step,
                best_score,
                since_step,
                since_tokens,
                reason,
                advise=self.mode == "advise" and reason is not None and state.reason is None,
                stop=self.mode == "stop" and reason is not None,
            )
        return state

    def _score_text(self, weights: Mapping[str, float]) -> str:
        """The name of the score: `bits per byte of legal 51.0%, general 49.0%`."""
        return f"{self.measure.replace('_', ' ')} of {weights_text(weights)}"

    def _score(self, line: Mapping, weights: Mapping[str, float]) -> float:
        """The weighted mean; infinite if a value is not finite (null in metrics.jsonl)."""
        values = [line[f"eval/{name}/{self.measure}"] for name in weights]
        if any(value is None or not math.isfinite(value) for value in values):
            return math.inf
        # fsum is exact, so the order of the sources does not matter.
        return math.fsum(
            weight * value for weight, value in zip(weights.values(), values, strict=True)
        )
