"""Pretrain domain language models on JAX and TPU, with every token and FLOP accounted for."""

__version__ = "0.1.0"
