"""Which blocks of queries and keys the kernels multiply, and the cycles that they take."""

from t5x_style.errors import UsageError

# The 128-wide vector lanes of a TPU: the tiles of the kernel are multiples of it.
LANES = 128
# Features that ALiBi adds to those of a query and of a key (see `kernels.flash`).
ALIBI_FEATURES = 6
# Queries and keys of a tile, at most, where nothing says better.
USUAL_BLOCK = 512
# The passes of the flash kernel, JAX's splash: forward, gradient of q, gradients of k and v.
FLASH_PASSES = ("fwd", "dq", "dkv")
FLASH_BLOCKS = (512, 1024)
# Cycles of a core that libtpu 0.0.42.1 schedules for the passes of FLASH_PASSES: of a block of
# queries and keys, of a block that the schedule skips, and besides of a row of blocks. By chip,
# head size, features, block, and whether documents share rows (segments). The mask is causal; a
# window or a soft-cap makes other schedules.
# A TPU runs a bundle of instructions a cycle, so the length of its schedule is the kernel's time as
# far as memory keeps up: a block of 512 keys and values of a head of 128 is 256 KiB in 1,800
# cycles, 220 GB/s of a v5e's 819. Blocks that need more VMEM than a chip grants without a flag are
# left out: 1,024 for heads of 192 on a v5e and a v5p.
# `tools/kernel_cycles --check` compiles them again.
_Key = tuple[str, int, int, int, bool]
PassCycles = tuple[int, int, int]
KERNEL_CYCLES: dict[_Key, tuple[PassCycles, PassCycles, PassCycles]] = {
    ("v5e", 64, 64, 512, False): ((1847, 313, 707), (2208, 292, 206), (2865, 404, 398)),
    ("v5e", 64, 64, 512, True): ((1850, 325, 707), (2214, 297, 206), (2896, 426, 398)),
    ("v5e", 64, 64, 1024, False): ((5334, 311, 1395), (6821, 292, 398), (9020, 408, 782)),
    ("v5e", 64, 64, 1024, True): ((5262, 316, 1395), (6862, 298, 398), (9045, 424, 782)),
    ("v5e", 128, 128, 512, False): ((1851, 313, 698), (2210, 295, 172), (2859, 402, 334)),
    ("v5e", 128, 128, 512, True): ((1848, 320, 698), (2205, 293, 172), (2881, 417, 334)),
    ("v5e", 128, 128, 1024, False): ((5413, 314, 1379), (6824, 296, 334), (9015, 401, 654)),
    ("v5e", 128, 128, 1024, True): ((5248, 314, 1379), (6825, 292, 334), (9042, 420, 654)),
    ("v5e", 192, 198, 512, False): ((2973, 324, 851), (3762, 305, 334), (4902, 401, 654)),
    ("v5e", 192, 198, 512, True): ((2973, 335, 851), (3754, 302, 334), (4934, 420, 654)),
    ("v5p", 64, 64, 512, False): ((2082, 438, 712), (2505, 446, 206), (3108, 533, 398)),
    ("v5p", 64, 64, 512, True): ((2201, 553, 712), (2569, 503, 206), (3192, 591, 398)),
    ("v5p", 64, 64, 1024, False): ((5715, 438, 1402), (7117, 446, 398), (9257, 530, 782)),
    ("v5p", 64, 64, 1024, True): ((5670, 558, 1402), (7213, 503, 398), (9346, 595, 782)),
    ("v5p", 128, 128, 512, False): ((2081, 438, 702), (2510, 463, 172), (3098, 525, 334)),
    ("v5p", 128, 128, 512, True): ((2203, 553, 702), (2551, 488, 172), (3183, 591, 334)),
    ("v5p", 128, 128, 1024, False): ((5713, 437, 1382), (7121, 463, 334), (9252, 522, 654)),
    ("v5p", 128, 128, 1024, True): ((5659, 558, 1382), (7174, 488, 334), (9339, 588, 654)),
    ("v5p", 192, 198, 512, False): ((3197, 447, 854), (4048, 460, 334), (5153, 534, 654)),
    ("v5p", 192, 198, 512, True): ((3343, 572, 854), (4107, 515, 334), (5230, 597, 654)),
    ("v6e", 64, 64, 512, False): ((1494, 372, 358), (1530, 342, 109), (2077, 522, 205)),
    ("v6e", 64, 64, 512, True): ((1555, 407, 358), (1638, 373, 109), (2208, 572, 205)),
    ("v6e", 64, 64, 1024, False): ((3829, 375, 710), (4119, 342, 205), (5341, 518, 397)),
    ("v6e", 64, 64, 1024, True): ((4191, 407, 710), (4701, 371, 205), (5687, 567, 397)),
    ("v6e", 128, 128, 512, False): ((1499, 375, 348), (1527, 336, 93), (2072, 522, 173)),
    ("v6e", 128, 128, 512, True): ((1556, 407, 348), (1645, 375, 93), (2189, 562, 173)),
    ("v6e", 128, 128, 1024, False): ((3866, 373, 704), (4127, 339, 173), (5360, 521, 333)),
    ("v6e", 128, 128, 1024, True): ((4161, 409, 704), (4686, 379, 173), (5645, 561, 333)),
    ("v6e", 192, 198, 512, False): ((1533, 378, 428), (1559, 347, 174), (2103, 528, 335)),
    ("v6e", 192, 198, 512, True): ((1589, 416, 428), (1671, 392, 174), (2223, 566, 335)),
    ("v6e", 192, 198, 1024, False): ((4075, 378, 834), (4275, 352, 334), (5398, 528, 671)),
    ("v6e", 192, 198, 1024, True): ((4396, 416, 834), (4977, 393, 334), (5705, 564, 671)),
}


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


def chosen_flash_block(
    at_most: int | None,
    length: int,
    *,
    chip: str | None,
    head_dim: int,
    features: int,
    window: int | None = None,
    shards: int = 1,
) -> int:
    """Queries and keys of a tile: by `flash_block`, or the size that takes the fewest cycles.

    Larger tiles take fewer cycles for a pair of a query and a key, and multiply more pairs that the
    mask hides.

    Args:
      at_most: as `Topology.attention_block`; None: the tile in KERNEL_CYCLES with the fewest cycles
        for the three passes of a head. Where it has none of this chip and head, 512 at most.
      features: of a query and of a key, H or more.
      window: as `Architecture.window`.

    Raises:
      UsageError: see `flash_block`.
    """
    usual = flash_block(length, USUAL_BLOCK if at_most is None else at_most, shards)
    if at_most is not None:
        return usual

    def cycles_of_head(block: int) -> float:
        rows = length / block
        touched = rows * touched_keys_per_query(length, window, block) / block
        steps = rows * grid_width(length, window, block)
        passes = KERNEL_CYCLES[chip or "", head_dim, features, block, False]
        return sum(cycles_of_pass(cycles, touched, steps, rows) for cycles in passes)

    read = [
        block
        for block in FLASH_BLOCKS
        if (chip, head_dim, features, block, False) in KERNEL_CYCLES
        and flash_block(length, block, shards) == block
    ]
    return min(read, key=cycles_of_head, default=usual)


def cycles_of_pass(cycles: PassCycles, touched: float, steps: float, rows: float) -> float:
    """Cycles of one pass of the flash kernel.

    Args:
      cycles: of KERNEL_CYCLES.
      touched: blocks of queries and keys that are multiplied. steps: those of the kernel's grid.
      rows: rows of blocks, for which it adds up and writes one result.
    """
    block, skipped, row = cycles
    return touched * block + (steps - touched) * skipped + rows * row


def even_block(length: int, at_most: int) -> int:
    """Tokens of a block of the blockwise kernel: S in as few blocks as possible, all of one size.

    The last one is padded by less than a block.
    """
    return -(-length // -(-length // at_most))


def blocks_before(window: int, block: int) -> int:
    """Blocks before its own that the first query of a block sees: they hold `window - 1` keys."""
    return -(-(window - 1) // block)


def grid_width(length: int, window: int | None, block: int) -> int:
    """Blocks of keys that the flash kernel's grid steps through for a block of queries.

    The grid is as wide as its widest row: a causal mask skips almost half of its steps.
    """
    blocks = -(-length // block)
    return blocks if window is None else min(blocks, blocks_before(window, block) + 1)


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
