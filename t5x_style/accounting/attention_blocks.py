"""Which blocks of queries and keys the flash kernel multiplies: its schedule, as plain numbers."""

from t5x_style.errors import UsageError

# Lanes of a TPU's vector registers: the tiles of the kernel are multiples of it.
LANES = 128
# What ALiBi adds to the features of a query and a key (see `kernels.flash`).
ALIBI_FEATURES = 6


def piece_owner(piece: int, shards: int) -> int:
    """The device of the sequence axis that attends for a piece of 2 x shards pieces."""
    return piece if piece < shards else 2 * shards - 1 - piece


def pieces_of(shard: int, shards: int) -> tuple[int, int]:
    """The pieces that a device attends for, that of even number first."""
    even, odd = sorted((shard, 2 * shards - 1 - shard), key=lambda piece: piece % 2)
    return even, odd


def flash_block(length: int, at_most: int, shards: int = 1) -> int:
    """Queries and keys of a tile: the greatest multiple of 128 up to `at_most` that divides S, and
    the pieces of S that a device of a sequence axis of `shards` attends for.

    Raises:
      UsageError: there is none.
    """
    pieces = 2 * shards if shards > 1 else 1
    if length % (pieces * LANES):
        unit = pieces * LANES
        raise UsageError(
            f"Topology.kernel = 'flash' works on tiles of {LANES} tokens, and {length:,} tokens in "
            f"{pieces} pieces are no multiple: the next sequence length that is: "
            f"{-(-length // unit) * unit:,}"
        )
    tiles = length // pieces // LANES
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
