"""The tile of the flash kernel, chosen by the cycles that the compiler schedules."""

import itertools

import pytest

from t5x_style.accounting import CHIPS
from t5x_style.accounting.attention_blocks import (
    FLASH_BLOCKS,
    KERNEL_CYCLES,
    chosen_flash_block,
    flash_block,
)


def cycles(key, length, window):
    """Of one head, block by block."""
    block, total = key[3], 0
    passes = KERNEL_CYCLES[key]
    starts = range(0, length, block)
    touched = [
        [keys < queries + block and (window is None or queries - keys - block + 1 < window)
         for keys in starts]
        for queries in starts
    ]  # fmt: skip
    width = max(map(sum, touched))
    for seen in touched:
        for multiplied, skipped, row in passes:
            total += row + sum(seen) * multiplied + (width - sum(seen)) * skipped
    return total


@pytest.mark.parametrize("window", [None, 512, 4096])
@pytest.mark.parametrize("length", [512, 1024, 2048, 8192])
def test_the_chosen_tile_takes_the_fewest_cycles(length, window):
    heads = {key[:3] for key in KERNEL_CYCLES}
    for chip, head_dim, features in heads:
        fastest = min(
            (block for block in FLASH_BLOCKS if block <= length
             and (chip, head_dim, features, block, False) in KERNEL_CYCLES),
            key=lambda block: cycles((chip, head_dim, features, block, False), length, window),
        )  # fmt: skip
        found = chosen_flash_block(
            None, length, chip=chip, head_dim=head_dim, features=features, window=window
        )
        assert found == fastest


@pytest.mark.parametrize(
    ("at_most", "length", "chip", "head_dim", "shards", "block"),
    [
        (None, 8192, "v5p", 128, 1, 1024),
        (None, 131_072, "v5p", 128, 8, 1024),
        (512, 8192, "v5p", 128, 1, 512),  # as it was set
        (None, 8192, "v5p", 96, 1, 512),  # no row
        (None, 8192, None, 128, 1, 512),
        (None, 8192, "my_team.MY_CHIP", 128, 1, 512),
        (None, 1536, "v5p", 128, 1, 512),  # 1,024 does not divide it
        (None, 8192, "v5p", 128, 8, 512),  # nor the pieces of 512 that a device attends for
        (None, 768, "v5p", 128, 1, 384),  # no block of the table does
    ],
)
def test_a_tile_divides_what_a_device_attends_for(at_most, length, chip, head_dim, shards, block):
    found = chosen_flash_block(
        at_most, length, chip=chip, head_dim=head_dim, features=head_dim, shards=shards
    )
    assert found == block
    assert length % (block * (2 * shards if shards > 1 else 1)) == 0


def test_rows_of_the_table_are_of_tiles_that_the_kernel_has():
    for (_, head_dim, features, block, _), passes in KERNEL_CYCLES.items():
        assert flash_block(8192, block) == block in FLASH_BLOCKS
        assert features - head_dim in (0, 6)
        # A block costs more than one that is skipped, a wider one less than four narrower ones.
        for multiplied, skipped, row in passes:
            assert multiplied > skipped > 0 < row
    for key in [key for key in KERNEL_CYCLES if key[3] == 1024]:
        narrow = KERNEL_CYCLES[(*key[:3], 512, key[4])]
        for (wide, *_), (small, *_) in itertools.zip_longest(KERNEL_CYCLES[key], narrow):
            assert 2 * small < wide < 4 * small


@pytest.mark.parametrize(
    ("chip", "length", "share"),
    [
        ("v6e", 2048, 0.16),
        ("v6e", 8192, 0.22),
        ("v5p", 2048, 0.40),
        ("v5p", 8192, 0.54),
        ("v5e", 2048, 0.41),
    ],
)
def test_shares_of_the_peak_by_the_schedule(chip, length, share):
    """As docs/results/scale.md prints them: of the seven products of a head of 128 that the mask
    admits. Flat estimates assume 40 % for all chips."""
    row = CHIPS[chip]
    block = chosen_flash_block(None, length, chip=chip, head_dim=128, features=128)
    seconds = cycles((chip, 128, 128, block, False), length, None) / row.clock / row.cores
    flops = 7 * 2 * 128 * length * (length + 1) / 2
    assert flops / seconds / row.peak_bf16_flops == pytest.approx(share, abs=0.005)
