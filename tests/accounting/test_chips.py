import pytest

from t5x_style.accounting import CHIPS, chip, chip_of_device_kind
from t5x_style.errors import UsageError


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v3", "v3"),
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA A100-SXM4-40GB", "a100_40gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
    ],
)
def test_device_kinds_as_jax_spells_them(kind, name):
    assert chip_of_device_kind(kind) is CHIPS[name]


@pytest.mark.parametrize("kind", ["cpu", "TPU v9", "NVIDIA GeForce RTX 4090", "TPU v5 lit", ""])
def test_an_unknown_device_has_no_chip(kind):
    assert chip_of_device_kind(kind) is None


def test_no_device_kind_names_two_chips():
    kinds = [kind for one in CHIPS.values() for kind in one.device_kinds]
    assert len(kinds) == len(set(kinds))


def test_peaks_are_dense():
    """NVIDIA's sparse headlines are 624, 1979 and 4500 TFLOP/s; TPU v5e's 393 is int8."""
    assert chip("a100_80gb").peak_bf16_flops == 312e12
    assert chip("h100").peak_bf16_flops == 989.4e12
    assert chip("b200").peak_bf16_flops == 2250e12
    assert chip("v5e").peak_bf16_flops == 197e12
    assert chip("v5p").peak_bf16_flops == 459e12
    assert chip("v6e").peak_bf16_flops == 918e12


def test_two_devices_share_a_chip_only_where_they_do():
    assert {name for name, one in CHIPS.items() if one.devices_per_chip == 2} == {
        "v2",
        "v3",
        "tpu7x",
    }


def test_a_misspelt_chip_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'a100_80gb'"):
        chip("a100_80")


@pytest.mark.parametrize(
    ("name", "gigabytes_per_second"),
    [
        ("v5e", 400),
        ("v5p", 1200),
        ("v6e", 800),
        ("tpu7x", 1200),
        ("a100_40gb", 600),
        ("a100_80gb", 600),
        ("h100", 900),
        ("h100_pcie", 600),
        ("h200", 900),
        ("b200", 1800),
    ],
)
def test_links_add_up_to_what_vendors_print_for_a_chip_in_both_directions(
    name, gigabytes_per_second
):
    one = chip(name)
    assert 2 * one.links * one.link_bandwidth == gigabytes_per_second * 1e9


def test_a_torus_has_two_links_an_axis():
    axes = {"torus_2d": 2, "torus_3d": 3}
    for one in CHIPS.values():
        if one.interconnect in axes:
            assert one.links == 2 * axes[one.interconnect], one.name
        else:
            assert one.interconnect == "nvlink", one.name


def test_links_join_a_pod_or_a_node():
    """The pods of Cloud TPU (16 x 16; 16 x 16 x 16; 16 x 20 x 28) and NVIDIA's nodes of eight."""
    assert chip("v5e").link_domain == chip("v6e").link_domain == 16 * 16
    assert chip("v4").link_domain == 16**3
    assert chip("v5p").link_domain == 16 * 20 * 28
    others = {"v2": 256, "v3": 1024, "tpu7x": 9216, "h100_pcie": 2}
    others |= dict.fromkeys(("a100_40gb", "a100_80gb", "h100", "h200", "b200"), 8)
    assert {name: CHIPS[name].link_domain for name in others} == others


def test_bandwidths_fall_with_distance_and_every_figure_has_a_source():
    for one in CHIPS.values():
        assert one.hbm_bandwidth > one.links * one.link_bandwidth > one.network_bandwidth, one.name
        assert "link" in one.source.lower(), one.name
        assert "network" in one.source, one.name


# As vendors print them: TFLOP/s dense bfloat16, memory, GB/s of memory, and Gbit/s of network to a
# host of four chips (eight of v5e and v6e) or to a GPU.
GB, GIB = 10**9, 2**30


@pytest.mark.parametrize(
    ("name", "tflops", "memory", "gigabytes_per_second", "network"),
    [
        ("v2", 45, 16 * GB, 700, 200 / 4),
        ("v3", 123, 32 * GIB, 900, 200 / 4),
        ("v4", 275, 32 * GIB, 1200, 200 / 4),
        ("v5e", 197, 16 * GB, 819, 200 / 8),
        ("v5p", 459, 95 * GB, 2765, 200 / 4),
        ("v6e", 918, 32 * GB, 1638, 200 / 8),
        ("tpu7x", 2307, 192 * GIB, 7380, 200 / 4),
        ("a100_40gb", 312, 40 * GB, 1555, 400 / 8),
        ("a100_80gb", 312, 80 * GB, 2039, 200),
        ("h100", 989.4, 80 * GB, 3350, 400),
        ("h100_pcie", 756, 80 * GB, 2000, 200),
        ("h200", 989, 141 * GB, 4800, 400),
        ("b200", 2250, 180 * GB, 7700, 400),
    ],
)
def test_figures_of_the_data_sheets(name, tflops, memory, gigabytes_per_second, network):
    one = chip(name)
    assert one.peak_bf16_flops == tflops * 1e12
    assert one.hbm_bytes == memory
    assert one.hbm_bandwidth == gigabytes_per_second * 1e9
    assert one.network_bandwidth == network / 8 * 1e9


def test_every_chip_has_a_row_of_figures():
    (table,) = test_figures_of_the_data_sheets.pytestmark
    assert [row[0] for row in table.args[1]] == list(CHIPS)


def test_what_the_compilers_of_tpus_grant_and_expect():
    """GiB that refusals of libtpu print, and its cycles for a product of 8192 x 8192 x 8192."""
    granted = {"v4": 30.75, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25, "tpu7x": 94.75}
    for name, size in granted.items():
        assert chip(name).usable_bytes == int(size * GIB)
    # Three quarters of what the cards report.
    assert chip("h100").usable_bytes == 63_707_234_304
    assert chip("h200").usable_bytes == 113_548_197_888
    assert {name for name, one in CHIPS.items() if one.usable_bytes} == {*granted, "h100", "h200"}
    reached = {name: one.matrix_efficiency for name, one in CHIPS.items()}
    assert reached == dict.fromkeys(CHIPS, 0.75) | {"v5e": 0.88, "v5p": 0.90, "v6e": 0.70}
    clocks = {name: one.clock for name, one in CHIPS.items() if one.clock is not None}
    assert clocks == {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}


def test_a_chip_of_two_cores_hides_collectives_that_its_text_does_not_show():
    assert {name for name, one in CHIPS.items() if one.cores == 2} == {"v4", "v5p"}
    assert {name for name, one in CHIPS.items() if not one.overlap_in_text} == {"v4", "v5p"}
