"""Which blocks of queries and keys the flash kernel multiplies: its schedule, as plain numbers."""

from t5x_style.errors import UsageError

# Lanes of a TPU's vector registers: the tiles of the kernel are multiples of it.
LANES = 128
# What ALiBi adds to the features of a query and a key (see `kernels.flash`).
ALIBI_FEATURES = 6


def flash_block(length: int, at_most: int) -> int:
    """Queries and keys of a tile: the greatest multiple of 128 that divides S, up to `at_most`.

    Raises:
      UsageError: S is not a multiple of 128.
    """
    if length % LANES:
        raise UsageError(
            f"Topology.kernel = 'flash' works on tiles of {LANES} tokens, and {length:,} is not a "
            f"multiple: the next sequence length that is: {-(-length // LANES) * LANES:,}"
        )
    tiles = length // LANES
    widest = max(1, at_most // LANES)
    return LANES * max(size for size in range(1, min(tiles, widest) + 1) if tiles % size == 0)


def touched_keys_per_query(length: int, window: int | None, block: int) -> float:
    """Mean number of keys that a query is multiplied with: all those of each block in which any
    query of its block sees any key.

    (S + block) / 2 without a window: the diagonal's blocks are whole.

    Args:
      length: S. window: as `Architecture.window`. block: as `flash_block` gives it.
    """
    blocks = length // block
    # Block i begins at token i * block, and its first query sees `window - 1` keys before that.
    behind = blocks if window is None else -(-(window - 1) // block)
    return block * sum(min(i, behind) + 1 for i in range(blocks)) / blocks
