"""The vocabulary of a model whose shape is not yet chosen."""

from t5x_style.accounting.attention_blocks import LANES
from t5x_style.accounting.laws.vocabulary import optimal_vocabulary
from t5x_style.accounting.planner.shape import levine_width

# The approach that the plan follows: it is fitted to runs alone, without a derived starting point.
FOLLOWED = "isoflops"
# Bytes and a few hundred pieces: the smallest useful vocabulary.
LEAST_VOCABULARY = 512


def chosen_vocabulary(params: float) -> tuple[int, dict[str, int]]:
    """(V, approach -> V) by Tao's law for N parameters in all; V is rounded to 128 (see LANES).

    The law needs the parameters outside the vocabulary and the width, and both depend on V. So the
    fixed point is iterated, with the width that Levine's rule gives 12 L D^2 parameters.
    """
    vocab_size, seen = LEAST_VOCABULARY, set()
    while vocab_size not in seen:
        seen.add(vocab_size)
        others = params
        for _ in range(20):
            width = _width(others)
            # The vocabulary takes 70 % of the model at most, so that layers remain.
            others = max(params - vocab_size * width, 0.3 * params)
        found = optimal_vocabulary(others, round(width))
        vocab_size = max(LEAST_VOCABULARY, LANES * round(found[FOLLOWED] / LANES))
    return vocab_size, found


def _width(non_vocab_params: float) -> float:
    """D with 12 L D^2 parameters, at the depth L that Levine et al. 2020 give this width."""
    low, high = 0.01, 500.0
    while high / low > 1 + 1e-9:
        middle = (low * high) ** 0.5
        if 12 * middle * levine_width(middle) ** 2 < non_vocab_params:
            low = middle
        else:
            high = middle
    return levine_width(low)
