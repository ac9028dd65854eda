"""The seconds of a step, against arithmetics on paper."""

import dataclasses
import itertools

import pytest

from t5x_style.accounting import CHIPS
from t5x_style.compiling.estimates import estimate
from t5x_style.compiling.estimates.assumptions import KERNEL_CYCLES, cores_of_pass
from t5x_style.compiling.estimates.torus import closed_axes, links_of_group, torus_shape
from t5x_style.compiling.hlo import (
    AttentionWork,
    Collective,
    KernelCall,
    KernelGrid,
    Operation,
    Program,
    kernel_flops,
)
from t5x_style.errors import Fault, UsageError

# 5 sequences of 200 heads, 50 of them of keys; 4 blocks of 64 queries, 4 of keys.
GRID = KernelGrid(mapped=5, heads=1000, kv_heads=250, rows=4, columns=4)
SPLASH = [
    KernelCall("splash_mha_fwd_segmented_residuals", 2, GRID),
    KernelCall("splash_mha_dq_segmented_no_residuals", 1, GRID),
    KernelCall("splash_mha_dkv_segmented_no_residuals", 1, GRID),
]
# 1,000 rows of queries of 4 blocks of 64; a quarter more keys than the mask admits.
WORK = AttentionWork(
    rows=1000 * 256, keys_touched=160, keys_seen=128, head_dim=128, features=134, block=64
)
PROGRAM = Program(
    matmul_flops=10**12,
    kernels=[],
    library_calls={},
    collectives=[],
    operations=[Operation("fusion.1", "matmul", 15 * 10**8, 3, "decoder.py:1")],
    largest_buffers=[],
    unknown_loops=(),
)


def torus(*lengths: int) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, lengths)))


def collective(kind: str, axis: str, group: range, wire_bytes: int, count: int) -> Collective:
    return Collective(kind, axis, 0, wire_bytes, tuple(group), count, False, 0, "decoder.py:2")


def test_seconds_add_up_by_what_takes_them():
    gathered = collective("all-gather", "fsdp", range(16), 9 * 10**8, 10)
    summed = collective("all-reduce", "data+fsdp", range(256), 9 * 10**8, 2)
    network = collective("all-reduce", "dcn", range(2), 3_125_000_000, 1)
    program = dataclasses.replace(PROGRAM, collectives=[gathered, summed, network])
    step = estimate(program, CHIPS["v5e"], torus(16, 16), tokens=10**6, model_flops=2e16, slices=2)
    assert step.compute_seconds == pytest.approx(1.0)
    # A whole row of the torus has both links of its ring, the whole of it all four.
    seconds = {"fsdp": 9e9 / 90e9, "data+fsdp": 1.8e9 / 180e9, "dcn": 1.0}
    assert step.wire_seconds == pytest.approx(seconds)
    assert step.hidden_seconds == pytest.approx(1.0)
    assert step.exposed_seconds == pytest.approx(1.0 + 0.1 + 0.01 + 1.0)
    assert step.chips == 512
    assert step.mfu(2.0) == pytest.approx(2e16 / (2.0 * 512 * 197e12))
    assert step.hfu(2.0) == pytest.approx(512 * 1e12 / (2.0 * 512 * 197e12))
    assert step.days(86400 * 10**6, 2.0) == pytest.approx(2.0)
    assert step.cost(86400 * 10**6, 2.0, 1.5) == pytest.approx(2 * 24 * 512 * 1.5)


@pytest.mark.parametrize(
    ("gathers", "sums", "seconds"), [(10, 1, 1.0), (200, 1, 2.0), (10, 3, 3.0)]
)
def test_links_and_network_work_at_the_same_time_as_the_cores(gathers, sums, seconds):
    gathered = collective("all-gather", "fsdp", range(16), 9 * 10**8, gathers)
    network = collective("all-reduce", "dcn", range(2), 3_125_000_000, sums)
    program = dataclasses.replace(PROGRAM, collectives=[gathered, network])
    step = estimate(program, CHIPS["v5e"], torus(16, 16), tokens=1, model_flops=1.0, slices=2)
    assert step.hidden_seconds == pytest.approx(seconds)
    assert step.exposed_seconds == pytest.approx(1.0 + gathers / 100 + sums)


def test_flat_rates_count_axes_by_the_size_of_a_group():
    places = torus(8, 8, 8)
    groups = [range(16), range(17), range(256), range(257), range(512)]
    for group, axes in zip(groups, (1, 2, 2, 3, 3), strict=True):
        program = dataclasses.replace(
            PROGRAM, collectives=[collective("all-gather", "fsdp", group, 18 * 10**9, 1)]
        )
        step = estimate(
            program, CHIPS["v5p"], places, tokens=1, model_flops=1.0, assumptions="flat"
        )
        assert step.wire_seconds["fsdp"] == pytest.approx(0.1 / axes)


@pytest.mark.parametrize(
    ("chip", "lengths", "group", "links"),
    [
        ("v5p", (8, 8, 8), [(0, 0, z) for z in range(8)], 2),
        ("v5p", (8, 8, 8), [(0, y, z) for y in range(8) for z in range(8)], 4),
        ("v5p", (8, 8, 8), torus(8, 8, 8), 6),
        ("v5p", (8, 8, 8), [(0, y, z) for y in range(2) for z in range(8)], 3),  # a ring, a line
        ("v5p", (8, 8, 8), [(0, 0, z) for z in range(4)], 1),  # half of a ring is a line
        ("v5p", (8, 8, 8), [(0, 0, 0), (0, 0, 4)], 0.5),  # four steps either way, four pairs
        ("v5p", (2, 2, 1), torus(2, 2, 1), 2),
        ("v5e", (16, 16), [(0, y) for y in range(16)], 2),
        ("v5e", (4, 4), [(0, y) for y in range(4)], 1),  # too small to come round
        ("v5e", (16, 16), [(x, y) for x in range(8) for y in range(16)], 3),
        ("v5e", (16, 16), [(0, 0), (1, 1)], 1),  # no box
    ],
)
def test_links_of_a_group(chip, lengths, group, links):
    shape = torus_shape(torus(*lengths))
    assert shape == lengths
    closed = closed_axes(shape, CHIPS[chip].interconnect)
    assert links_of_group(group, shape, closed) == links


def test_kernels_execute_whole_blocks():
    # Forwards q k over 134 features and p v over 128, twice; back: q k, do v, gradient of q; then
    # q k, do v, gradient of v, gradient of k.
    widths = 2 * (134 + 128) + (134 + 128 + 134) + (134 + 128 + 128 + 134)
    assert kernel_flops(SPLASH, WORK) == 2 * 256_000 * 160 * widths


def test_kernels_by_a_flat_share_and_by_the_compilers_schedule(monkeypatch):
    program = dataclasses.replace(PROGRAM, kernels=SPLASH)
    arguments = (program, CHIPS["v5p"], torus(4, 4, 4))
    others = {"tokens": 1, "model_flops": 1.0, "attention": WORK}
    flat = estimate(*arguments, **others, assumptions="flat")
    products = 2 * 2 + 5
    assert flat.kernel_seconds == pytest.approx(products * 2 * 256_000 * 128 * 128 / (0.4 * 459e12))
    # So many of each, too.
    counts = [
        dataclasses.replace(call, count=count)
        for call, count in zip(SPLASH, (2, 3, 5), strict=True)
    ]
    several = dataclasses.replace(PROGRAM, kernels=counts)
    found = estimate(several, *arguments[1:], **others, assumptions="flat").kernel_seconds
    assert found / flat.kernel_seconds == pytest.approx((2 * 2 + 2 * 3 + 3 * 5) / products)
    unread = estimate(*arguments, **others)
    assert unread.kernel_seconds == pytest.approx(kernel_flops(SPLASH, WORK) / (0.4 * 459e12))
    cycles = ((100, 7, 10), (200, 8, 20), (300, 9, 30))
    monkeypatch.setitem(KERNEL_CYCLES, ("v5p", 128, 134, 64, True), cycles)
    # Of 16,000 blocks, 10,000 are touched. Results are 4,000 rows of queries, 1,000 of keys. Two
    # cores share 1,000 heads evenly, but of 5 sequences one has 3.
    forward = 10_000 * 100 + 6000 * 7 + 4000 * 10
    back = 10_000 * (200 + 300) + 6000 * (8 + 9) + 4000 * 20 + 1000 * 30
    own = estimate(*arguments, **others)
    assert own.kernel_seconds == pytest.approx((2 * forward / 2 + back * 3 / 5) / 1.75e9)
    assert own.hardware_flops == 64 * (10**12 + kernel_flops(SPLASH, WORK))
    # The table's schedules are those of a causal mask; others have no row.
    others["attention"] = dataclasses.replace(WORK, causal=False)
    assert estimate(*arguments, **others).kernel_seconds == unread.kernel_seconds
    others["attention"] = WORK
    unsegmented = [KernelCall(call.name.replace("_segmented", ""), 1, GRID) for call in SPLASH]
    other = dataclasses.replace(PROGRAM, kernels=unsegmented)
    found = estimate(other, *arguments[1:], **others).kernel_seconds
    assert found == pytest.approx(kernel_flops(unsegmented, WORK) / (0.4 * 459e12))


@pytest.mark.parametrize(
    ("chip", "mapped", "cores"), [("v5e", 3, 1), ("v5p", 1, 1), ("v5p", 2, 2), ("v4", 3, 1.5)]
)
def test_cores_share_the_axes_over_which_a_kernel_is_mapped(chip, mapped, cores):
    grid = KernelGrid(mapped=mapped, heads=4 * mapped, kv_heads=mapped, rows=4, columns=4)
    for name in ("dq", "dkv"):
        assert cores_of_pass(CHIPS[chip], name, grid) == cores
    assert cores_of_pass(CHIPS[chip], "fwd", grid) == CHIPS[chip].cores


def test_the_clocks_make_the_published_peaks():
    arrays = {"v4": 8 * 128**2, "v5e": 4 * 128**2, "v5p": 8 * 128**2, "v6e": 4 * 256**2}
    for name, multipliers in arrays.items():
        assert 2 * multipliers * CHIPS[name].clock == pytest.approx(
            CHIPS[name].peak_bf16_flops, rel=2e-3
        )


def test_what_is_not_known_is_refused():
    arguments = {"tokens": 1, "model_flops": 1.0}
    places = torus(4, 4, 4)
    with pytest.raises(
        UsageError, match=r"assumptions = 'falt' is not one of .*did you mean 'flat'"
    ):
        estimate(PROGRAM, CHIPS["v5p"], places, **arguments, assumptions="falt")
    with pytest.raises(UsageError, match="no estimate for a tpu7x"):
        estimate(PROGRAM, CHIPS["tpu7x"], places, **arguments)
    kernels = dataclasses.replace(PROGRAM, kernels=SPLASH)
    with pytest.raises(Fault, match="was not given"):
        estimate(kernels, CHIPS["v5p"], places, **arguments)
    unheard = dataclasses.replace(PROGRAM, kernels=[KernelCall("paged_attention", 3)])
    with pytest.raises(Fault, match="'paged_attention' runs 3 times a step"):
        estimate(unheard, CHIPS["v5p"], places, **arguments, attention=WORK)
