"""Scaling laws: the loss of a model of N parameters after D tokens, and the best N for a budget.

A law has coefficients and a source. N counts every parameter, embedding included, and the budget
is C = 6 N D, as in Hoffmann et al. 2022 ("Chinchilla", arXiv 2203.15556).

The rounded constants printed in that paper's text (1.69, 406.4, 410.7, 0.34, 0.28) are not here on
purpose: at Gopher's budget they give a model of 32.2B parameters where the paper says 40B.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class FrontierLaw:
    """The best N and D as power laws of C, with nothing said about the loss.

    log10 N = params_exponent log10 C + params_intercept; D likewise. N D need not be C / 6 exactly,
    since the two lines are fitted independently.

    Attributes:
      source: paper and table.
      fitted_flops: least and greatest C of the runs behind the law; outside it extrapolates.
    """

    name: str
    params_exponent: float
    params_intercept: float
    tokens_exponent: float
    tokens_intercept: float
    source: str
    fitted_flops: tuple[float, float]

    def optimal(self, flops: float) -> tuple[float, float]:
        """(N, D) of the model that a budget of `flops` = 6 N D serves best."""
        return (
            flops**self.params_exponent * 10**self.params_intercept,
            flops**self.tokens_exponent * 10**self.tokens_intercept,
        )

    def loss(self, params: float, tokens: float) -> None:
        """None: this law orders models without giving their losses."""
        return None

    def efficiency(self, params: float, tokens: float) -> None:
        """None, for the same reason."""
        return None


@dataclasses.dataclass(frozen=True)
class ParametricLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta, nats per token (Hoffmann et al. 2022, equation 2).

    Attributes:
      irreducible: E.
      params_scale: A.
      tokens_scale: B.
      params_exponent: alpha.
      tokens_exponent: beta.
      source: whose fit.
      fitted_flops: least and greatest C of the runs behind the law; outside it extrapolates.
    """

    name: str
    irreducible: float
    params_scale: float
    tokens_scale: float
    params_exponent: float
    tokens_exponent: float
    source: str
    fitted_flops: tuple[float, float]

    def optimal(self, flops: float) -> tuple[float, float]:
        """(N, D) of least loss with 6 N D = `flops` (equation 4 of the paper)."""
        alpha, beta = self.params_exponent, self.tokens_exponent
        balance = self._balance()
        return (
            balance * (flops / 6) ** (beta / (alpha + beta)),
            (flops / 6) ** (alpha / (alpha + beta)) / balance,
        )

    def loss(self, params: float, tokens: float) -> float:
        """L(N, D), nats per token of Chinchilla's data and vocabulary."""
        return (
            self.irreducible
            + self.params_scale * params**-self.params_exponent
            + self.tokens_scale * tokens**-self.tokens_exponent
        )

    def efficiency(self, params: float, tokens: float) -> float:
        """C' / C: C' is the least budget that reaches L(N, D), C = 6 N D what was spent.

        1 for a compute-optimal run. In closed form: along the optimum both falling terms go as
        (C / 6)^(-alpha beta / (alpha + beta)), so L - E fixes C'.
        """
        alpha, beta = self.params_exponent, self.tokens_exponent
        balance = self._balance()
        at_unit_budget = self.params_scale * balance**-alpha + self.tokens_scale * balance**beta
        reducible = self.loss(params, tokens) - self.irreducible
        least = (at_unit_budget / reducible) ** ((alpha + beta) / (alpha * beta))
        return least / (params * tokens)

    def _balance(self) -> float:
        """G of equation 4."""
        alpha, beta = self.params_exponent, self.tokens_exponent
        ratio = alpha * self.params_scale / (beta * self.tokens_scale)
        return ratio ** (1 / (alpha + beta))


Law = FrontierLaw | ParametricLaw

# Chinchilla's runs: 57 million to 16 billion parameters, 1.4e18 to 1.3e22 FLOPs.
_CHINCHILLA_FLOPS = (1.4e18, 1.3e22)

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        FrontierLaw(
            "approach_1",
            0.49809869,
            -1.00366816,
            0.50185426,
            0.22944745,
            "least squares through the nine rows of Hoffmann et al. 2022, table 3",
            _CHINCHILLA_FLOPS,
        ),
        FrontierLaw(
            "approach_2",
            0.48994161,
            -0.83900040,
            0.51002023,
            0.06174027,
            "least squares through the nine rows of Hoffmann et al. 2022, table A3, approach 2",
            _CHINCHILLA_FLOPS,
        ),
        ParametricLaw(
            "hoffmann",
            1.69337368,
            406.401018,
            410.722827,
            0.33917084,
            0.2849083,
            "Hoffmann et al. 2022, approach 3, with the digits of the paper's TeX source",
            _CHINCHILLA_FLOPS,
        ),
        ParametricLaw(
            "besiroglu",
            1.8172,
            482.01,
            2085.43,
            0.3478,
            0.3658,
            "Besiroglu et al. 2024 (arXiv 2404.10102), a refit of the same runs",
            _CHINCHILLA_FLOPS,
        ),
    )
}
