"""The audit in words: was the compute spent well, and what would have been better?"""

from collections.abc import Iterable, Mapping, Sequence

from t5x_style.accounting.audit.audit_record import Audit, LawAudit
from t5x_style.accounting.audit.auditor import laws_of_audit
from t5x_style.accounting.laws import Law, ParametricLaw
from t5x_style.quantities import count, duration, mean_of_steps, scientific

_CONVENTIONS_IN_WORDS = {
    "6nd": "by 6ND",
    "full": "with full attention",
    "causal": "with causal attention",
    "hardware": "executed",
}


def verdict_of_line(
    line: Mapping[str, float | None], own_law: ParametricLaw | None = None
) -> list[str]:
    """The verdict on a run from a training line of metrics.jsonl, as lines for people.

    Args:
      line: `tokens` and the audit; `loss`, with `step` and `loss_steps`, and `seconds/<cause>`
        where they are known.
      own_law: the user's own fit that the run was audited by. It comes first, and the measured loss
        is compared with its loss alone: that of a published law belongs to another text and another
        vocabulary.
    """
    audit = Audit.from_line(line)
    if audit is None or not audit.tokens:
        return ["no tokens yet: nothing to audit"]
    seconds = {
        key.removeprefix("seconds/"): value
        for key, value in line.items()
        if key.startswith("seconds/") and value
    }
    which = mean_of_steps(line.get("step") or 0, line.get("loss_steps"))
    return verdict(audit, own_law, loss=line.get("loss"), which_loss=which, seconds=seconds)


def verdict(
    audit: Audit,
    own_law: ParametricLaw | None = None,
    *,
    loss: float | None = None,
    which_loss: str = "",
    seconds: Mapping[str, float] | None = None,
) -> list[str]:
    """The verdict on a run of one token or more, as lines for people.

    Args:
      own_law: see `verdict_of_line`.
      loss: the measured training loss, nats per token.
      which_loss: the steps that it is a mean of, in words; empty if it is of one step.
      seconds: by cause, as Ledger.seconds has them.
    """
    # A line that was written before the user's own law was fitted has no audit by it.
    laws = {name: law for name, law in laws_of_audit(own_law).items() if name in audit.laws}
    lines = [
        f"{count(audit.tokens / audit.tokens_per_param)} parameters on {count(audit.tokens)} "
        f"tokens{_repetition(audit)}: {audit.tokens_per_param:.1f} tokens per parameter",
        "FLOPs: "
        + ", ".join(
            f"{scientific(flops)} {_CONVENTIONS_IN_WORDS[convention]}"
            for convention, flops in audit.flops.items()
        ),
    ]
    lines += [_law_verdict(law, audit.laws[name]) for name, law in laws.items()]
    lines += _extrapolation_notes(laws.values(), audit.flops["6nd"])
    if loss is not None:
        measured = f"training loss {loss:.4f} nats per token"
        measured += f" ({which_loss})" if which_loss else ""
        audits = {name: audit.laws[name] for name in laws}
        lines.append(measured + _loss_comparison(loss, own_law, audits))
    if audit.remaining_tokens:
        gains = {name: audit.laws[name].remaining_gain for name in laws}
        lines.append(_remaining_gains(audit.tokens, audit.remaining_tokens, gains))
    if seconds:
        lines.append(_time_shares(seconds))
    return lines


def _repetition(audit: Audit) -> str:
    """The effective tokens, where some were read again."""
    if audit.effective_tokens is None or audit.effective_tokens > 0.999 * audit.tokens:
        return ""
    return f" ({count(audit.effective_tokens)} effective)"


def _law_verdict(law: Law, audit: LawAudit) -> str:
    params, tokens = audit.optimal_params, audit.optimal_tokens
    assert params is not None
    assert tokens is not None
    better = (
        f"best for these FLOPs: {count(params)} parameters on {count(tokens)} tokens "
        f"({tokens / params:.1f} per parameter)"
    )
    if audit.compute_efficiency is None or audit.expected_loss is None:
        return f"{law.name}: {better}"
    return (
        f"{law.name}: compute efficiency {audit.compute_efficiency:.1%}; {better}, "
        f"expected loss {law.loss(params, tokens):.4f} instead of {audit.expected_loss:.4f}"
    )


def _extrapolation_notes(laws: Iterable[Law], spent: float) -> list[str]:
    """A note for every range of FLOPs that laws were fitted on and that the run is outside of."""
    fitted: dict[tuple[float, float], list[str]] = {}
    for law in laws:
        if law.fitted_flops is not None:
            fitted.setdefault(law.fitted_flops, []).append(law.name)
    return [
        f"note: {_enumeration(names)} {'was' if len(names) == 1 else 'were'} fitted on "
        f"{scientific(least)} to {scientific(greatest)} FLOPs; at {scientific(spent)} "
        f"{'it extrapolates' if len(names) == 1 else 'they extrapolate'}"
        for (least, greatest), names in fitted.items()
        if not least <= spent <= greatest
    ]


def _loss_comparison(
    loss: float, own_law: ParametricLaw | None, audits: Mapping[str, LawAudit]
) -> str:
    """The expected losses behind the measured one, of the laws that it may be compared with."""
    expected = {
        name: audit.expected_loss
        for name, audit in audits.items()
        if audit.expected_loss is not None
    }
    if own_law is not None and own_law.name in expected:
        own = expected[own_law.name]
        side = "above" if loss >= own else "below"
        return f", {abs(loss - own):.4f} {side} the {own:.4f} that {own_law.name} expects"
    return (
        "; expected: "
        + ", ".join(f"{value:.4f} by {name}" for name, value in expected.items())
        + ", but on Chinchilla's text and vocabulary. Their efficiency holds for this run "
        "sooner than their loss; only a fit to your own runs gives its loss (t5x-style fit, then "
        "train --own_law)"
    )


def _remaining_gains(tokens: float, remaining: float, gains: Mapping[str, float | None]) -> str:
    """The gain from the planned tokens that are not yet spent."""
    planned = tokens + remaining
    return (
        f"at {tokens / planned:.1%} of the planned {count(planned)} tokens; the remaining "
        f"{remaining / planned:.1%} would buy, in nats per token, "
        + ", ".join(f"{gain:.3g} by {name}" for name, gain in gains.items() if gain is not None)
    )


def _enumeration(names: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _time_shares(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values())
    shares = ", ".join(
        f"{cause} {value / total:.1%}"
        for cause, value in sorted(seconds.items(), key=lambda item: -item[1])
    )
    return f"{duration(total)} in all: {shares}"
