"""The decoder: embedding, a scanned stack of pre-norm blocks, a final norm and the head."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_style.accounting.architecture import Architecture
from t5x_style.kernels import RESIDUALS, Kernel, plain_attention, softcapped
from t5x_style.models.attention import OUTPUT, QKV, Attention, Cache
from t5x_style.models.layers import PRODUCT, FeedForward, Norm, normal, segment_positions
from t5x_style.models.logical import (
    BATCH,
    EMBED,
    LAYERS,
    SEQUENCE,
    VOCAB,
    constrain,
    scatter_gradient,
)

# Rematerialisation: what the backward pass keeps of each layer, by the names under which attention,
# its kernel and the weight matrices mark their results.
_SAVE_ATTENTION = (RESIDUALS, OUTPUT)
_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "save_dots": jax.checkpoint_policies.save_only_these_names(PRODUCT, RESIDUALS),
    "save_attention": jax.checkpoint_policies.save_only_these_names(*_SAVE_ATTENTION),
    "save_qkv": jax.checkpoint_policies.save_only_these_names(QKV, RESIDUALS),
    "save_qkv_out": jax.checkpoint_policies.save_only_these_names(QKV, *_SAVE_ATTENTION),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(_SAVE_ATTENTION),
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
REMAT_POLICIES = ("none", *_POLICIES)


class Block(nnx.Module):
    """x + attention(norm(x)), then + feed_forward(norm(x)); in a parallel block both read the
    same norm of the same x. [B, S, D] to [B, S, D]."""

    def __init__(self, architecture: Architecture, *, kernel: Kernel, rngs: nnx.Rngs):
        a = architecture
        norm = functools.partial(
            Norm, a.d_model, kind=a.norm, bias=a.biases, epsilon=a.norm_epsilon
        )
        self.attention_norm = norm()
        self.attention = Attention(a, kernel=kernel, rngs=rngs)
        self.feed_forward_norm = None if a.parallel_block else norm()
        self.feed_forward = FeedForward(a, rngs=rngs)

    def __call__(self, x, positions, cache: Cache | None = None, segments=None):
        normed = self.attention_norm(x)
        attended, cache = self.attention(normed, positions, cache, segments)
        if self.feed_forward_norm is None:
            x = x + attended + self.feed_forward(normed)
        else:
            x = constrain(x + attended, BATCH, SEQUENCE, None)
            x = x + self.feed_forward(self.feed_forward_norm(x))
        return constrain(x, BATCH, SEQUENCE, None), cache


class Decoder(nnx.Module):
    """A decoder language model. Parameters are float32; the compute dtype is chosen.

    Built inside of a mesh with rules in force, its parameters are born in their shards. All
    parameters of the blocks are stacked on a leading `layers` axis and run by one `jax.lax.scan`.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        rngs: nnx.Rngs,
        compute_dtype=jnp.bfloat16,
        kernel: Kernel = plain_attention,
        remat: str = "none",
    ):
        a = architecture
        self.architecture, self.compute_dtype, self.remat = a, compute_dtype, remat
        self.embedding = normal(rngs, (a.vocab_size, a.d_model), (VOCAB, EMBED), a.matrix_std)
        self.position_table = (
            normal(rngs, (a.position_rows, a.d_model), (None, EMBED), a.matrix_std)
            if a.position_rows
            else None
        )
        norm = functools.partial(
            Norm, a.d_model, kind=a.norm, bias=a.biases, epsilon=a.norm_epsilon
        )
        self.embedding_norm = norm() if a.embedding_norm else None

        @nnx.split_rngs(splits=a.layers)
        @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: LAYERS})
        def stack(rngs):
            return Block(a, kernel=kernel, rngs=rngs)

        self.blocks = stack(rngs)
        self.final_norm = norm()
        self.head = (
            None
            if a.tied_head
            else normal(rngs, (a.vocab_size, a.d_model), (VOCAB, EMBED), a.matrix_std)
        )

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        cache: Cache | None = None,
        segments: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """The last hidden state.

        Args:
          tokens: int32 [B, S]. positions: int32 [S]; None means 0 .. S-1. Learned positions count
            from 0 in each segment, so a document has the logits that it has alone.
          cache: keys and values of all layers, each [L, B, T, K, H] (see `empty_cache`), when
            tokens come a few at a time.
          segments: int32 [B, S]: a token sees the earlier ones of its own segment alone; None: all
            earlier ones. A cache holds tokens of one segment, so the two do not go together.

        Returns:
          [B, S, D] in the compute dtype, after the final norm; and the cache with these tokens in.

        Raises:
          ValueError: segments and a cache.
        """
        if segments is not None and cache is not None:
            raise ValueError("segments with a cache: the keys of a cache have no segments")
        if positions is None:
            positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        # The fsdp shards of the table are gathered first: looking words up in a table split along D
        # would make the partitioner replicate the activations.
        table = constrain(self.embedding[...].astype(self.compute_dtype), VOCAB, None)
        x = table[tokens]
        if self.position_table is not None:
            position_table = self.position_table[...].astype(self.compute_dtype)
            if segments is None:
                x = x + position_table[positions]
            else:
                # Of other positions only the differences count, which are those within a segment.
                position_table = constrain(position_table, None, None)
                x = x + position_table[segment_positions(segments)]
        x = constrain(x, BATCH, SEQUENCE, None)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        definition, parameters = nnx.split(self.blocks)

        # The body returns no parameters: scan would copy every one of them.
        def body(x, layer):
            layer_parameters, layer_cache = layer
            block = nnx.merge(definition, _scatter_gradients(layer_parameters))
            return block(x, positions, layer_cache, segments)

        x, cache = jax.lax.scan(_apply_remat(body, self.remat), x, (parameters, cache))
        return self.final_norm(x), cache

    def output_matrix(self) -> jax.Array:
        """The head as [V, D], float32: its own matrix, or the embedding where tied."""
        return (self.embedding if self.head is None else self.head)[...]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 [B, S, V] of a hidden state [B, S, D]; for sampling, not for the loss."""
        out = jnp.einsum(
            "bsd,vd->bsv",
            hidden,
            self.output_matrix().astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
        return softcapped(out, self.architecture.logit_softcap)

    def empty_cache(self, batch: int, length: int) -> Cache:
        """Zeroed keys and values for `length` tokens: two arrays [L, B, T, K, H]."""
        a = self.architecture
        shape = (a.layers, batch, length, a.kv_heads, a.head_dim)
        return jnp.zeros(shape, self.compute_dtype), jnp.zeros(shape, self.compute_dtype)


def _apply_remat(body: Callable, policy: str) -> Callable:
    """The body of a layer scan under a policy.

    'none' computes no product again. Under every policy, norms and activations keep only what they
    read. 'full' keeps the layer's input alone. 'save_dots' keeps the results of the weight matrices
    and the kernel's residuals: its output, and for all but 'plain' a log-sum-exp per query. The
    rest is computed again: activations, norms, the plain kernel's scores. 'save_attention' keeps
    the residuals and the product of attention's output matrix, so that no kernel runs forward
    twice. 'save_qkv' keeps queries, keys and values instead of that product, 'save_qkv_out' both.
    'offload' keeps what 'save_attention' keeps, but in the host's memory. The FLOPs of each are in
    `accounting.flops`, and a test counts them.
    """
    if policy == "none":
        return body
    return jax.checkpoint(body, policy=_POLICIES[policy], prevent_cse=False)


def _scatter_gradients(layer_parameters: nnx.State) -> nnx.State:
    def scatter(parameter: nnx.Variable) -> nnx.Variable:
        # The names are those of the stack.
        _, *names = parameter.get_metadata("out_sharding")
        return parameter.replace(scatter_gradient(parameter[...], *names))

    return jax.tree.map(
        scatter, layer_parameters, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
