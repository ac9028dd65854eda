"""The loss as a function of the blend: two published forms, to be given fitted coefficients.

Neither comes with coefficients of its own: they belong to a set of sources, a size and a
validation set, and are fitted to small runs on several blends.
"""

import dataclasses
import math
from collections.abc import Mapping

from t5x_style.errors import UsageError, did_you_mean


@dataclasses.dataclass(frozen=True)
class DataMixingLaw:
    """L = c + k exp(sum_j t_j r_j): one validation set under shares r (Ye et al. 2024, 2403.16952).

    Attributes:
      irreducible: c, nats per token.
      scale: k, above 0.
      sensitivities: source -> t; below 0 where a larger share of the source lowers the loss.
    """

    irreducible: float
    scale: float
    sensitivities: Mapping[str, float]

    def loss(self, shares: Mapping[str, float]) -> float:
        """Nats per token on the validation set of a model trained on that blend.

        A source that the shares leave out has a share of 0.

        Raises:
          UsageError: a share of a source that the law does not know.
        """
        for name in shares:
            if name not in self.sensitivities:
                near = did_you_mean(name, self.sensitivities)
                raise UsageError(f"shares name {name!r}, the law does not{near}")
        return self.irreducible + self.scale * math.exp(
            sum(self.sensitivities[name] * share for name, share in shares.items())
        )


@dataclasses.dataclass(frozen=True)
class DomainMixLaw:
    """D-CPT: continued pre-training on a domain and general text (Que et al. 2024, 2406.01375).

    L(N, D, r) = E + A / N^alpha + B r^eta / D^beta + C / (r + epsilon)^gamma, where r is the share
    of the text that the loss is measured on: fitted once for the domain's loss, with the domain's
    share, and once for the general loss, with the general share.

    Attributes:
      irreducible: E, nats per token.
      params_scale, params_exponent: A and alpha; N in the unit of the fit.
      tokens_scale, tokens_exponent: B and beta; D in the unit of the fit.
      share_exponent: eta.
      dilution_scale, dilution_offset, dilution_exponent: C, epsilon and gamma.
    """

    irreducible: float
    params_scale: float
    params_exponent: float
    tokens_scale: float
    tokens_exponent: float
    share_exponent: float
    dilution_scale: float
    dilution_offset: float
    dilution_exponent: float

    def loss(self, params: float, tokens: float, share: float) -> float:
        """L(N, D, r), nats per token."""
        return (
            self.irreducible
            + self.params_scale * params**-self.params_exponent
            + self.tokens_scale * share**self.share_exponent * tokens**-self.tokens_exponent
            + self.dilution_scale * (share + self.dilution_offset) ** -self.dilution_exponent
        )
