"""The audit in words: was the compute spent well, and what would have been better?"""

from collections.abc import Iterable, Mapping, Sequence

from t5x_style.accounting.architecture import Architecture
from t5x_style.accounting.audit.auditor import audit, laws_of_audit
from t5x_style.accounting.laws import Law, ParametricLaw
from t5x_style.accounting.topology import Topology
from t5x_style.quantities import count, duration, scientific

_MEANINGS = {
    "model_flops_6nd": "by 6ND",
    "model_flops_full": "with full attention",
    "model_flops_causal": "with causal attention",
    "hardware_flops": "executed",
}


def verdict(
    arch: Architecture,
    sequence_length: int,
    tokens: int,
    *,
    remat: str = "none",
    seconds: Mapping[str, float] | None = None,
    loss: float | None = None,
) -> list[str]:
    """The verdict on a run of `arch` over `tokens` tokens, as lines for people.

    Args:
      sequence_length: S, tokens.
      remat: the policy in force.
      seconds: by cause, as Ledger.seconds has them.
      loss: training loss at the end, nats per token.
    """
    line: dict[str, float | None] = {"tokens": tokens, "loss": loss}
    line |= audit(arch, sequence_length, tokens, Topology(remat=remat))
    line |= {f"seconds/{cause}": value for cause, value in (seconds or {}).items()}
    return verdict_of_line(line)


def verdict_of_line(
    line: Mapping[str, float | None], own_law: ParametricLaw | None = None
) -> list[str]:
    """The same from a training line of metrics.jsonl: `tokens`, the audit, what else there is.

    Args:
      own_law: the user's own fit that the run was held against. It comes first, and the measured
        loss is compared with its loss alone: that of a published law belongs to another text and
        another vocabulary.
    """
    tokens = line["tokens"]
    per_param = line["tokens_per_param"]
    spent = line["model_flops_6nd"]
    if not tokens or not per_param or not spent:
        return ["no tokens yet: nothing to audit"]
    # A line from before the fit was there does not know of it.
    laws = {
        name: law
        for name, law in laws_of_audit(own_law).items()
        if f"chinchilla/{name}/optimal_params" in line
    }
    lines = [
        f"{count(tokens / per_param)} parameters on {count(tokens)} tokens{_worth(line)}: "
        f"{per_param:.1f} tokens per parameter",
        "FLOPs: "
        + ", ".join(
            f"{scientific(value)} {meaning}"
            for key, meaning in _MEANINGS.items()
            if (value := line.get(key)) is not None
        ),
    ]
    lines += [_by_law(law, line) for law in laws.values()]
    lines += _of_extrapolation(laws.values(), spent)
    if (loss := line.get("loss")) is not None:
        lines.append(_of_loss(loss, laws, own_law, line))
    if remaining := line.get("remaining_tokens"):
        lines.append(_of_the_rest(tokens, remaining, laws, line))
    seconds = {
        key.removeprefix("seconds/"): value
        for key, value in line.items()
        if key.startswith("seconds/") and value
    }
    if seconds:
        lines.append(_of_time(seconds))
    return lines


def _worth(line: Mapping[str, float | None]) -> str:
    """What the tokens are worth, where some were read again."""
    effective = line.get("effective_tokens")
    if effective is None or effective > 0.999 * line["tokens"]:
        return ""
    return f" (as much as {count(effective)} fresh ones)"


def _by_law(law: Law, line: Mapping[str, float | None]) -> str:
    """What one law says of the run."""
    said = f"chinchilla/{law.name}"
    params, tokens = line[f"{said}/optimal_params"], line[f"{said}/optimal_tokens"]
    efficiency, expected = line[f"{said}/compute_efficiency"], line[f"{said}/expected_loss"]
    assert params is not None
    assert tokens is not None
    better = (
        f"best for these FLOPs: {count(params)} parameters on {count(tokens)} tokens "
        f"({tokens / params:.1f} per parameter)"
    )
    if efficiency is None or expected is None:
        return f"{law.name}: {better}"
    return (
        f"{law.name}: compute efficiency {efficiency:.1%}; {better}, "
        f"expected loss {law.loss(params, tokens):.4f} instead of {expected:.4f}"
    )


def _of_extrapolation(laws: Iterable[Law], spent: float) -> list[str]:
    """A note for each range of FLOPs that laws were fitted on and that the run lies outside of."""
    fitted: dict[tuple[float, float], list[str]] = {}
    for law in laws:
        if law.fitted_flops is not None:
            fitted.setdefault(law.fitted_flops, []).append(law.name)
    return [
        f"note: {_listed(names)} {'was' if len(names) == 1 else 'were'} fitted on "
        f"{scientific(least)} to {scientific(greatest)} FLOPs; at {scientific(spent)} "
        f"{'it extrapolates' if len(names) == 1 else 'they extrapolate'}"
        for (least, greatest), names in fitted.items()
        if not least <= spent <= greatest
    ]


def _of_loss(
    loss: float,
    laws: Mapping[str, Law],
    own_law: ParametricLaw | None,
    line: Mapping[str, float | None],
) -> str:
    """The measured loss beside the expected one, of the laws that it may be compared with."""
    measured = f"training loss {loss:.4f} nats per token"
    expected = {
        name: value
        for name in laws
        if (value := line[f"chinchilla/{name}/expected_loss"]) is not None
    }
    if own_law is not None and own_law.name in expected:
        own = expected[own_law.name]
        side = "above" if loss >= own else "below"
        return f"{measured}, {abs(loss - own):.4f} {side} the {own:.4f} that {own_law.name} expects"
    return (
        f"{measured}; expected: "
        + ", ".join(f"{value:.4f} by {name}" for name, value in expected.items())
        + ", but on Chinchilla's text and vocabulary: their efficiency carries over to this run "
        "sooner than their loss, which only a fit to runs of your own could tell (t5x-style fit, "
        "then train --own_law)"
    )


def _of_the_rest(
    tokens: float, remaining: float, laws: Mapping[str, Law], line: Mapping[str, float | None]
) -> str:
    """What the part of the planned tokens that is not spent would buy."""
    planned = tokens + remaining
    gains = {name: line.get(f"chinchilla/{name}/remaining_gain") for name in laws}
    return (
        f"at {tokens / planned:.1%} of the planned {count(planned)} tokens; the remaining "
        f"{remaining / planned:.1%} would buy, in nats per token, "
        + ", ".join(f"{gain:.3g} by {name}" for name, gain in gains.items() if gain is not None)
    )


def _listed(names: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _of_time(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values())
    shares = ", ".join(
        f"{cause} {value / total:.1%}"
        for cause, value in sorted(seconds.items(), key=lambda item: -item[1])
    )
    return f"{duration(total)} in all: {shares}"
