"""BloombergGPT's accounts, from the numbers of its paper (Wu et al. 2023, arXiv 2303.17564).

It is the one published run of a domain model with a full account of its compute, and so the
yardstick of this room: the paper's numbers must follow from the shape and the schedule alone.
"""

from typing import NamedTuple

from t5x_style.accounting.architecture import Architecture
from t5x_style.accounting.audit.auditor import Auditor
from t5x_style.accounting.chips import CHIPS
from t5x_style.accounting.flops import CONVENTIONS, training_flops_per_token
from t5x_style.accounting.parameter_count import parameters, total_parameters
from t5x_style.accounting.topology import Topology
from t5x_style.quantities import SECONDS_PER_DAY

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
TOPOLOGY = Topology(remat="full")
# (batch in sequences, steps): section 3.3, the batch warm-up and the rest up to step 139,200.
PHASES = ((1024, 7_200), (2048, 132_000))
# The totals that table 1 prints.
UNIQUE_TOKENS = {"finpile": 363.5e9, "public": 345.4e9}
AVAILABLE_TOKENS = sum(UNIQUE_TOKENS.values())
GPUS = 512
GPU = CHIPS["a100_40gb"]
SECONDS_PER_FULL_STEP = 32.5
# Section 3.2: 1.3 million GPU hours, a quarter of them for recomputation, at 100 TFLOP/s a GPU.
BUDGET_GPU_HOURS = 1.3e6
BUDGET_FLOPS = 0.75 * BUDGET_GPU_HOURS * 3600 * 100e12
# The conventions of model FLOPs utilisation in the literature. Appendix F of Hoffmann et al. as
# printed is not among them: looking a word up multiplies nothing.
_MODEL_FLOPS = ("6nd", "chinchilla_counted", "palm", "full")


class Source(NamedTuple):
    """A row of the paper's table 1.

    Attributes:
      name: as printed.
      group: 'FinPile', 'Pile' (Gao et al. 2021), or 'public' for the other two public sets.
      documents: the table prints multiples of 1e4.
      characters, tokens: the table prints multiples of 1e8; tokens by the paper's own tokenizer.
      share: of the tokens of all sources, as printed (rounded to a hundredth of a percent).
    """

    name: str
    group: str
    documents: int
    characters: int
    tokens: int
    share: float


# name, group, documents / 1e4, characters / 1e8, tokens / 1e8, percent of tokens.
_TABLE_1 = (
    ("Web", "FinPile", 158_250, 14_768, 2_978, 42.01),
    ("News", "FinPile", 10_040, 1_672, 376, 5.31),
    ("Filings", "FinPile", 3_335, 780, 145, 2.04),
    ("Press", "FinPile", 1_265, 435, 86, 1.21),
    ("Bloomberg", "FinPile", 2_996, 227, 49, 0.70),
    ("C4", "public", 34_832, 7_683, 1_381, 19.48),
    ("Pile-CC", "Pile", 5_255, 2_312, 427, 6.02),
    ("GitHub", "Pile", 1_428, 766, 227, 3.20),
    ("Books3", "Pile", 19, 1_064, 214, 3.02),
    ("PubMed Central", "Pile", 294, 947, 210, 2.96),
    ("ArXiv", "Pile", 124, 591, 166, 2.35),
    ("OpenWebText2", "Pile", 1_684, 648, 128, 1.80),
    ("FreeLaw", "Pile", 349, 537, 108, 1.52),
    ("StackExchange", "Pile", 1_538, 339, 81, 1.15),
    ("DM Mathematics", "Pile", 100, 82, 43, 0.60),
    ("Wikipedia (en)", "Pile", 590, 176, 38, 0.53),
    ("USPTO", "Pile", 517, 224, 36, 0.51),
    ("PubMed Abstracts", "Pile", 1_527, 204, 35, 0.50),
    ("OpenSubtitles", "Pile", 38, 119, 24, 0.34),
    ("Gutenberg PG-19", "Pile", 3, 112, 23, 0.32),
    ("Ubuntu IRC", "Pile", 1, 56, 18, 0.25),
    ("EuroParl", "Pile", 7, 45, 15, 0.21),
    ("YouTubeSubtitles", "Pile", 17, 33, 13, 0.19),
    ("BookCorpus2", "Pile", 2, 65, 12, 0.17),
    ("HackerNews", "Pile", 82, 41, 8, 0.12),
    ("PhilPapers", "Pile", 3, 23, 6, 0.08),
    ("NIH ExPorter", "Pile", 92, 20, 3, 0.04),
    ("Enron Emails", "Pile", 24, 5, 1, 0.02),
    ("Wikipedia (7/1/22)", "public", 2_218, 726, 237, 3.35),
)
SOURCES = tuple(
    Source(name, group, documents * 10**4, characters * 10**8, tokens * 10**8, percent / 100)
    for name, group, documents, characters, tokens, percent in _TABLE_1
)


def accounts() -> dict:
    """The run's accounts as plain numbers.

    Returns:
      parameters: per term; total_parameters.
      tokens: trained on; epochs: of the available tokens; phases: a list of {batch, steps, tokens};
        sources: the rows of table 1 (see Source).
      flops: convention -> {meaning, per_token, total, flops_per_second_per_gpu, share_of_peak}, for
        all of CONVENTIONS, 'hardware' under this framework's full remat. '8n' is the paper's own:
        6ND plus a forward pass recomputed, no attention term. '8n_full_batches' counts every step
        at the full batch and gives the paper's 2.36e23.
      utilisation: hfu, by the paper's own 8N; mfu_lowest and mfu_highest over the conventions
        without recomputation.
      time: days and gpu_hours, if every step took as long as a full batch; share_of_budget, of the
        GPU hours of the budget.
      audit: the audit of the run (see Auditor.line_at).
    """
    total = total_parameters(ARCHITECTURE)
    steps = sum(steps for _, steps in PHASES)
    phases = [
        {"batch": batch, "steps": steps, "tokens": batch * steps * SEQUENCE_LENGTH}
        for batch, steps in PHASES
    ]
    tokens = sum(phase["tokens"] for phase in phases)
    full_batch = PHASES[-1][0] * SEQUENCE_LENGTH
    flops = {
        name: _run_flops(
            convention.meaning,
            training_flops_per_token(ARCHITECTURE, SEQUENCE_LENGTH, name, TOPOLOGY),
            tokens,
        )
        for name, convention in CONVENTIONS.items()
    }
    flops["8n_full_batches"] = _run_flops(
        "8n with every step at the full batch: the paper's 2.36e23",
        flops["8n"]["per_token"],
        steps * full_batch,
    )
    shares = [flops[name]["share_of_peak"] for name in _MODEL_FLOPS]
    seconds = steps * SECONDS_PER_FULL_STEP
    gpu_hours = GPUS * seconds / 3600
    return {
        "parameters": parameters(ARCHITECTURE),
        "total_parameters": total,
        "tokens": tokens,
        "epochs": tokens / AVAILABLE_TOKENS,
        "phases": phases,
        "sources": [source._asdict() for source in SOURCES],
        "flops": flops,
        "utilisation": {
            "hfu": flops["8n"]["share_of_peak"],
            "mfu_lowest": min(shares),
            "mfu_highest": max(shares),
        },
        "time": {
            "days": seconds / SECONDS_PER_DAY,
            "gpu_hours": gpu_hours,
            "share_of_budget": gpu_hours / BUDGET_GPU_HOURS,
        },
        "audit": Auditor(ARCHITECTURE, SEQUENCE_LENGTH, TOPOLOGY).line_at(tokens),
    }


def _run_flops(meaning: str, per_token: float, tokens: int) -> dict:
    full_batch = PHASES[-1][0] * SEQUENCE_LENGTH
    per_second = per_token * full_batch / SECONDS_PER_FULL_STEP / GPUS
    return {
        "meaning": meaning,
        "per_token": per_token,
        "total": per_token * tokens,
        "flops_per_second_per_gpu": per_second,
        "share_of_peak": per_second / GPU.peak_bf16_flops,
    }
