"""The data of a plan: sources, their shares, and how often each may be read."""

import dataclasses
import math
from collections.abc import Mapping

from t5x_style.accounting.laws.data_constrained import (
    FREE_EPOCHS,
    WORTHLESS_EPOCHS,
    effective_tokens,
)
from t5x_style.errors import UsageError, did_you_mean

# The domain's share under 'choose': one half, as BloombergGPT (51 % finance) blended.
DOMAIN_SHARE = 0.5
CHOOSE = "choose"


@dataclasses.dataclass(frozen=True)
class SourceLimits:
    """Sources of a blend, in the user's order. Without any source the data is unlimited.

    Attributes:
      unique_tokens: source -> tokens of one epoch; infinite for unlimited text.
      shares: source -> share of the run's tokens; they sum to 1.
      max_epochs: source -> epochs at most.
    """

    unique_tokens: Mapping[str, float] = dataclasses.field(default_factory=dict)
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    max_epochs: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def tokens(self, tokens: float) -> dict[str, float]:
        """source -> its tokens in a run of `tokens`."""
        return {name: share * tokens for name, share in self.shares.items()}

    def epochs(self, tokens: float) -> dict[str, float]:
        """source -> its epochs in a run of `tokens`."""
        return {
            name: share * tokens / self.unique_tokens[name] for name, share in self.shares.items()
        }

    def effective_tokens(self, tokens: float) -> float:
        """Fresh tokens that teach as much as a run of `tokens`; every source repeats by itself."""
        if not self.shares:
            return tokens
        return sum(self.effective_tokens_of(name, tokens) for name in self.shares)

    def effective_tokens_of(self, name: str, tokens: float) -> float:
        """Fresh tokens that teach as much as one source's part of a run of `tokens`."""
        return effective_tokens(self.shares[name] * tokens, self.unique_tokens[name])

    def unique_tokens_read(self, tokens: float) -> float:
        """Distinct tokens that a run of `tokens` reads."""
        return sum(
            min(share * tokens, self.unique_tokens[name]) for name, share in self.shares.items()
        )

    def cap(self, epochs: float | None = None) -> tuple[float, str | None]:
        """(D, source): the longest run within the caps, and the source whose cap ends it.

        Args:
          epochs: in place of every source's own cap.
        """
        ends = {
            name: (self.max_epochs[name] if epochs is None else epochs)
            * self.unique_tokens[name]
            / share
            for name, share in self.shares.items()
        }
        scarce = min(ends, key=lambda name: ends[name], default=None)
        return (math.inf, None) if scarce is None else (ends[scarce], scarce)

    def lift_limit(self, name: str) -> "SourceLimits":
        """The same, with unlimited fresh text of one source."""
        return dataclasses.replace(self, unique_tokens={**self.unique_tokens, name: math.inf})

    def scaled(self, name: str, factor: float) -> "SourceLimits":
        """The same, with `factor` times the unique tokens of one source."""
        scaled = {**self.unique_tokens, name: factor * self.unique_tokens[name]}
        return dataclasses.replace(self, unique_tokens=scaled)


def sources_of(
    unique_tokens: Mapping[str, float] | None,
    shares: Mapping[str, float] | str | None,
    max_epochs: Mapping[str, float] | float = FREE_EPOCHS,
    *,
    domain: str | None = None,
    wanted_tokens: float = math.inf,
    past_forty_epochs: bool = False,
) -> SourceLimits:
    """The sources as a user gives them, checked.

    Args:
      unique_tokens: source -> tokens; None means unlimited data.
      shares: source -> share, summing to 1; None blends by size; 'choose' see `chosen_shares`.
      max_epochs: one cap for all sources, or source -> cap.
      domain: the source that the model is for; 'choose' needs it.
      wanted_tokens: D of the run that 'choose' chooses for.
      past_forty_epochs: allows caps above WORTHLESS_EPOCHS.

    Raises:
      UsageError: names that do not match, an impossible number, shares that do not sum to 1, or a
        cap under one epoch or, unless allowed, above WORTHLESS_EPOCHS.
    """
    if unique_tokens is None:
        if shares is not None:
            raise UsageError("shares need unique_tokens: how much of each source is there?")
        if domain is not None:
            raise UsageError(f"domain = {domain!r} needs unique_tokens: which sources are there?")
        return SourceLimits()
    _check_numbers("unique_tokens", unique_tokens)
    if domain is not None and domain not in unique_tokens:
        raise UsageError(
            f"domain = {domain!r} is not among unique_tokens ({', '.join(unique_tokens)})"
            f"{did_you_mean(domain, unique_tokens)}"
        )
    if shares == CHOOSE:
        blended = chosen_shares(unique_tokens, domain, wanted_tokens)
    elif isinstance(shares, str):
        raise UsageError(
            f"shares = {shares!r}: give {{'source': share}}, or '{CHOOSE}'"
            f"{did_you_mean(shares, (CHOOSE,))}"
        )
    else:
        blended = blend(unique_tokens, shares)
    if not isinstance(max_epochs, Mapping):
        max_epochs = dict.fromkeys(unique_tokens, max_epochs)
    _check_names("max_epochs", max_epochs, unique_tokens)
    for name, cap in max_epochs.items():
        if not cap >= 1:
            raise UsageError(
                f"max_epochs of {name!r} = {cap!r}: a cap under one epoch leaves text unread; give "
                "1 or more, or fewer unique_tokens"
            )
        if cap > WORTHLESS_EPOCHS and not past_forty_epochs:
            raise UsageError(
                f"max_epochs of {name!r} = {cap:g}: past {WORTHLESS_EPOCHS:g} epochs a text "
                f"teaches nothing more; give {WORTHLESS_EPOCHS:g} or fewer, or "
                "past_forty_epochs=True"
            )
    return SourceLimits(dict(unique_tokens), blended, dict(max_epochs))


def blend(
    unique_tokens: Mapping[str, float], shares: Mapping[str, float] | None
) -> dict[str, float]:
    """source -> share, in the order of `unique_tokens`: as given, or by size where None.

    Raises:
      UsageError: shares and sources that do not match, sizes or shares not above 0, or shares that
        do not sum to 1.
    """
    if shares is None:
        total = sum(unique_tokens.values())
        return {name: tokens / total for name, tokens in unique_tokens.items()}
    _check_names("shares", shares, unique_tokens)
    _check_numbers("shares", shares)
    total = sum(shares.values())
    if abs(total - 1) > 1e-6:
        scaled = ", ".join(f"{name!r}: {share / total:.6g}" for name, share in shares.items())
        raise UsageError(
            f"shares = {dict(shares)} sum to {total:g}, not to 1; in these proportions: "
            f"{{{scaled}}}"
        )
    return {name: shares[name] / total for name in unique_tokens}


def chosen_shares(
    unique_tokens: Mapping[str, float], domain: str | None, wanted_tokens: float
) -> dict[str, float]:
    """Shares for a model of a domain and of the general language.

    The domain gets one half, as in BloombergGPT; less if it would be read more than four times, and
    more if the rest would be. If four epochs of everything are fewer than the run's tokens, every
    source is read equally often, which repeats least. The rest is blended by size.

    Args:
      domain: a name in `unique_tokens`.
      wanted_tokens: D of the run.
    """
    if domain is None:
        raise UsageError(
            f"shares='{CHOOSE}' needs to know which source the model is for: "
            f"--domain={next(iter(unique_tokens))}"
        )
    if len(unique_tokens) == 1:
        return {domain: 1.0}
    rest = sum(tokens for name, tokens in unique_tokens.items() if name != domain)
    own = unique_tokens[domain]
    most = FREE_EPOCHS * own / wanted_tokens
    least = 1 - FREE_EPOCHS * rest / wanted_tokens
    share = own / (own + rest) if most < least else max(min(DOMAIN_SHARE, most), least)
    return {
        name: share if name == domain else (1 - share) * tokens / rest
        for name, tokens in unique_tokens.items()
    }


def _check_names(kind: str, values: Mapping[str, float], sources: Mapping[str, float]) -> None:
    for name in values:
        if name not in sources:
            raise UsageError(
                f"{kind} name {name!r}, unique_tokens do not{did_you_mean(name, sources)}"
            )
    for name in sources:
        if name not in values:
            raise UsageError(
                f"unique_tokens name {name!r}, {kind} do not{did_you_mean(name, values)}"
            )


def _check_numbers(kind: str, values: Mapping[str, float]) -> None:
    if not values:
        raise UsageError(f"{kind} is empty: give {{'source': number}}")
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise UsageError(f"{kind} of {name!r} = {value!r}: must be above 0")
