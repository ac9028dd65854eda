"""Which blocks of queries and keys the kernels multiply: their schedule, as plain numbers."""

from t5x_style.errors import UsageError

# The 128-wide vector lanes of a TPU: the tiles of the kernel are multiples of it.
LANES = 128
# Features that ALiBi adds to those of a query and of a key (see `kernels.flash`).
ALIBI_FEATURES = 6


def piece_owner(piece: int, shards: int) -> int:
    """The device of the sequence axis that attends for a piece of 2 x shards pieces."""
    return piece if piece < shards else 2 * shards - 1 - piece


def device_pieces(shard: int, shards: int) -> tuple[int, int]:
    """The two pieces that a device attends for, the even one first."""
    even, odd = sorted((shard, 2 * shards - 1 - shard), key=lambda piece: piece % 2)
    return even, odd


def flash_block(length: int, at_most: int, shards: int = 1) -> int:
    """Queries and keys of a tile: the greatest multiple of 128, up to `at_most`, that divides S.

    With a sequence axis of `shards` it divides the pieces that a device attends for.

    Raises:
      UsageError: there is none.
    """
    pieces = 2 * shards if shards > 1 else 1
    if length % (pieces * LANES):
        unit = pieces * LANES
        raise UsageError(
            f"Topology.kernel = 'flash' needs a sequence length that is a multiple of {unit:,} "
            f"(pieces: {pieces}, tokens of a tile: {LANES}), not {length:,}: the next multiple is "
            f"{-(-length // unit) * unit:,}"
        )
    tiles = length // pieces // LANES
    widest = max(1, at_most // LANES)
    return LANES * max(size for size in range(1, min(tiles, widest) + 1) if tiles % size == 0)


def even_block(length: int, at_most: int) -> int:
    """Tokens of a block of the blockwise kernel: S in as few blocks as possible, all of one size.

    The last one is padded by less than a block.
    """
    return -(-length // -(-length // at_most))


def blocks_before(window: int, block: int) -> int:
    """Blocks before its own that the first query of a block sees: they hold `window - 1` keys."""
    return -(-(window - 1) // block)


def touched_keys_per_query(length: int, window: int | None, block: int) -> float:
    """Mean number of keys that a query is multiplied with.

    They are all keys of the blocks in which any query of its block sees any key. Without a window
    that is (S + block) / 2: the blocks on the diagonal are multiplied whole.

    Args:
      length: S. window: as `Architecture.window`. block: of `flash_block` or `even_block`.
    """
    blocks = -(-length // block)
    before = blocks if window is None else blocks_before(window, block)
    return block**2 * sum(min(i, before) + 1 for i in range(blocks)) / length
