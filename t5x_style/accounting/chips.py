"""What a chip can do at most, and which chip a JAX device is.

Peaks are dense bfloat16 per CHIP. NVIDIA's headline figures are twice that (2:4 sparsity), and a
TPU v2, v3 or 7x chip shows itself to JAX as two devices: both have made published MFUs wrong by a
factor of two. A chip that is not in the table has no peak rather than a guessed one.
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
      devices_per_chip: JAX devices that share the chip.
      device_kinds: what `jax.Device.device_kind` says, in full.
      source: where the figures stand.
    """

    name: str
    peak_bf16_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    devices_per_chip: int
    device_kinds: tuple[str, ...]
    source: str


_CLOUD_TPU = "docs.cloud.google.com/tpu/docs, system architecture"
_DATASHEET = "vendor's datasheet, half of the figure with sparsity"

CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v2", 45e12, 16 * _GB, 700e9, 2, ("TPU v2",), _CLOUD_TPU),
        Chip("v3", 123e12, 32 * _GIB, 900e9, 2, ("TPU v3",), _CLOUD_TPU),
        Chip("v4", 275e12, 32 * _GIB, 1200e9, 1, ("TPU v4",), _CLOUD_TPU),
        Chip("v5e", 197e12, 16 * _GB, 819e9, 1, ("TPU v5e", "TPU v5 lite"), _CLOUD_TPU),
        Chip("v5p", 459e12, 95 * _GB, 2765e9, 1, ("TPU v5p", "TPU v5"), _CLOUD_TPU),
        Chip("v6e", 918e12, 32 * _GB, 1638e9, 1, ("TPU v6e", "TPU v6 lite"), _CLOUD_TPU),
        Chip("tpu7x", 2307e12, 192 * _GIB, 7380e9, 2, ("TPU7x",), _CLOUD_TPU),
        Chip(
            "a100_40gb",
            312e12,
            40 * _GB,
            1555e9,
            1,
            ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
            _DATASHEET,
        ),
        Chip("a100_80gb", 312e12, 80 * _GB, 2039e9, 1, ("NVIDIA A100-SXM4-80GB",), _DATASHEET),
        Chip("h100", 989.4e12, 80 * _GB, 3350e9, 1, ("NVIDIA H100 80GB HBM3",), _DATASHEET),
        Chip("h100_pcie", 756e12, 80 * _GB, 2000e9, 1, ("NVIDIA H100 PCIe",), _DATASHEET),
        Chip("h200", 989e12, 141 * _GB, 4800e9, 1, ("NVIDIA H200",), _DATASHEET),
        Chip("b200", 2250e12, 180 * _GB, 7700e9, 1, ("NVIDIA B200",), _DATASHEET),
    )
}

_BY_DEVICE_KIND = {kind: chip for chip in CHIPS.values() for kind in chip.device_kinds}


def chip(name: str) -> Chip:
    """The chip of that name. Raises UsageError, with the nearest name, if there is none."""
    if name not in CHIPS:
        raise UsageError(
            f"no chip {name!r}: one of {', '.join(CHIPS)}{did_you_mean(str(name), CHIPS)}"
        )
    return CHIPS[name]


def chip_of_device_kind(kind: str) -> Chip | None:
    """The chip behind `jax.Device.device_kind`; None for a CPU and for what is not in the table.

    Matched whole, never by a part: 'TPU v5' is a v5p and 'TPU v5 lite' a v5e.
    """
    return _BY_DEVICE_KIND.get(kind)
