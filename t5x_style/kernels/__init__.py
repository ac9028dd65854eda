"""Attention kernels: one `AttentionInputs`, several ways to compute the same numbers."""

import functools
from collections.abc import Callable

import jax

from t5x_style.accounting.attention_blocks import USUAL_BLOCK
from t5x_style.kernels.blockwise import blockwise_attention
from t5x_style.kernels.cudnn import cudnn_attention
from t5x_style.kernels.flash import flash_attention
from t5x_style.kernels.plain import RESIDUALS, AttentionInputs, plain_attention, softcapped

Kernel = Callable[[AttentionInputs], jax.Array]

ATTENTION_KERNELS: dict[str, Callable[..., jax.Array]] = {
    "plain": plain_attention,
    "blockwise": blockwise_attention,
    "flash": flash_attention,
    "cudnn": cudnn_attention,
}


def attention_kernel(name: str, block_size: int | None = None, chip: str | None = None) -> Kernel:
    """A kernel by name.

    Args:
      name: of ATTENTION_KERNELS.
      block_size: queries and keys of a tile, at most; None: the kernel's own choice.
      chip: that it runs on, as `Topology.chip`.
    """
    kernel = ATTENTION_KERNELS[name]
    if name == "flash":
        return functools.partial(kernel, block_size=block_size, chip=chip)
    if name == "blockwise":
        return functools.partial(kernel, block_size=block_size or USUAL_BLOCK)
    return kernel


__all__ = [
    "ATTENTION_KERNELS",
    "RESIDUALS",
    "AttentionInputs",
    "Kernel",
    "attention_kernel",
    "blockwise_attention",
    "cudnn_attention",
    "flash_attention",
    "plain_attention",
    "softcapped",
]
