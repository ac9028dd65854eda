"""cuDNN's flash attention for NVIDIA GPUs, on `AttentionInputs`."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from t5x_style.errors import UsageError
from t5x_style.kernels.plain import RESIDUALS, AttentionInputs

# JAX accepts heads up to this width without knowing the device.
WIDEST_HEAD = 128


def cudnn_attention(inputs: AttentionInputs) -> jax.Array:
    """The same numbers as `plain_attention`, by cuDNN: memory linear in S.

    Args:
      inputs: bfloat16. Keys and values are not repeated for the queries that share them. The mask
        goes by index in the arrays, so the positions of queries and keys must be those of the same
        consecutive tokens. slopes, segments and softcap are None: cuDNN would take the first two as
        a bias [N, S, S] or [B, S, S] in memory, and has no soft-cap.

    Returns:
      [B, S, N, H] in q's dtype.

    Raises:
      UsageError: cuDNN does not support an input, or its library is not installed.
    """
    q, k, v, window = inputs.q, inputs.k, inputs.v, inputs.window
    for is_set, feature in (
        (inputs.slopes is not None, "Architecture.positions = 'alibi'"),
        (inputs.segments is not None, "Packing.attend_across_documents = False"),
        (inputs.softcap is not None, f"Architecture.attention_softcap = {inputs.softcap}"),
        (q.shape[1] != k.shape[1], "Topology.sequence > 1"),
        (q.dtype != jnp.bfloat16, f"compute_dtype = '{q.dtype}'"),
        (
            q.shape[-1] % 8 != 0 or q.shape[-1] > WIDEST_HEAD,
            f"Architecture.head_dim = {q.shape[-1]}",
        ),
    ):
        if is_set:
            raise UsageError(
                f"Topology.kernel = 'cudnn' does not support {feature} (only causal attention in "
                f"bfloat16, heads of up to {WIDEST_HEAD} in steps of 8, windows and shared keys): "
                "use 'blockwise' or 'plain'"
            )
    try:
        out = jax.nn.dot_product_attention(
            q,
            k,
            v,
            scale=1.0,
            is_causal=True,
            local_window_size=None if window is None else (window - 1, 0),
            implementation="cudnn",
        )
    except RuntimeError as error:
        raise UsageError(
            f"Topology.kernel = 'cudnn' needs the library cuDNN ({error}): run tools/setup gpu, or "
            "choose 'blockwise'"
        ) from error
    return checkpoint_name(out, RESIDUALS)
