"""How a run of N parameters on D tokens is trained, every number with its rule."""

import dataclasses
import math

from t5x_style.accounting.architecture import Architecture
from t5x_style.accounting.flops import forward_flops_per_token
from t5x_style.accounting.laws.batch_and_learning_rate import deepseek, step_law
from t5x_style.accounting.laws.kaplan import critical_batch_tokens
from t5x_style.accounting.parameter_count import parameters

WARMUP_STEPS = 2000
MOST_OF_THE_RUN_WARMING_UP = 0.05
FINAL_FRACTION = 0.1

# Parameters and tokens of StepLaw's own runs (Li et al. 2025; the lower ends from memory); outside
# them the rule extrapolates.
STEP_LAW_PARAMS = (60e6, 1e9)
STEP_LAW_TOKENS = (2e9, 100e9)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Batch, horizon and learning rate of a run.

    Attributes:
      sequence_length: S, tokens.
      batch_sequences: sequences a step.
      steps: of the whole run.
      tokens: steps x batch_sequences x sequence_length.
      learning_rate: the peak.
      warmup_tokens: of the linear warm-up.
      final_fraction: of the peak, at the end of the cosine.
      rules: quantity -> the rule behind it, in words.
    """

    sequence_length: int
    batch_sequences: int
    steps: int
    tokens: int
    learning_rate: float
    warmup_tokens: int
    final_fraction: float
    rules: dict[str, str]


def recipe_of(
    arch: Architecture,
    tokens: float,
    sequence_length: int,
    loss: float,
    devices: int = 1,
    batch_sequences: int | None = None,
) -> Recipe:
    """The recipe of a run of at most `tokens` tokens (of one step, where that is more).

    Args:
      tokens: D.
      sequence_length: S.
      loss: expected at the end, nats per token: the critical batch depends on it.
      devices: JAX devices; a batch of more sequences than devices is a multiple of them.
      batch_sequences: sequences a step; None takes StepLaw's.
    """
    terms = parameters(arch)
    total = sum(terms.values())
    # N of StepLaw: without the embedding and its output matrix.
    non_embedding = total - terms["embedding"] - terms["positions"] - terms["head"]
    step_rate, step_batch = step_law(non_embedding, tokens)
    # DeepSeek's C is without the embedding and its output matrix, and with attention.
    forward = forward_flops_per_token(arch, sequence_length)
    deep = deepseek(3.0 * (sum(forward.values()) - forward["head"]) * tokens)
    batch = batch_sequences or _sequences(step_batch / sequence_length, devices)
    steps = max(1, int(tokens // (batch * sequence_length)))
    warmup = max(1, min(WARMUP_STEPS, int(MOST_OF_THE_RUN_WARMING_UP * steps)))
    rate, which = min((step_rate, "StepLaw"), (deep.learning_rate, "DeepSeek"))
    outside = not (
        STEP_LAW_PARAMS[0] <= non_embedding <= STEP_LAW_PARAMS[1]
        and STEP_LAW_TOKENS[0] <= tokens <= STEP_LAW_TOKENS[1]
    )
    far = "; outside StepLaw's runs, so try a smaller model first" if outside else ""
    # Two digits: the rules are no more exact.
    rate = float(f"{rate:.2g}")
    return Recipe(
        sequence_length=sequence_length,
        batch_sequences=batch,
        steps=steps,
        tokens=steps * batch * sequence_length,
        learning_rate=rate,
        warmup_tokens=warmup * batch * sequence_length,
        final_fraction=FINAL_FRACTION,
        rules={
            "batch": ("as asked for; " if batch_sequences else "")
            + f"StepLaw, 0.58 D^0.571 = {step_batch:.3g} tokens"
            + (
                f", to a multiple of {devices:,} devices"
                if devices > 1 and batch % devices == 0 and not batch_sequences
                else ""
            )
            + f"; DeepSeek {deep.batch_tokens:.3g}, critical batch by Kaplan "
            f"{critical_batch_tokens(loss):.3g}",
            "learning rate": f"{which}, the lower of StepLaw {step_rate:.3g} and DeepSeek "
            f"{deep.learning_rate:.3g}: too high ends a run, too low costs little{far}",
            "warm-up": f"{warmup:,} steps: {WARMUP_STEPS:,} as Llama and DeepSeek took, at most "
            f"{MOST_OF_THE_RUN_WARMING_UP:.0%} of the run",
            "horizon": f"one cosine to {FINAL_FRACTION:g} of the peak over the whole run "
            f"(Hoffmann et al. 2022: the cycle is the run); {tokens / total:.1f} tokens a "
            "parameter",
        },
    )


def _sequences(wanted: float, devices: int) -> int:
    """A whole number of sequences that the devices divide, or that divides the devices.

    The rows of a device are rounded by an eighth or by half a row at most, to a number with many
    factors of two, since a step that the memory does not hold is cut into microbatches. With fewer
    sequences than devices, the mesh's other axes use the remaining devices.
    """
    if wanted < devices:
        divisors = [size for size in range(1, devices + 1) if devices % size == 0]
        return min(divisors, key=lambda size: abs(math.log(size / wanted)))
    rows = wanted / devices
    step = 2 ** max(0, math.floor(math.log2(rows / 4)))
    return devices * step * max(1, round(rows / step))
