"""Attention kernels: one signature, several ways to compute the same numbers."""

from t5x_style.kernels.blockwise import blockwise_attention
from t5x_style.kernels.plain import plain_attention

ATTENTION_KERNELS = {"plain": plain_attention, "blockwise": blockwise_attention}

__all__ = ["ATTENTION_KERNELS", "blockwise_attention", "plain_attention"]
