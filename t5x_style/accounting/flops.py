"""FLOPs per token: one table of forward terms, and conventions that select from it.

A multiply-add counts as two FLOPs. Norms, softmax, biases, positions and the optimizer are not
counted, as in the papers. Every figure names its convention, because the conventions in use lie
up to 38 % apart for one and the same run (BloombergGPT: 1.73e23 by 6ND, 2.39e23 by Megatron's
formula with recomputation, 2.36e23 in its paper).
"""

from t5x_style.accounting.architecture import Architecture
from t5x_style.accounting.parameter_count import attention_widths, total_parameters
from t5x_style.errors import UsageError, did_you_mean

CONVENTIONS = {
    "6nd": "6 x parameters: what Chinchilla's laws and most papers call C",
    "full": "3 x the forward matrix products with full S x S attention (PaLM's 6N + 12LHQT)",
    "causal": "the same with only the attention below the diagonal: (S + 1) / 2 keys per query",
    "hardware": "full, plus what the remat policy and the attention kernel compute a second time",
}

ATTENTION_TERMS = ("attention_logits", "attention_values")

# The forward products of a layer that the backward pass computes again under each remat policy.
# The last feed-forward matrix is never among them: its gradient needs its input, not its output,
# so the compiler drops it (and in a parallel block the attention's output matrix likewise). The
# head is outside the layers, and its gradient is made while its logits are at hand.
REMAT_RECOMPUTES: dict[str, tuple[str, ...]] = {
    "none": (),
    "save_dots": ATTENTION_TERMS,
    "full": ("qkv", *ATTENTION_TERMS, "output", "feed_forward_in"),
}

# What an attention kernel computes again in its own backward pass, under every remat policy.
KERNEL_RECOMPUTES: dict[str, tuple[str, ...]] = {"plain": (), "blockwise": ATTENTION_TERMS}


def forward_flops_per_token(arch: Architecture, sequence_length: int) -> dict[str, float]:
    """Forward FLOPs per token of every matrix product, over all L layers, attention full S x S.

    Chinchilla's appendix F (Hoffmann et al. 2022) without its embedding term: a gather multiplies
    nothing. With K < N heads the keys and values have K H columns.

    Args:
      sequence_length: S, tokens.

    Returns:
      qkv 2 D (N + 2K) H; attention_logits 2 S N H; attention_values 2 S N H; output 2 N H D;
      feed_forward_in 2 D F (4 D F for swiglu: gate and up); feed_forward_out 2 F D; each times L;
      head 2 D V.
    """
    width, layers = arch.d_model, arch.layers
    queries, keys = attention_widths(arch)
    inner_matrices = 2 if arch.feed_forward == "swiglu" else 1
    return {
        "qkv": 2.0 * layers * width * (queries + 2 * keys),
        "attention_logits": 2.0 * layers * sequence_length * queries,
        "attention_values": 2.0 * layers * sequence_length * queries,
        "output": 2.0 * layers * queries * width,
        "feed_forward_in": 2.0 * layers * width * arch.d_ff * inner_matrices,
        "feed_forward_out": 2.0 * layers * arch.d_ff * width,
        "head": 2.0 * width * arch.vocab_size,
    }


def training_flops_per_token(
    arch: Architecture,
    sequence_length: int,
    convention: str,
    remat: str = "none",
    kernel: str = "plain",
) -> float:
    """FLOPs of one token's forward and backward pass, by a named convention.

    Args:
      sequence_length: S, tokens.
      convention: one of CONVENTIONS.
      remat: one of REMAT_RECOMPUTES.
      kernel: one of KERNEL_RECOMPUTES. Both change 'hardware' alone, which counts what the compiled
        step executes.

    Raises:
      UsageError: for a convention, remat policy or kernel that does not exist.
    """
    _check("FLOP convention", convention, CONVENTIONS)
    _check("remat policy", remat, REMAT_RECOMPUTES)
    _check("attention kernel", kernel, KERNEL_RECOMPUTES)
    if convention == "6nd":
        return 6.0 * total_parameters(arch)
    forward = forward_flops_per_token(arch, sequence_length)
    if convention == "causal":
        below_the_diagonal = (sequence_length + 1) / (2 * sequence_length)
        for term in ATTENTION_TERMS:
            forward[term] *= below_the_diagonal
    flops = 3.0 * sum(forward.values())
    if convention == "hardware":
        again = (*_recomputed(arch, remat), *KERNEL_RECOMPUTES[kernel])
        flops += sum(forward[term] for term in again)
    return flops


def _recomputed(arch: Architecture, remat: str) -> tuple[str, ...]:
    terms = REMAT_RECOMPUTES[remat]
    if arch.parallel_block:
        return tuple(term for term in terms if term != "output")
    return terms


def _check(kind: str, value: str, known: dict) -> None:
    if value not in known:
        raise UsageError(
            f"no {kind} {value!r}: one of {', '.join(known)}{did_you_mean(str(value), known)}"
        )
