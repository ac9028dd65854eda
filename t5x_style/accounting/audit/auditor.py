"""The audit of a run: its FLOPs by each convention, and how well they were spent."""

import itertools
import math
from collections.abc import Callable, Sequence

from t5x_style.accounting.architecture import Architecture
from t5x_style.accounting.audit.audit_record import FLOPS_KEYS, Audit, LawAudit
from t5x_style.accounting.chips import Chip
from t5x_style.accounting.flops import training_flops_per_token
from t5x_style.accounting.laws import LAWS, Law, ParametricLaw
from t5x_style.accounting.laws.own import check_law_name
from t5x_style.accounting.parameter_count import total_parameters
from t5x_style.accounting.topology import ONE_DEVICE, Topology

_CUMULATIVE = {key: convention for convention, key in FLOPS_KEYS.items()}


def laws_of_audit(own_law: ParametricLaw | None) -> dict[str, Law]:
    """The laws of an audit by name, a user's own fit before the published ones.

    Raises:
      UsageError: the fit has the name of a published law.
    """
    if own_law is None:
        return LAWS
    check_law_name(own_law.name, "own_law.name")
    return {own_law.name: own_law, **LAWS}


class Auditor:
    """The audit of one model. Everything that does not depend on the tokens is computed once."""

    def __init__(
        self,
        arch: Architecture,
        sequence_length: int | Sequence[tuple[int, int]],
        topology: Topology = ONE_DEVICE,
        *,
        planned_tokens: int | None = None,
        own_law: ParametricLaw | None = None,
        effective_tokens: Callable[[float], float] | None = None,
    ):
        """Raises UsageError for an unknown remat policy or kernel, or as `laws_of_audit`.

        Args:
          sequence_length: S, tokens; or (first token, S) of each phase in which S is another,
            from token 0 on.
          topology: where it runs: remat policy, kernel and chunks change 'hardware_flops'.
          planned_tokens: the tokens at the end of the run, for the gain of the remaining budget.
          own_law: a fit to the user's own runs, next to the published laws.
          effective_tokens: from tokens of the run to the fresh tokens of the same effect
            (`SourceLimits.effective_tokens`); None where nothing repeats.
        """
        self.laws = laws_of_audit(own_law)
        self.parameters = total_parameters(arch)
        phases = [(0, sequence_length)] if isinstance(sequence_length, int) else sequence_length
        self._borders = [*(first for first, _ in phases), math.inf]
        self._flops_per_token = {
            key: [
                training_flops_per_token(arch, length, convention, topology) for _, length in phases
            ]
            for key, convention in _CUMULATIVE.items()
        }
        self._effective_tokens = effective_tokens
        self._planned_tokens = planned_tokens
        self._final_losses: dict[str, float | None] = {}
        if planned_tokens is not None:
            self._final_losses = self._expected_losses(self._count_effective(planned_tokens))

    def line_at(self, tokens: int, skipped: int = 0) -> dict[str, float | None]:
        """The audit after `tokens` tokens, under the keys of a training line (see Audit.line)."""
        return self.audit_at(tokens, skipped).line()

    def audit_at(self, tokens: int, skipped: int = 0) -> Audit:
        """The audit after `tokens` tokens.

        Args:
          skipped: of them, those that nothing was learnt from. The FLOPs are those of the others,
            which are taken for as good as the mean.
        """
        flops_per_token = self.flops_per_token(0, tokens)
        effective_tokens = self._count_effective(tokens)
        remaining_tokens = None if self._planned_tokens is None else self._planned_tokens - tokens
        if skipped:
            effective_tokens *= 1 - skipped / tokens
            tokens -= skipped
        expected = self._expected_losses(effective_tokens) if tokens else {}
        return Audit(
            tokens=tokens,
            tokens_per_param=tokens / self.parameters,
            flops={
                convention: flops_per_token[key] * tokens for convention, key in FLOPS_KEYS.items()
            },
            laws={
                name: self._law_audit(law, tokens, expected.get(name))
                for name, law in self.laws.items()
            },
            effective_tokens=None if self._effective_tokens is None else effective_tokens,
            remaining_tokens=remaining_tokens,
        )

    def _law_audit(self, law: Law, tokens: int, expected: float | None) -> LawAudit:
        if not tokens:
            return LawAudit(None, None, None, None)
        spent = 6.0 * self.parameters * tokens
        final = self._final_losses.get(law.name)
        return LawAudit(
            *law.optimal(spent),
            expected_loss=expected,
            compute_efficiency=law.flops_for(expected) / spent
            if isinstance(law, ParametricLaw) and expected is not None
            else None,
            remaining_gain=None if expected is None or final is None else expected - final,
        )

    def flops_per_token(self, since: int = 0, until: int = 1) -> dict[str, float]:
        """Mean FLOPs of the tokens since .. until - 1 of the run, under the keys of `at`."""
        shares = [
            max(0.0, min(until, end) - max(since, first)) / max(until - since, 1)
            for first, end in itertools.pairwise(self._borders)
        ]
        return {
            key: sum(share * flops for share, flops in zip(shares, per_token, strict=True))
            for key, per_token in self._flops_per_token.items()
        }

    def _count_effective(self, tokens: float) -> float:
        return tokens if self._effective_tokens is None else self._effective_tokens(tokens)

    def _expected_losses(self, effective_tokens: float) -> dict[str, float | None]:
        return {
            name: law.loss(self.parameters, effective_tokens) for name, law in self.laws.items()
        }

    def utilisation(
        self,
        tokens_per_second: float,
        chips: int,
        chip: Chip | None,
        *,
        since: int = 0,
        until: int = 1,
    ) -> dict[str, float | None]:
        """Share of the chips' dense bfloat16 peak, by convention; None where the peak is unknown.

        Args:
          chips: whole chips (JAX devices divided by chip.devices_per_chip).
          since, until: the tokens of the run that were learnt at this speed, which may be of
            several lengths.

        Returns:
          mfu_full, mfu_causal: model FLOPs; hfu: with recomputation.
        """
        if chip is None:
            return {"mfu_full": None, "mfu_causal": None, "hfu": None}
        per_peak = tokens_per_second / (chips * chip.peak_bf16_flops)
        flops_per_token = self.flops_per_token(since, until)
        return {
            "mfu_full": flops_per_token["model_flops_full"] * per_peak,
            "mfu_causal": flops_per_token["model_flops_causal"] * per_peak,
            "hfu": flops_per_token["hardware_flops"] * per_peak,
        }


def audit(
    arch: Architecture,
    sequence_length: int,
    tokens: int,
    topology: Topology = ONE_DEVICE,
    *,
    own_law: ParametricLaw | None = None,
    effective_tokens: Callable[[float], float] | None = None,
) -> dict[str, float | None]:
    """`Auditor.line_at` for a single question."""
    auditor = Auditor(
        arch, sequence_length, topology, own_law=own_law, effective_tokens=effective_tokens
    )
    return auditor.line_at(tokens)
