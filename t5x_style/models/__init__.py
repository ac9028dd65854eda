"""The decoder and its parts as Flax NNX modules: shapes, dtypes and logical axes, no mesh."""

from t5x_style.models.decoder import REMAT_POLICIES, Decoder
from t5x_style.models.loss import next_token_loss

__all__ = ["REMAT_POLICIES", "Decoder", "next_token_loss"]
