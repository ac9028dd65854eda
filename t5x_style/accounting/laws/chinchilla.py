"""Scaling laws: the loss of a model of N parameters after D tokens, and the best N for a budget.

A law has coefficients and a source. N counts every parameter, embedding included, and the budget
is C = 6 N D, as in Hoffmann et al. 2022 ("Chinchilla", arXiv 2203.15556).

LAWS are those to allocate by. APPROACH_3 and HOFFMANN_PRINTED are separate: one is to be drawn, the
other reproduces numbers that others printed. The constants rounded in that paper's text (1.69,
406.4, 410.7, 0.34, 0.28) give Gopher's budget a model of 32.2B parameters; the paper prints 40B.
"""

import dataclasses

from t5x_style.errors import UsageError

# ((least N, greatest N), (least D, greatest D)).
Interval = tuple[tuple[float, float], tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class FrontierLaw:
    """The best N and D as power laws of C, without a loss.

    log10 N = params_exponent log10 C + params_intercept; D likewise. 6 N D need not be C exactly,
    since the two lines are fitted independently.

    Attributes:
      source: paper and table.
      fitted_flops: least and greatest C of the runs behind the law; outside it extrapolates. None
        where the source gives none.
      params_exponent_interval: 10 % and 90 % bootstrap quantiles of params_exponent; None where the
        source gives none.
    """

    name: str
    params_exponent: float
    params_intercept: float
    tokens_exponent: float
    tokens_intercept: float
    source: str
    fitted_flops: tuple[float, float] | None
    params_exponent_interval: tuple[float, float] | None = None

    def optimal(self, flops: float) -> tuple[float, float]:
        """(N, D) of the model that a budget of `flops` = 6 N D serves best."""
        return (
            flops**self.params_exponent * 10**self.params_intercept,
            flops**self.tokens_exponent * 10**self.tokens_intercept,
        )

    def interval(self, flops: float) -> Interval | None:
        """10 % to 90 % of N and of D at that budget (see _interval); None where none is known."""
        return _interval(self, flops, self.params_exponent)

    def loss(self, params: float, tokens: float) -> None:
        """None: this law orders models without giving their losses."""
        return None

    def efficiency(
        self, params: float, tokens: float, effective_tokens: float | None = None
    ) -> None:
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
      fitted_flops: least and greatest C of the runs behind the law; outside it extrapolates. None
        where the source gives none.
      params_exponent_interval: 10 % and 90 % bootstrap quantiles, not of alpha but of the exponent
        a = beta / (alpha + beta) in N ~ C^a; None where the source gives none.
    """

    name: str
    irreducible: float
    params_scale: float
    tokens_scale: float
    params_exponent: float
    tokens_exponent: float
    source: str
    fitted_flops: tuple[float, float] | None
    params_exponent_interval: tuple[float, float] | None = None

    def optimal(self, flops: float) -> tuple[float, float]:
        """(N, D) of least loss with 6 N D = `flops` (equation 4 of the paper)."""
        alpha, beta = self.params_exponent, self.tokens_exponent
        balance = self._balance()
        return (
            balance * (flops / 6) ** (beta / (alpha + beta)),
            (flops / 6) ** (alpha / (alpha + beta)) / balance,
        )

    def optimal_params(self, tokens: float) -> float:
        """N of the model that `tokens` serve best: `optimal`, solved for N at a given D."""
        balance = self._balance()
        return balance * (tokens * balance) ** (self.tokens_exponent / self.params_exponent)

    def interval(self, flops: float) -> Interval | None:
        """10 % to 90 % of N and of D at that budget (see _interval); None where none is known."""
        exponent = self.tokens_exponent / (self.params_exponent + self.tokens_exponent)
        return _interval(self, flops, exponent)

    def loss(self, params: float, tokens: float) -> float:
        """L(N, D), nats per token of the data and vocabulary behind the law."""
        return (
            self.irreducible
            + self.params_scale * params**-self.params_exponent
            + self.tokens_scale * tokens**-self.tokens_exponent
        )

    def flops_for(self, loss: float) -> float:
        """The least budget C = 6 N D that reaches `loss`.

        In closed form: along the optimum both falling terms go as
        (C / 6)^(-alpha beta / (alpha + beta)), so L - E fixes C.

        Raises:
          UsageError: no budget reaches it, since it is not above E.
        """
        if not loss > self.irreducible:
            raise UsageError(
                f"a loss of {loss!r} by {self.name}: no budget reaches it, "
                f"must be above {self.irreducible:g}"
            )
        alpha, beta = self.params_exponent, self.tokens_exponent
        balance = self._balance()
        at_unit_budget = self.params_scale * balance**-alpha + self.tokens_scale * balance**beta
        return 6 * (at_unit_budget / (loss - self.irreducible)) ** ((alpha + beta) / (alpha * beta))

    def efficiency(
        self, params: float, tokens: float, effective_tokens: float | None = None
    ) -> float:
        """C' / C: the least budget that reaches the loss over the budget spent, C = 6 N D.

        1 for a compute-optimal run.

        Args:
          effective_tokens: D' of the loss L(N, D') where text was repeated; None means D.
        """
        loss = self.loss(params, tokens if effective_tokens is None else effective_tokens)
        return self.flops_for(loss) / (6 * params * tokens)

    def _balance(self) -> float:
        """G of equation 4."""
        alpha, beta = self.params_exponent, self.tokens_exponent
        ratio = alpha * self.params_scale / (beta * self.tokens_scale)
        return ratio ** (1 / (alpha + beta))


Law = FrontierLaw | ParametricLaw


def _interval(law: Law, flops: float, exponent: float) -> Interval | None:
    """The uncertainty of the law's optimum, from the interval of its exponent.

    The papers give intervals of exponents alone. A power law through a cloud of points is most
    certain in the middle of the cloud. So the line of N is turned about the geometric mean of the
    fitted FLOPs, to the two ends of the interval, while N D stays that of the law's own optimum.
    The law's own exponent counts as a third end: the interval printed for approach 3, (.454, .455),
    does not contain the .4565 of its own coefficients. The interval has no width in the middle, and
    leaves out the uncertainty of the line's height.

    Args:
      flops: C.
      exponent: a of the law's own N ~ C^a.
    """
    if law.params_exponent_interval is None or law.fitted_flops is None:
        return None
    least, greatest = law.fitted_flops
    from_middle = flops / (least * greatest) ** 0.5
    params, tokens = law.optimal(flops)
    turned = [from_middle ** (end - exponent) for end in (*law.params_exponent_interval, exponent)]
    low, high = min(turned), max(turned)
    return (params * low, params * high), (tokens / high, tokens / low)


# Chinchilla's runs: 57 million to 16 billion parameters, 1.4e18 to 1.3e22 FLOPs.
_CHINCHILLA_FLOPS = (1.4e18, 1.3e22)

# Hoffmann et al. 2022, table 2: 10 % and 90 % bootstrap quantiles of the exponent of N.
_APPROACH_3_EXPONENTS = (0.454, 0.455)

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
            (0.488, 0.502),
        ),
        FrontierLaw(
            "approach_2",
            0.48994161,
            -0.83900040,
            0.51002023,
            0.06174027,
            "least squares through the nine rows of Hoffmann et al. 2022, table A3, approach 2",
            _CHINCHILLA_FLOPS,
            (0.462, 0.534),
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
            _APPROACH_3_EXPONENTS,
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
            # They print 95 % intervals of the coefficients alone. This is `t5x-style fit
            # --points=chinchilla_points.csv --drop_highest=5`, with the two sizes named by
            # --columns, over their 240 points, 4,000 resamples, seed 0 (2026-11-25).
            (0.4922, 0.5417),
        ),
    )
}

# To be drawn, as in figure 1 of the BloombergGPT paper. No published constants reproduce the table;
# LAWS["hoffmann"] is the one to allocate by approach 3.
APPROACH_3 = FrontierLaw(
    "approach_3",
    0.45865740,
    -0.27195306,
    0.54098165,
    -0.50118019,
    "least squares through the nine rows of Hoffmann et al. 2022, table A3, approach 3, with "
    "1.26e25 FLOPs for 175B parameters (6 N D; the table prints 1.26e24)",
    _CHINCHILLA_FLOPS,
    _APPROACH_3_EXPONENTS,
)

# To reproduce the numbers that others computed with these constants, never to allocate.
HOFFMANN_PRINTED = ParametricLaw(
    "hoffmann_printed",
    1.69,
    406.4,
    410.7,
    0.34,
    0.28,
    "Hoffmann et al. 2022, approach 3, rounded as printed in appendix D.3",
    _CHINCHILLA_FLOPS,
)
