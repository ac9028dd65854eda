"""The best size of a vocabulary: Tao et al. 2024 (arXiv 2407.13623).

A larger vocabulary writes the same text in fewer tokens and costs more parameters. The best one
grows with the model, more slowly than the rest of it. Vocabulary parameters are N_v = V d for a
width d, the embedding counted once. The coefficients are those of the authors' code
(github.com/sail-sg/scaling-with-vocab).
"""

import math


def training_optimal_flops(non_vocab_params: float) -> float:
    """The budget that N_nv serves best: their IsoFLOP fit of N_nv ~ C^0.5, solved for C."""
    return (non_vocab_params / math.exp(-2.4846510161625193)) ** 2


def isoflops_vocabulary(non_vocab_params: float, width: int) -> int:
    """V by approach 1, along the lower envelope of the loss over FLOPs."""
    flops = training_optimal_flops(non_vocab_params)
    return int(math.exp(-1.589031299255507) * flops**0.4163622634135234 / width)


def derivative_vocabulary(non_vocab_params: float, width: int) -> int:
    """V by approach 2, from a derivative.

    The V of least FLOPs for a given text fixes how N_v grows with N_nv. The best vocabulary of a
    model of 33 million parameters fixes the starting point.
    """
    return int(3_145_728 * (non_vocab_params / 33e6) ** 0.8353974035228025 / width)


def parametric_vocabulary(non_vocab_params: float, width: int, flops: float) -> int:
    """V by approach 3: least loss for N_nv and a budget C = 6 (N_nv + N_v) D.

    The loss is -E + A1 / N_nv^a1 + A2 / N_v^a2 + B / D^b, normalised by that of a unigram model so
    that vocabularies can be compared. Unlike the other two, this approach holds for runs that are
    longer or shorter than optimal, too.
    """
    params_scale, data_scale = 0.19584238398665638, 2.1241123120064955  # A2, B
    params_exponent, data_exponent = 0.6707374679896795, 0.44660634152009615  # a2, b
    # Units of the fit: 1e6 parameters, 1e9 tokens.
    others, budget = non_vocab_params / 1e6, flops / 1e15

    def too_small(log_params: float) -> bool:
        params = math.exp(log_params)
        tokens = budget / (6 * (others + params))
        gain = params_exponent * params_scale * params ** -(params_exponent + 1)
        return gain > data_exponent * data_scale * tokens**-data_exponent / (others + params)

    # The gain falls with N_v faster than the price, so they meet once, at 1 to 1e15 parameters.
    low, high = math.log(1e-6), math.log(1e9)
    while (middle := (low + high) / 2) not in (low, high):
        if too_small(middle):
            low = middle
        else:
            high = middle
    return int(math.exp(low) * 1e6 / width)


def optimal_vocabulary(non_vocab_params: float, width: int) -> dict[str, int]:
    """The best vocabulary size by the three approaches, for a run of optimal length.

    Args:
      non_vocab_params: N_nv, parameters without embedding and output matrix.
      width: d of the model.

    Returns:
      approach -> V: isoflops, derivative, parametric.
    """
    flops = training_optimal_flops(non_vocab_params)
    return {
        "isoflops": isoflops_vocabulary(non_vocab_params, width),
        "derivative": derivative_vocabulary(non_vocab_params, width),
        "parametric": parametric_vocabulary(non_vocab_params, width, flops),
    }
