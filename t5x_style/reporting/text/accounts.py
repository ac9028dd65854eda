"""BloombergGPT's accounts as text."""

from typing import Any

from t5x_style.accounting import verdict_of_line
from t5x_style.accounting.audit import bloomberggpt
from t5x_style.quantities import SECONDS_PER_DAY, count, duration, scientific
from t5x_style.reporting.text.tables import table


def accounts_text(accounts: dict[str, Any]) -> str:
    """The result of `bloomberggpt.accounts`, a section for each question."""
    flops, time, use = accounts["flops"], accounts["time"], accounts["utilisation"]
    paper = flops["8n"]
    steps = sum(phase["steps"] for phase in accounts["phases"])
    terms = accounts["parameters"]
    batches = ", then ".join(
        f"{phase['steps']:,} steps of {phase['batch']:,}" for phase in accounts["phases"]
    )
    sections = [
        "BloombergGPT (Wu et al. 2023) from its shape and schedule alone",
        table([*terms.items(), ("total", accounts["total_parameters"])], ("term", "parameters")),
        f"{accounts['tokens']:,} tokens in {steps:,} steps ({batches} sequences of "
        f"{bloomberggpt.SEQUENCE_LENGTH:,}): {accounts['epochs']:.2%} of the "
        f"{bloomberggpt.AVAILABLE_TOKENS / 1e9:.1f}B available",
        table(
            [
                (
                    convention,
                    int(figures["per_token"]),
                    scientific(figures["total"]),
                    f"{figures['flops_per_second_per_gpu'] / 1e12:.2f}",
                    f"{figures['share_of_peak']:.1%}",
                    figures["meaning"],
                )
                for convention, figures in flops.items()
            ],
            ("convention", "FLOPs/token", "total", "TFLOP/s/GPU", "of peak", "meaning"),
        ),
        "The paper's 2.36e23 FLOPs are 8 N over full batches. Over the tokens available, 8 N D "
        f"is {scientific(paper['total'])} = {paper['total'] / 1e15:,.0f} petaFLOP, the 230,000,000 "
        "of course notes.\n"
        "The paper's 102 TFLOP/s per GPU are "
        f"{paper['flops_per_second_per_gpu'] / 1e12:.2f} by 8 N: "
        f"{use['hfu']:.1%} HFU, and {use['mfu_lowest']:.1%} to {use['mfu_highest']:.1%} MFU by "
        "convention.",
        f"{steps:,} steps of {bloomberggpt.SECONDS_PER_FULL_STEP} s on {bloomberggpt.GPUS} GPUs: "
        f"{duration(time['days'] * SECONDS_PER_DAY)}, {time['gpu_hours']:,.0f} GPU hours, "
        f"{time['share_of_budget']:.1%} of the 1.3 million available\n"
        f"planned budget: 0.75 x 1.3 million GPU hours at 100 TFLOP/s = "
        f"{scientific(bloomberggpt.BUDGET_FLOPS)} FLOPs",
        "\n".join(verdict_of_line({"tokens": accounts["tokens"], **accounts["audit"]})),
        table(
            [
                (source["name"], count(source["tokens"]), f"{source['share']:.2%}")
                for source in accounts["sources"]
            ],
            ("table 1 of the paper", "tokens", "share"),
        ),
    ]
    return "\n\n".join(sections)
