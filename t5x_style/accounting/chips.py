"""The peaks of chips, and the chip of a JAX device.

Peaks are dense bfloat16 per CHIP. NVIDIA's headline figures are twice that (2:4 sparsity), and a
TPU v2, v3 or 7x chip is two devices to JAX: both have made published MFUs wrong by a factor of two.
A chip that is not in the table has no peak rather than a guessed one.
"""

import dataclasses
from collections.abc import Mapping

from t5x_style.errors import UsageError, did_you_mean
from t5x_style.plugins import load
from t5x_style.quantities import GIB

_GB = 10**9

# Share of a link's printed rate that carries data; the scaling book works with 9e10 of 1e11.
LINK_EFFICIENCY = 0.90

_SLICES_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SLICES_3D = ("2x2x1", "2x2x4", "4x4x4", "4x4x8", "8x8x8", "8x8x16", "16x16x16")


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
      matrix_efficiency: share of the peak that large matrix products reach. For v5e, v5p and v6e:
        the cycles that XLA's TPU compiler expects of a bfloat16 product of 8192 x 8192 x 8192. For
        all others 0.75 is assumed, about what cuBLAS reaches on an A100 or H100.
      usable_bytes: memory that a program is granted on each JAX DEVICE. It is less than the device
        has: the runtime keeps some. For a TPU, as the compiler's refusals print it (libtpu 0.0.42);
        for a GPU three quarters, unless XLA_PYTHON_CLIENT_MEM_FRACTION is set. None: a step cannot
        be compiled for a described slice.
      slices: some shapes that Cloud TPU rents, for messages. The compiler takes others too.
      compiler_options: for the TPU compiler's description of a slice.
      clock: cycles a second at which the published peak is reached, 2 FLOPs x the multipliers of a
        chip. v5e: 4 arrays of 128 x 128, 197e12 FLOP/s; v5p: 8 in two cores, 459e12; v4: 8 in two
        cores, 275e12; v6e: 4 times as many as a v5e, 918e12. None: no seconds are estimated.
      cores: cores that share a kernel's rows. (XLA's own estimates are for the whole chip.)
      overlap_in_text: whether a program's text shows that a collective overlaps other work.
      reported_memory: bytes and bytes/s that an SXM card reports, for XLA's GPU compiler.
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
    matrix_efficiency: float = 0.75
    usable_bytes: int | None = None
    slices: tuple[str, ...] = ()
    compiler_options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    clock: float | None = None
    cores: int = 1
    overlap_in_text: bool = True
    reported_memory: tuple[int, int] | None = None


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
            "v3", 123e12, 32 * GIB, 900e9, 2, ("TPU v3",),
            _CLOUD_TPU + " (scaling book: 1.4e14 FLOP/s); links: 656 Gbit/s, Jouppi et al. 2020, "
            "from memory (scaling book: 1e11 bytes/s); " + _DCN,
            "torus_2d", 4, 82e9, 1024, 6.25e9,
        ),
        Chip(
            "v4", 275e12, 32 * GIB, 1200e9, 1, ("TPU v4",),
            _CLOUD_TPU + "; links: Jouppi et al. 2023, from memory (scaling book: 4.5e10 bytes/s); "
            + _DCN,
            "torus_3d", 6, 50e9, 4096, 6.25e9,
            # A v4 chip shows its two cores as one device, as it does on a Cloud TPU machine.
            usable_bytes=int(30.75 * GIB), slices=_SLICES_3D, clock=1.05e9, cores=2,
            compiler_options={"chip_config_name": "megacore"}, overlap_in_text=False,
        ),
        Chip(
            "v5e", 197e12, 16 * _GB, 819e9, 1, ("TPU v5e", "TPU v5 lite"),
            _CLOUD_TPU + " (one page: 800 GiB/s of memory bandwidth); links: 400 GB/s a chip in "
            "both directions; " + _DCN,
            "torus_2d", 4, 50e9, 256, 3.125e9,
            matrix_efficiency=0.88, usable_bytes=int(15.75 * GIB), slices=_SLICES_2D, clock=1.5e9,
        ),
        Chip(
            "v5p", 459e12, 95 * _GB, 2765e9, 1, ("TPU v5p", "TPU v5"),
            _CLOUD_TPU + " (scaling book: 96 GB, 2.8e12 bytes/s); links: 1200 GB/s a chip in both "
            "directions; " + _DCN,
            "torus_3d", 6, 100e9, 8960, 6.25e9,
            matrix_efficiency=0.90, usable_bytes=int(95.74 * GIB), slices=_SLICES_3D,
            clock=1.75e9, cores=2, overlap_in_text=False,
        ),
        Chip(
            "v6e", 918e12, 32 * _GB, 1638e9, 1, ("TPU v6e", "TPU v6 lite"),
            _CLOUD_TPU + " (scaling book: 9.2e14 FLOP/s, 1.6e12 bytes/s); links: 800 GB/s a chip "
            "in both directions; " + _DCN,
            "torus_2d", 4, 100e9, 256, 3.125e9,
            matrix_efficiency=0.70, usable_bytes=int(31.25 * GIB), slices=_SLICES_2D,
            clock=1.75e9,
        ),
        Chip(
            "tpu7x", 2307e12, 192 * GIB, 7380e9, 2, ("TPU7x",),
            _CLOUD_TPU + "; links: 1200 GB/s a chip in both directions; network: assumed as v5p's",
            "torus_3d", 6, 100e9, 9216, 6.25e9,
            usable_bytes=int(94.75 * GIB), slices=_SLICES_3D,
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
            usable_bytes=84_942_979_072 * 3 // 4,
            reported_memory=(84_942_979_072, 3_352_320_000_000),
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
            usable_bytes=151_397_597_184 * 3 // 4,
            reported_memory=(151_397_597_184, 4_800_000_000_000),
        ),
        Chip(
            "b200", 2250e12, 180 * _GB, 7700e9, 1, ("NVIDIA B200",),
            _DATASHEET + " (180 or 192 GB, 7.7e12 or 8e12 bytes/s by page: the lower are taken); "
            "network: 400 Gbit/s a chip, DGX B200",
            "nvlink", 18, 50e9, 8, 50e9,
        ),
    )
}  # fmt: skip


def chip(name: str) -> Chip:
    """A chip by `Topology.chip` or --chip.

    Args:
      name: in CHIPS; or the dotted path of a Chip, 'my_team.MY_CHIP', whose module is imported from
        the Python path.

    Raises:
      UsageError: there is no such chip, or the object is of another type.
    """
    if name in CHIPS:
        return CHIPS[name]
    if "." not in str(name):
        raise UsageError(
            f"no chip {name!r}: one of {', '.join(CHIPS)}, or the dotted path of your own Chip, "
            f"such as 'my_team.MY_CHIP'{did_you_mean(str(name), CHIPS)}"
        )
    return load(f"chip {name!r}", str(name), Chip)


def chip_of_device_kind(kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None for a CPU and for chips not in the table.

    The whole name must match, never a part: 'TPU v5' is a v5p and 'TPU v5 lite' a v5e.
    """
    return next((row for row in CHIPS.values() if kind in row.device_kinds), None)
