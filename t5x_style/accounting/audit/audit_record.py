"""The audit of a run as a record, and as the keys of a training line."""

import dataclasses
from collections.abc import Mapping

# Convention (see flops.CONVENTIONS) -> key of the FLOPs so far in a training line.
FLOPS_KEYS = {
    "6nd": "model_flops_6nd",
    "full": "model_flops_full",
    "causal": "model_flops_causal",
    "hardware": "hardware_flops",
}
_PREFIX = "chinchilla"
SKIPPED_PREFIX = "skipped/"


def skipped_tokens(line: Mapping[str, float | None]) -> dict[str, int]:
    """{source: tokens read and not learnt from} of a training line; empty if it has none."""
    return {
        key.removeprefix(SKIPPED_PREFIX): int(value)
        for key, value in line.items()
        if key.startswith(SKIPPED_PREFIX) and value is not None
    }


@dataclasses.dataclass(frozen=True)
class LawAudit:
    """A run as one scaling law sees it. None where the law gives no value, or before any token.

    Attributes:
      optimal_params, optimal_tokens: N and D that the FLOPs so far (6 N D) would have served best.
      expected_loss: the law's loss for N and the effective tokens, nats per token of its own data.
      compute_efficiency: C' / C. C' is the least budget that reaches this loss with fresh text, and
        C = 6 N D.
      remaining_gain: the expected loss now less the expected loss at the end of the planned tokens,
        nats per token; None where no end is planned, too.
    """

    optimal_params: float | None
    optimal_tokens: float | None
    expected_loss: float | None
    compute_efficiency: float | None
    remaining_gain: float | None = None


_QUANTITIES = tuple(field.name for field in dataclasses.fields(LawAudit))
_GAIN = "remaining_gain"


@dataclasses.dataclass(frozen=True)
class Audit:
    """What a run cost up to some token, and how well that was spent.

    Attributes:
      tokens: D, those learnt from.
      tokens_per_param: D / N.
      flops: convention -> FLOPs so far (see FLOPS_KEYS).
      laws: name -> the run by that law.
      effective_tokens: fresh tokens that teach as much as D; None where it is not known how the
        sources repeat.
      remaining_tokens: of the planned ones; None where no end is planned.
    """

    tokens: float
    tokens_per_param: float
    flops: Mapping[str, float]
    laws: Mapping[str, LawAudit]
    effective_tokens: float | None = None
    remaining_tokens: float | None = None

    def line(self) -> dict[str, float | None]:
        """The audit under the keys of a training line, which has `tokens` already.

        Returns:
          model_flops_6nd, model_flops_full, model_flops_causal, hardware_flops; tokens_per_param;
          effective_tokens and remaining_tokens where they are known; and
          chinchilla/<law>/<field of LawAudit>, remaining_gain only where an end is planned.
        """
        line: dict[str, float | None] = {
            FLOPS_KEYS[convention]: flops for convention, flops in self.flops.items()
        }
        line["tokens_per_param"] = self.tokens_per_param
        if self.effective_tokens is not None:
            line["effective_tokens"] = self.effective_tokens
        if self.remaining_tokens is not None:
            line["remaining_tokens"] = self.remaining_tokens
        for name, law in self.laws.items():
            for quantity in _QUANTITIES:
                if quantity != _GAIN or self.remaining_tokens is not None:
                    line[f"{_PREFIX}/{name}/{quantity}"] = getattr(law, quantity)
        return line

    @classmethod
    def from_line(cls, line: Mapping[str, float | None]) -> "Audit | None":
        """The audit in a training line; None if the line has none. Other keys are ignored.

        Args:
          line: `tokens`, `skipped/<source>` and the keys of `line`; it may be of an older version,
            with fewer keys.
        """
        tokens, tokens_per_param = line.get("tokens"), line.get("tokens_per_param")
        if tokens is None or tokens_per_param is None:
            return None
        laws: dict[str, dict[str, float | None]] = {}
        for key, value in line.items():
            match key.split("/"):
                case [prefix, name, quantity] if prefix == _PREFIX and quantity in _QUANTITIES:
                    laws.setdefault(name, dict.fromkeys(_QUANTITIES))[quantity] = value
        return cls(
            tokens=tokens - sum(skipped_tokens(line).values()),
            tokens_per_param=tokens_per_param,
            flops={
                convention: flops
                for convention, key in FLOPS_KEYS.items()
                if (flops := line.get(key)) is not None
            },
            laws={name: LawAudit(**quantities) for name, quantities in laws.items()},
            effective_tokens=line.get("effective_tokens"),
            remaining_tokens=line.get("remaining_tokens"),
        )
