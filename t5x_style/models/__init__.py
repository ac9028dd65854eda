"""The decoder and its parts as Flax NNX modules: shapes, dtypes and logical axes, no mesh."""

from t5x_style.models.decoder import Decoder
from t5x_style.models.loss import next_token_loss
from t5x_style.models.remat import REMAT_POLICIES

__all__ = ["REMAT_POLICIES", "Decoder", "next_token_loss"]
