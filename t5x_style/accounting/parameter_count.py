"""How many parameters a decoder has, term by term, from its shape alone."""

from t5x_style.accounting.architecture import Architecture


def attention_widths(arch: Architecture) -> tuple[int, int]:
    """(N H, K H): columns of the query matrix, and of the key and of the value matrix."""
    return arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim


def parameters(arch: Architecture) -> dict[str, int]:
    """Parameters per term; the terms add up to the model's count exactly.

    Letters as in Architecture: V, L, D, F, N, K, H. The layout is that of BloombergGPT (Wu et al.
    2023, appendix A.5), with the options of the later families.

    Returns:
      embedding: V D.
      positions: max_length D with learned positions, else 0.
      attention: L times the query, key, value and output matrices with their biases.
      feed_forward: L times its two matrices (three with a gate) with their biases.
      norms: every norm's gain (and bias, for a layer norm in a model with biases), and the query
        and key gains [H] of qk_norm.
      head: D V if untied, else 0. The head has no bias.
    """
    queries, keys = attention_widths(arch)
    attention = arch.d_model * (queries + 2 * keys) + queries * arch.d_model
    kind = arch.feed_forward_kind
    feed_forward = kind.matrices * arch.d_model * arch.d_ff
    if arch.biases:
        attention += queries + 2 * keys + arch.d_model
        feed_forward += kind.input_matrices * arch.d_ff + arch.d_model
    norm = arch.d_model * (2 if arch.norm == "layer" and arch.biases else 1)
    norms = arch.layers * (1 if arch.parallel_block else 2) + 1 + int(arch.embedding_norm)
    head_dim = queries // arch.heads
    return {
        "embedding": arch.vocab_size * arch.d_model,
        "positions": arch.position_rows * arch.d_model,
        "attention": arch.layers * attention,
        "feed_forward": arch.layers * feed_forward,
        "norms": norms * norm + (2 * arch.layers * head_dim if arch.qk_norm else 0),
        "head": 0 if arch.tied_head else arch.d_model * arch.vocab_size,
    }


def total_parameters(arch: Architecture) -> int:
    """Every parameter, embedding included: the N of Chinchilla's laws and of C = 6 N D."""
    return sum(parameters(arch).values())


def non_embedding_parameters(arch: Architecture) -> int:
    """Without the embedding and the learned positions: the N of Kaplan et al. (2020).

    An untied head stays in (it is a matrix that every token multiplies).
    """
    terms = parameters(arch)
    return sum(terms.values()) - terms["embedding"] - terms["positions"]
