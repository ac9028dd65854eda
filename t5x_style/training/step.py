"""The train step and the evaluation step: pure functions of pytrees."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from t5x_style.models import next_token_loss
from t5x_style.models.logical import BATCH, constrain
from t5x_style.training.model_state import BoundModel, State

# int32 [B, 1 + S + 1]: a row's source, then its S + 1 tokens (see `packed_batch`).
Batch = jax.Array
Metrics = dict[str, jax.Array]


def packed_batch(tokens: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Rows and their sources as one array, so that a batch is one transfer: of a step of half a
    millisecond, a second transfer takes a fifth.

    Args:
      tokens: int32 [B, S + 1]. source: int32 [B].

    Returns:
      int32 [B, 1 + S + 1].
    """
    batch = np.empty((len(tokens), tokens.shape[1] + 1), np.int32)
    batch[:, 0], batch[:, 1:] = source, tokens
    return batch


def make_train_step(
    model: BoundModel,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable,
    *,
    sources: int,
    microbatches: int,
    z_loss: float,
    loss_chunk_tokens: int,
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """One optimizer step.

    The loss is the mean over the tokens of the GLOBAL batch: weights are 1 / (B S) before the
    batch is cut into microbatches, so k microbatches of B / k give the loss and the gradients of
    one batch of B.

    Args:
      sources: number of sources in the blend.
      microbatches: passes per step over B / microbatches rows each, gradients added in float32.
      z_loss: coefficient of log(Z)^2.

    Returns:
      step(state, batch) -> (state, metrics). Metrics, float32: loss (nats per token), z_loss,
      grad_norm (before clipping), param_norm (after the update), learning_rate, all []; and
      source_loss [sources], the mean loss over each source's tokens (0 where it has none).
    """
    softcap = model.architecture.logit_softcap

    def loss_of(parameters: dict, tokens: jax.Array, weight: float):
        decoder = model(parameters)
        hidden, _ = decoder(tokens[:, :-1])
        targets = tokens[:, 1:]
        return next_token_loss(
            hidden,
            decoder.output_matrix(),
            targets,
            jnp.full(targets.shape, weight, jnp.float32),
            chunk_tokens=loss_chunk_tokens,
            softcap=softcap,
            z_loss=z_loss,
        )

    def gradients_of(parameters: dict, tokens: jax.Array):
        weight = 1 / (tokens.shape[0] * (tokens.shape[1] - 1))
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        if microbatches == 1:
            (_, rows), gradients = gradient(parameters, tokens, weight)
            return rows, gradients
        # Row b goes to microbatch b % k: every device then keeps rows of its own shard.
        cut = tokens.reshape(-1, microbatches, tokens.shape[1]).swapaxes(0, 1)
        cut = constrain(cut, None, BATCH, None)

        def add(total, piece):
            (_, rows), gradients = gradient(parameters, piece, weight)
            return jax.tree.map(jnp.add, total, gradients), rows

        zeros = jax.tree.map(jnp.zeros_like, parameters)
        gradients, rows = jax.lax.scan(add, zeros, cut)
        return jax.tree.map(lambda each: each.swapaxes(0, 1).reshape(-1), rows), gradients

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        parameters, source, tokens = state["parameters"], batch[:, 0], batch[:, 1:]
        (nll, z), gradients = gradients_of(parameters, tokens)
        # The partitioner may drop a gradient's sharding; without it, no reduce-scatter.
        gradients = jax.tree.map(
            lambda leaf, gradient: jax.lax.with_sharding_constraint(gradient, leaf.sharding),
            model.abstract,
            gradients,
        )
        updates, optimizer_state = optimizer.update(gradients, state["optimizer"], parameters)
        parameters = optax.apply_updates(parameters, updates)
        # The rows' weights sum to one over the batch; over a source they sum to its share of it.
        is_source = jax.nn.one_hot(source, sources, dtype=jnp.float32)
        share = is_source.sum(0) / tokens.shape[0]
        metrics = {
            "loss": nll.sum(),
            "z_loss": z.sum(),
            "grad_norm": optax.tree.norm(gradients),
            "param_norm": optax.tree.norm(parameters),
            "learning_rate": learning_rate(state["step"]),
            "source_loss": (nll @ is_source) / jnp.maximum(share, 1 / tokens.shape[0]),
        }
        new_state = {
            "step": state["step"] + 1,
            "parameters": parameters,
            "optimizer": optimizer_state,
        }
        return new_state, metrics

    return step


def make_evaluation_step(model: BoundModel, *, loss_chunk_tokens: int) -> Callable:
    """The summed loss of a batch.

    Returns:
      evaluate(parameters, tokens int32 [B, S + 1], weights float32 [B, S]) -> float32 [], the sum
      of weights * -log p(next token), in nats.
    """
    softcap = model.architecture.logit_softcap

    def evaluate(parameters: dict, tokens: jax.Array, weights: jax.Array) -> jax.Array:
        decoder = model(parameters)
        hidden, _ = decoder(tokens[:, :-1])
        _, (nll, _) = next_token_loss(
            hidden,
            decoder.output_matrix(),
            tokens[:, 1:],
            weights,
            chunk_tokens=loss_chunk_tokens,
            softcap=softcap,
        )
        return nll.sum()

    return evaluate
