"""The peaks of chips, and the chip behind a JAX device.

Peaks are dense bfloat16 per CHIP. NVIDIA's headline figures are twice that (2:4 sparsity), and a
TPU v2, v3 or 7x chip is two devices to JAX: both have made published MFUs wrong by a factor of two.
A chip that is not in the table has no peak rather than a guessed one.
"""

import dataclasses

from t5x_style.errors import UsageError, did_you_mean

_GB = 10**9
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator chip.

    Attributes:
      name: as topology files and --chip name it.
      peak_bf16_flops: dense bfloat16 FLOP/s of the whole chip.
      hbm_bytes: memory of the whole chip.
      hbm_bandwidth: bytes/s between that memory and the cores.
      devices_per_chip: JAX devices that share the chip, its memory and its links in equal parts.
      device_kinds: the values of `jax.Device.device_kind`, in full.
      source: of the figures, and where sources disagree.
      interconnect: 'torus_2d' (4 links to neighbours), 'torus_3d' (6) or 'nvlink' (a switch).
      links: links of a chip.
      link_bandwidth: bytes/s that ONE link carries in ONE direction, as published. Vendors print
        links x both directions: 1200 GB/s of a v5p are 6 links x 2 x 100 GB/s.
      link_domain: chips that the links join at most; past it, traffic goes over the network.
      network_bandwidth: bytes/s that one chip sends over the data-centre network, in one direction.
    """

    name: str
    peak_bf16_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    devices_per_chip: int
    device_kinds: tuple[str, ...]
    source: str
    interconnect: str
    links: int
    link_bandwidth: float
    link_domain: int
    network_bandwidth: float


_CLOUD_TPU = "docs.cloud.google.com/tpu/docs, system architecture"
# 4 chips a host, 8 of v5e and v6e.
_DCN = "network: 25 GB/s a host, scaling book, 'How to think about TPUs'"
_DATASHEET = "vendor's datasheet, half of the figure with sparsity, half of NVLink's both ways"

CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            "v2", 45e12, 16 * _GB, 700e9, 2, ("TPU v2",),
            "from memory (some tables: 600 GB/s of memory bandwidth); links: 496 Gbit/s, Jouppi "
            "et al. 2020, from memory; " + _DCN,
            "torus_2d", 4, 62e9, 256, 6.25e9,
        ),
        Chip(
            "v3", 123e12, 32 * _GIB, 900e9, 2, ("TPU v3",),
            _CLOUD_TPU + " (scaling book: 1.4e14 FLOP/s); links: 656 Gbit/s, Jouppi et al. 2020, "
            "from memory (scaling book: 1e11 bytes/s); " + _DCN,
            "torus_2d", 4, 82e9, 1024, 6.25e9,
        ),
        Chip(
            "v4", 275e12, 32 * _GIB, 1200e9, 1, ("TPU v4",),
            _CLOUD_TPU + "; links: Jouppi et al. 2023, from memory (scaling book: 4.5e10 bytes/s); "
            + _DCN,
            "torus_3d", 6, 50e9, 4096, 6.25e9,
        ),
        Chip(
            "v5e", 197e12, 16 * _GB, 819e9, 1, ("TPU v5e", "TPU v5 lite"),
            _CLOUD_TPU + " (one page: 800 GiB/s of memory bandwidth); links: 400 GB/s a chip in "
            "both directions; " + _DCN,
            "torus_2d", 4, 50e9, 256, 3.125e9,
        ),
        Chip(
            "v5p", 459e12, 95 * _GB, 2765e9, 1, ("TPU v5p", "TPU v5"),
            _CLOUD_TPU + " (scaling book: 96 GB, 2.8e12 bytes/s); links: 1200 GB/s a chip in both "
            "directions; " + _DCN,
            "torus_3d", 6, 100e9, 8960, 6.25e9,
        ),
        Chip(
            "v6e", 918e12, 32 * _GB, 1638e9, 1, ("TPU v6e", "TPU v6 lite"),
            _CLOUD_TPU + " (scaling book: 9.2e14 FLOP/s, 1.6e12 bytes/s); links: 800 GB/s a chip "
            "in both directions; " + _DCN,
            "torus_2d", 4, 100e9, 256, 3.125e9,
        ),
        Chip(
            "tpu7x", 2307e12, 192 * _GIB, 7380e9, 2, ("TPU7x",),
            _CLOUD_TPU + "; links: 1200 GB/s a chip in both directions; network: assumed as v5p's",
            "torus_3d", 6, 100e9, 9216, 6.25e9,
        ),
        Chip(
            "a100_40gb", 312e12, 40 * _GB, 1555e9, 1,
            ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
            _DATASHEET + "; memory bandwidth from memory; links those of SXM4 (the PCIe card has a "
            "bridge for two); network: 400 Gbit/s a node of 8, AWS p4d as BloombergGPT used it",
            "nvlink", 12, 25e9, 8, 6.25e9,
        ),
        Chip(
            "a100_80gb", 312e12, 80 * _GB, 2039e9, 1, ("NVIDIA A100-SXM4-80GB",),
            _DATASHEET + "; network: 200 Gbit/s a chip, DGX A100, from memory",
            "nvlink", 12, 25e9, 8, 25e9,
        ),
        Chip(
            "h100", 989.4e12, 80 * _GB, 3350e9, 1, ("NVIDIA H100 80GB HBM3",),
            _DATASHEET + "; network: 400 Gbit/s a chip, DGX H100",
            "nvlink", 18, 25e9, 8, 50e9,
        ),
        Chip(
            "h100_pcie", 756e12, 80 * _GB, 2000e9, 1, ("NVIDIA H100 PCIe",),
            "reseller's datasheet, half of the figure with sparsity; links: a bridge of 600 GB/s "
            "in both directions joins two; network: assumed 200 Gbit/s a chip",
            "nvlink", 12, 25e9, 2, 25e9,
        ),
        Chip(
            "h200", 989e12, 141 * _GB, 4800e9, 1, ("NVIDIA H200",),
            _DATASHEET + "; network: 400 Gbit/s a chip, DGX H200",
            "nvlink", 18, 25e9, 8, 50e9,
        ),
        Chip(
            "b200", 2250e12, 180 * _GB, 7700e9, 1, ("NVIDIA B200",),
            _DATASHEET + " (180 or 192 GB, 7.7e12 or 8e12 bytes/s by page: the lower are taken); "
            "network: 400 Gbit/s a chip, DGX B200",
            "nvlink", 18, 50e9, 8, 50e9,
        ),
    )
}  # fmt: skip

_BY_DEVICE_KIND = {kind: chip for chip in CHIPS.values() for kind in chip.device_kinds}


def chip(name: str) -> Chip:
    """The chip of that name. Raises UsageError, with the nearest name, if there is none."""
    if name not in CHIPS:
        raise UsageError(
            f"no chip {name!r}: one of {', '.join(CHIPS)}{did_you_mean(str(name), CHIPS)}"
        )
    return CHIPS[name]


def chip_of_device_kind(kind: str) -> Chip | None:
    """The chip behind `jax.Device.device_kind`; None for a CPU and for chips not in the table.

    The whole name must match, never a part: 'TPU v5' is a v5p and 'TPU v5 lite' a v5e.
    """
    return _BY_DEVICE_KIND.get(kind)
