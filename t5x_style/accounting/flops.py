"""FLOPs per token: one table of forward terms, and conventions that select from it.

A multiply-add counts as two FLOPs, and the backward pass of a product is two products of its size.
Norms, biases, positions and the optimizer multiply nothing that a paper counts; where a convention
counts every parameter, they are in the table with two FLOPs each. Every figure names its
convention, because the conventions in use differ by up to 38 % for one and the same run
(BloombergGPT: 1.73e23 by 6ND, 2.39e23 by Megatron's formula with recomputation, 2.36e23 in its
paper).
"""

from typing import NamedTuple

from t5x_style.accounting.architecture import Architecture
from t5x_style.accounting.attention_blocks import (
    ALIBI_FEATURES,
    USUAL_BLOCK,
    chosen_flash_block,
    even_block,
    touched_keys_per_query,
)
from t5x_style.accounting.parameter_count import (
    attention_widths,
    non_embedding_parameters,
    parameters,
)
from t5x_style.accounting.recompute import (
    ATTENTION_TERMS,
    KEEP_ATTENTION,
    KERNEL_RECOMPUTES,
    REMAT_RECOMPUTES,
    RESULT_IS_NOT_ENOUGH,
)
from t5x_style.accounting.topology import ONE_DEVICE, Topology
from t5x_style.errors import one_of

MATRICES = ("qkv", "output", "feed_forward_in", "feed_forward_out")
LAYERS = ("qkv", *ATTENTION_TERMS, "output", "feed_forward_in", "feed_forward_out")
PRODUCTS = (*LAYERS, "head")
# Twice the parameters: the 2 N of the conventions.
NON_EMBEDDING = (*MATRICES, "vectors", "untied_head")
PARAMETERS = ("embedding", "positions", *NON_EMBEDDING)


class Convention(NamedTuple):
    """The terms of `forward_terms` that a convention counts, and how many times.

    Three passes are a forward and a backward pass; a fourth recomputes the forward pass.
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


def forward_terms(arch: Architecture, sequence_length: int) -> dict[str, float]:
    """The table: forward FLOPs per token of every term that any convention counts, over L layers.

    After Chinchilla's appendix F (Hoffmann et al. 2022). Letters as in Architecture; with K < N
    heads the keys and values have K H columns. No convention counts all of the terms: attention is
    in the table twice (all keys, and those that the mask admits), and so is an untied head (as a
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
    """Forward FLOPs per token of every matrix product, attention full S x S, as in `full`.

    Returns:
      The terms PRODUCTS of `forward_terms`, in the order in which a token meets them.
    """
    terms = forward_terms(arch, sequence_length)
    return {term: terms[term] for term in PRODUCTS}


def training_flops_per_token(
    arch: Architecture,
    sequence_length: int,
    convention: str,
    topology: Topology = ONE_DEVICE,
) -> float:
    """FLOPs of one token's forward and backward pass, by a named convention.

    Args:
      sequence_length: S, tokens.
      convention: one of CONVENTIONS.
      topology: changes 'hardware' alone, the FLOPs that the compiled step executes.

    Raises:
      UsageError: no such convention.
    """
    one_of("FLOP convention", convention, CONVENTIONS)
    terms = forward_terms(arch, sequence_length)
    if convention == "hardware":
        terms |= executed_attention(arch, sequence_length, topology)
    flops = sum(passes * terms[term] for term, passes in CONVENTIONS[convention].passes.items())
    if convention == "hardware":
        flops += sum(terms[term] for term in recomputed(arch, topology))
        if topology.loss_vocab_chunks > 1:
            flops += terms["head"]
    return flops


def executed_attention(
    arch: Architecture, sequence_length: int, topology: Topology
) -> dict[str, float]:
    """Forward FLOPs per token of attention's two products as the kernel multiplies them.

    'plain' multiplies all S keys per query. The others multiply whole blocks, those that the mask
    touches: half of them and the diagonal. ('blockwise' takes all of them where devices share a
    sequence.) The tiles of 'cudnn' are not known: the keys that the mask admits are a lower bound.
    The six features for ALiBi of 'flash' are not counted (6 of 198 in the logits of a head of 192).
    """
    kernel, window = topology.kernel, arch.window
    if kernel == "plain":
        keys: float = sequence_length
    elif kernel == "cudnn":
        keys = keys_per_query(sequence_length, window)
    else:
        block = attention_tile(arch, sequence_length, topology)
        keys = touched_keys_per_query(sequence_length, window, block)
    queries, _ = attention_widths(arch)
    return dict.fromkeys(ATTENTION_TERMS, 2.0 * arch.layers * queries * keys)


def attention_tile(arch: Architecture, sequence_length: int, topology: Topology) -> int:
    """Queries and keys of a tile of 'flash' or 'blockwise'.

    Raises:
      UsageError: see `attention_blocks.flash_block`.
    """
    if topology.kernel == "blockwise":
        return even_block(sequence_length, topology.attention_block or USUAL_BLOCK)
    return chosen_flash_block(
        topology.attention_block,
        sequence_length,
        chip=topology.chip,
        head_dim=arch.head_dim,
        features=flash_features(arch),
        window=arch.window,
        shards=topology.sequence,
    )


def flash_features(arch: Architecture) -> int:
    """Features of a query and of a key in the flash kernel, where ALiBi has some of its own."""
    return arch.head_dim + (ALIBI_FEATURES if arch.positions == "alibi" else 0)


def recomputed(arch: Architecture, topology: Topology) -> tuple[str, ...]:
    """The forward terms that a step computes again, each as often as it does."""
    again = (*REMAT_RECOMPUTES[topology.remat], *KERNEL_RECOMPUTES[topology.kernel])
    if topology.remat in KEEP_ATTENTION:
        again += RESULT_IS_NOT_ENOUGH.get(topology.kernel, ())
    return tuple(term for term in again if not (arch.parallel_block and term == "output"))
