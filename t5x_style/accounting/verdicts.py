"""The audit in words: was the compute spent well, and what would have been better?"""

from collections.abc import Mapping

from t5x_style.accounting.architecture import Architecture
from t5x_style.accounting.auditor import audit
from t5x_style.accounting.laws import LAWS
from t5x_style.accounting.quantities import count, duration, scientific

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
    line |= audit(arch, sequence_length, tokens, remat)
    line |= {f"seconds/{cause}": value for cause, value in (seconds or {}).items()}
    return verdict_of_line(line)


def verdict_of_line(line: Mapping[str, float | None]) -> list[str]:
    """The same from a training line of metrics.jsonl: `tokens`, the audit, what else there is."""
    tokens = line["tokens"]
    per_param = line["tokens_per_param"]
    spent = line["model_flops_6nd"]
    if not tokens or not per_param or not spent:
        return ["no tokens yet: nothing to audit"]
    lines = [
        f"{count(tokens / per_param)} parameters on {count(tokens)} tokens: "
        f"{per_param:.1f} tokens per parameter",
        "FLOPs: "
        + ", ".join(
            f"{scientific(value)} {meaning}"
            for key, meaning in _MEANINGS.items()
            if (value := line.get(key)) is not None
        ),
    ]
    lines += [_by_law(name, line) for name in LAWS]
    least, greatest = next(iter(LAWS.values())).fitted_flops
    if not least <= spent <= greatest:
        lines.append(
            f"note: the laws were fitted on {scientific(least)} to {scientific(greatest)} FLOPs; "
            f"at {scientific(spent)} they extrapolate"
        )
    if line.get("loss") is not None:
        lines.append(
            f"training loss {line['loss']:.4f} nats per token; a law's loss is that of "
            "Chinchilla's text and vocabulary, so its efficiency carries over to this run "
            "sooner than its loss"
        )
    seconds = {
        key.removeprefix("seconds/"): value
        for key, value in line.items()
        if key.startswith("seconds/") and value
    }
    if seconds:
        lines.append(_of_time(seconds))
    return lines


def _by_law(name: str, line: Mapping[str, float | None]) -> str:
    """What one law says of the run."""
    law = LAWS[name]
    params, tokens = (line[f"chinchilla/{name}/optimal_{what}"] for what in ("params", "tokens"))
    efficiency = line[f"chinchilla/{name}/compute_efficiency"]
    expected = line[f"chinchilla/{name}/expected_loss"]
    assert params is not None
    assert tokens is not None
    better = (
        f"best for these FLOPs: {count(params)} parameters on {count(tokens)} tokens "
        f"({tokens / params:.1f} per parameter)"
    )
    if efficiency is None or expected is None:
        return f"{name}: {better}"
    return (
        f"{name}: compute efficiency {efficiency:.1%}; {better}, "
        f"expected loss {law.loss(params, tokens):.4f} instead of {expected:.4f}"
    )


def _of_time(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values())
    shares = ", ".join(
        f"{cause} {value / total:.1%}"
        for cause, value in sorted(seconds.items(), key=lambda item: -item[1])
    )
    return f"{duration(total)} in all: {shares}"
