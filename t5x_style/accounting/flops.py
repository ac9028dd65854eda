"""FLOPs per token: one table of forward terms, and conventions that select from it.

A multiply-add counts as two FLOPs, and the backward pass of a product is two products of its size.
Norms, biases, positions and the optimizer multiply nothing that a paper counts; where a convention
counts every parameter, they are in the table with two FLOPs each. Every figure names its
convention, because the conventions in use lie up to 38 % apart for one and the same run
(BloombergGPT: 1.73e23 by 6ND, 2.39e23 by Megatron's formula with recomputation, 2.36e23 in its
paper).
"""

from collections.abc import Iterable
from typing import NamedTuple

from t5x_style.accounting.architecture import Architecture
from t5x_style.accounting.attention_blocks import (
    even_block,
    flash_block,
    touched_keys_per_query,
)
from t5x_style.accounting.parameter_count import (
    attention_widths,
    non_embedding_parameters,
    parameters,
)
from t5x_style.errors import UsageError, did_you_mean

MATRICES = ("qkv", "output", "feed_forward_in", "feed_forward_out")
ATTENTION_TERMS = ("attention_logits", "attention_values")
LAYERS = ("qkv", *ATTENTION_TERMS, "output", "feed_forward_in", "feed_forward_out")
PRODUCTS = (*LAYERS, "head")
# Twice the parameters: what 2 N stands for.
NON_EMBEDDING = (*MATRICES, "vectors", "untied_head")
PARAMETERS = ("embedding", "positions", *NON_EMBEDDING)


class Convention(NamedTuple):
    """What a convention counts: for each term of `forward_terms`, how many times that term.

    Three passes are a forward and a backward pass, a fourth one recomputes the forward pass.
    """

    meaning: str
    passes: dict[str, int]


def _passes(number: int, *terms: str) -> dict[str, int]:
    return dict.fromkeys(terms, number)


CONVENTIONS = {
    "6nd": Convention(
        "6 x parameters: what Chinchilla's laws and most papers call C", _passes(3, *PARAMETERS)
    ),
    "6nd_non_embedding": Convention(
        "6 x parameters without the embedding and the learned positions",
        _passes(3, *NON_EMBEDDING),
    ),
    "kaplan": Convention(
        "6 x non-embedding parameters, and one of attention's two products (Kaplan et al. 2020, "
        "equation 2.2 and table 1: forward 2N + 2 L S N H)",
        _passes(3, *NON_EMBEDDING, "attention_logits"),
    ),
    "chinchilla_printed": Convention(
        "Hoffmann et al. 2022, appendix F as printed: with a lookup written as a product, softmax "
        "and the final logits",
        _passes(3, "embedding", *LAYERS, "softmax", "head"),
    ),
    "chinchilla_counted": Convention(
        "what its table A4 really counts: neither the embedding nor the final logits",
        _passes(3, *LAYERS, "softmax"),
    ),
    "palm": Convention(
        "6N + 12 L H Q T: every parameter, and full attention (Chowdhery et al. 2022, appendix B)",
        _passes(3, *PARAMETERS, *ATTENTION_TERMS),
    ),
    "full": Convention(
        "3 x the forward matrix products with full S x S attention", _passes(3, *PRODUCTS)
    ),
    "causal": Convention(
        "the same with only the keys that the mask admits: (S + 1) / 2 per query, fewer under a "
        "sliding window",
        _passes(3, *MATRICES, "causal_logits", "causal_values", "head"),
    ),
    "megatron": Convention(
        "72 B s L h^2 (1 + s / 6h + V / 12Lh): what full is on Megatron's own shapes",
        _passes(3, *PRODUCTS),
    ),
    "megatron_recompute": Convention(
        "96 B s L h^2 (1 + s / 6h + V / 16Lh): the layers' forward pass twice (Narayanan et al. "
        "2021, equation 3)",
        _passes(4, *LAYERS) | _passes(3, "head"),
    ),
    "8n": Convention(
        "6N, and 2N for a forward pass recomputed: what BloombergGPT reports",
        _passes(4, *PARAMETERS),
    ),
    "hardware": Convention(
        "full, plus what the remat policy, the attention kernel and the loss compute again",
        _passes(3, *PRODUCTS),
    ),
}

# The forward products of a layer that the backward pass computes again under each remat policy.
# The last feed-forward matrix is never among them: its gradient needs its input, not its output,
# so the compiler drops it (and in a parallel block the attention's output matrix likewise). The
# head is outside the layers, and its gradient is made while its logits are at hand; but a loss by
# words (models/loss.py) makes them twice.
_AGAIN_BUT_ATTENTION = ("qkv", "feed_forward_in")
REMAT_RECOMPUTES: dict[str, tuple[str, ...]] = {
    "none": (),
    "save_dots": (),
    "full": ("qkv", *ATTENTION_TERMS, "output", "feed_forward_in"),
    "save_attention": _AGAIN_BUT_ATTENTION,
    "save_qkv": ("output", "feed_forward_in"),
    "save_qkv_out": ("feed_forward_in",),
    "offload": _AGAIN_BUT_ATTENTION,
}

# What an attention kernel computes again in its own backward pass, under every remat policy. Plain
# holds all of its weights; blockwise makes the logits again. Flash goes back in two passes, one for
# the queries' gradient and one for the keys' and values': each makes the logits again, and the
# second the gradient of the weights, a product of the size of attention_values, once more. cuDNN
# makes the logits again, in one pass.
KERNEL_RECOMPUTES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "blockwise": ("attention_logits",),
    "flash": ("attention_logits", "attention_logits", "attention_values"),
    "cudnn": ("attention_logits",),
}

# The policies that keep the kernel's result, and what it must compute again all the same because
# it needs more than that: the plain one its weights; cuDNN a statistic of each query, which has no
# name by which to keep it, so that it goes forward once more.
KEEP_ATTENTION = ("save_dots", "save_attention", "save_qkv", "save_qkv_out", "offload")
_RESULT_IS_NOT_ENOUGH: dict[str, tuple[str, ...]] = {
    "plain": ("attention_logits",),
    "cudnn": ATTENTION_TERMS,
}


def forward_terms(arch: Architecture, sequence_length: int) -> dict[str, float]:
    """The table: forward FLOPs per token of every term that any convention counts, over L layers.

    After Chinchilla's appendix F (Hoffmann et al. 2022). Letters as in Architecture; with K < N
    heads the keys and values have K H columns. No convention counts all of the terms: attention is
    in it twice (all keys, and those that the mask admits), and so is a head of its own (as a
    product, and as parameters).

    Args:
      sequence_length: S, tokens.

    Returns:
      embedding: 2 V D, a lookup written as a product with a one-hot row.
      positions: 2 x the parameters of learned positions.
      vectors: 2 x the parameters of norms and biases.
      qkv: L 2 D (N + 2K) H.
      attention_logits, attention_values: L 2 S N H each.
      causal_logits, causal_values: L 2 T N H each, T the mean number of `keys_per_query`.
      softmax: L 3 N S.
      output: L 2 N H D.
      feed_forward_in: L 2 D F (twice that for swiglu: gate and up); feed_forward_out: L 2 F D.
      head: 2 D V; untied_head: the same where the head has parameters of its own, else 0.
    """
    width, layers = arch.d_model, arch.layers
    queries, keys = attention_widths(arch)
    inner_matrices = arch.feed_forward_kind.input_matrices
    all_keys = 2.0 * layers * queries * sequence_length
    seen_keys = 2.0 * layers * queries * keys_per_query(sequence_length, arch.window)
    matrices = {
        "qkv": 2.0 * layers * width * (queries + 2 * keys),
        "output": 2.0 * layers * queries * width,
        "feed_forward_in": 2.0 * layers * width * arch.d_ff * inner_matrices,
        "feed_forward_out": 2.0 * layers * arch.d_ff * width,
        "untied_head": 0.0 if arch.tied_head else 2.0 * width * arch.vocab_size,
    }
    return matrices | {
        "embedding": 2.0 * arch.vocab_size * width,
        "positions": 2.0 * parameters(arch)["positions"],
        "vectors": 2.0 * non_embedding_parameters(arch) - sum(matrices.values()),
        "attention_logits": all_keys,
        "attention_values": all_keys,
        "causal_logits": seen_keys,
        "causal_values": seen_keys,
        "softmax": 3.0 * layers * arch.heads * sequence_length,
        "head": 2.0 * width * arch.vocab_size,
    }


def keys_per_query(sequence_length: int, window: int | None) -> float:
    """Mean number of keys that a causal mask admits, over the S queries of a sequence.

    The i-th query sees min(i, W) keys, itself included: W - W (W - 1) / 2S on average, which is
    (S + 1) / 2 where the window W is absent or no shorter than S.
    """
    most = sequence_length if window is None else min(window, sequence_length)
    return most - most * (most - 1) / (2 * sequence_length)


def forward_flops_per_token(arch: Architecture, sequence_length: int) -> dict[str, float]:
    """Forward FLOPs per token of every matrix product, attention full S x S: what `full` counts.

    Returns:
      The terms PRODUCTS of `forward_terms`, in the order in which a token meets them.
    """
    terms = forward_terms(arch, sequence_length)
    return {term: terms[term] for term in PRODUCTS}


def training_flops_per_token(
    arch: Architecture,
    sequence_length: int,
    convention: str,
    remat: str = "none",
    kernel: str = "plain",
    *,
    attention_block: int = 512,
    sequence_shards: int = 1,
    loss_vocab_chunks: int = 1,
) -> float:
    """FLOPs of one token's forward and backward pass, by a named convention.

    Args:
      sequence_length: S, tokens.
      convention: one of CONVENTIONS.
      remat: one of REMAT_RECOMPUTES.
      kernel: one of KERNEL_RECOMPUTES. Both change 'hardware' alone, which counts what the compiled
        step executes.
      loss_vocab_chunks: as in `partitioning.Topology`; above 1, 'hardware' has the logits twice.
      attention_block: as in `partitioning.Topology`; not read with kernel 'plain'.
      sequence_shards: devices that share a sequence: `Topology.sequence`; read with kernel 'flash'
        alone.

    Raises:
      UsageError: for a convention, remat policy or kernel that does not exist.
    """
    _check("FLOP convention", convention, CONVENTIONS)
    _check("remat policy", remat, REMAT_RECOMPUTES)
    _check("attention kernel", kernel, KERNEL_RECOMPUTES)
    terms = forward_terms(arch, sequence_length)
    if convention == "hardware":
        terms |= executed_attention(arch, sequence_length, kernel, attention_block, sequence_shards)
    flops = sum(passes * terms[term] for term, passes in CONVENTIONS[convention].passes.items())
    if convention == "hardware":
        flops += sum(terms[term] for term in recomputed(arch, remat, kernel))
        if loss_vocab_chunks > 1:
            flops += terms["head"]
    return flops


def executed_attention(
    arch: Architecture,
    sequence_length: int,
    kernel: str,
    attention_block: int = 512,
    sequence_shards: int = 1,
) -> dict[str, float]:
    """Forward FLOPs per token of attention's two products as the kernel multiplies them.

    All S keys per query with 'plain', and with the others those of the blocks that they touch: the
    mask leaves half of them and the diagonal, of which they multiply whole blocks ('blockwise' all
    of them where the sequence is split over devices). The tiles of 'cudnn' are its own affair: for
    it the keys count that the mask admits, as a floor. The six features for ALiBi of 'flash' are
    not counted (6 of 198 in the logits of a head of 192).

    Args:
      attention_block: as in `partitioning.Topology`.
      sequence_shards: devices that share a sequence; a tile then has to fit into their pieces.
    """
    keys: float = sequence_length
    if kernel == "flash":
        block = flash_block(sequence_length, attention_block, sequence_shards)
    elif kernel == "blockwise":
        block = even_block(sequence_length, attention_block)
    if kernel == "cudnn":
        keys = keys_per_query(sequence_length, arch.window)
    elif kernel != "plain":
        keys = touched_keys_per_query(sequence_length, arch.window, block)
    queries, _ = attention_widths(arch)
    return dict.fromkeys(ATTENTION_TERMS, 2.0 * arch.layers * queries * keys)


def recomputed(arch: Architecture, remat: str, kernel: str) -> tuple[str, ...]:
    """The forward terms that a step computes again, each as often as it does."""
    again = (*REMAT_RECOMPUTES[remat], *KERNEL_RECOMPUTES[kernel])
    if remat in KEEP_ATTENTION:
        again += _RESULT_IS_NOT_ENOUGH.get(kernel, ())
    return tuple(term for term in again if not (arch.parallel_block and term == "output"))


def _check(kind: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise UsageError(
            f"no {kind} {value!r}: one of {', '.join(known)}{did_you_mean(str(value), known)}"
        )
