"""BloombergGPT's accounts, from what its paper prints (Wu et al. 2023, arXiv 2303.17564).

The one published run of a domain model with a full compute account, and so the yardstick of this
room: from the shape and the schedule alone the numbers of the paper must come out again.
"""

from t5x_style.accounting.architecture import Architecture
from t5x_style.accounting.auditor import Auditor
from t5x_style.accounting.chips import CHIPS
from t5x_style.accounting.flops import CONVENTIONS
from t5x_style.accounting.parameter_count import parameters, total_parameters

# Table 4 and appendix A.
ARCHITECTURE = Architecture(
    vocab_size=131_072,
    layers=70,
    d_model=7680,
    d_ff=30_720,
    heads=40,
    head_dim=192,
    positions="alibi",
    norm="layer",
    feed_forward="gelu",
    biases=True,
    embedding_norm=True,
)
SEQUENCE_LENGTH = 2048
REMAT = "full"
# (batch in sequences, steps): section 3.3, the batch warm-up and the rest up to step 139,200.
PHASES = ((1024, 7_200), (2048, 132_000))
AVAILABLE_TOKENS = 708.9e9
GPUS = 512
GPU = CHIPS["a100_40gb"]
SECONDS_PER_FULL_STEP = 32.5
# Section 3.2: 1.3 million GPU hours, a quarter of them for recomputation, at 100 TFLOP/s a GPU.
BUDGET_FLOPS = 0.75 * 1.3e6 * 3600 * 100e12


def accounts() -> dict:
    """The run's accounts as plain numbers.

    Returns:
      parameters: per term; total_parameters.
      tokens: what was trained on; epochs: of the tokens that there were.
      flops: convention -> {per_token, total, flops_per_second_per_gpu, share_of_peak}. '8n' is the
        paper's own: 6ND plus a forward pass recomputed, no attention term; '8n_full_batches' counts
        every step at the full batch, which is what gives the paper's 2.36e23.
      audit: the audit of the run (see Auditor.at).
    """
    total = total_parameters(ARCHITECTURE)
    tokens = sum(batch * steps for batch, steps in PHASES) * SEQUENCE_LENGTH
    full_batch = PHASES[-1][0] * SEQUENCE_LENGTH
    if_all_were_full = sum(steps for _, steps in PHASES) * full_batch
    auditor = Auditor(ARCHITECTURE, SEQUENCE_LENGTH, REMAT)
    per_token = dict(zip(CONVENTIONS, auditor.flops_per_token.values(), strict=True))
    per_token["8n"] = per_token["8n_full_batches"] = 8.0 * total
    flops = {}
    for convention, value in per_token.items():
        per_second = value * full_batch / SECONDS_PER_FULL_STEP / GPUS
        flops[convention] = {
            "per_token": value,
            "total": value * (if_all_were_full if convention == "8n_full_batches" else tokens),
            "flops_per_second_per_gpu": per_second,
            "share_of_peak": per_second / GPU.peak_bf16_flops,
        }
    return {
        "parameters": parameters(ARCHITECTURE),
        "total_parameters": total,
        "tokens": tokens,
        "epochs": tokens / AVAILABLE_TOKENS,
        "flops": flops,
        "audit": auditor.at(tokens),
    }
