"""Which blocks of queries and keys the kernels multiply: their schedule, as plain numbers."""

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


def even_block(length: int, at_most: int) -> int:
    """Tokens of a block of the blockwise kernel: S in as few blocks as there must be, all of one
    size. Less than a block's tokens are then missing in the last one, and are filled up."""
    return -(-length // -(-length // at_most))


def blocks_behind(window: int, block: int) -> int:
    """Blocks before its own that the first query of a block sees: `window - 1` keys lie in them."""
    return -(-(window - 1) // block)


def touched_keys_per_query(length: int, window: int | None, block: int) -> float:
    """Mean number of keys that a query is multiplied with: all those of each block in which any
    query of its block sees any key.

    (S + block) / 2 without a window: the diagonal's blocks are whole.

    Args:
      length: S. window: as `Architecture.window`. block: as `flash_block` or `even_block` gives it.
    """
    blocks = -(-length // block)
    behind = blocks if window is None else blocks_behind(window, block)
    return block**2 * sum(min(i, behind) + 1 for i in range(blocks)) / length
