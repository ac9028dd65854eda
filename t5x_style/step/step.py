"""The train step and the evaluation step: pure functions of pytrees."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from t5x_style.data import Packing, Rows
from t5x_style.errors import UsageError
from t5x_style.models import next_token_loss
from t5x_style.models.layers import segment_positions
from t5x_style.models.logical import BATCH, constrain
from t5x_style.step.model_state import BoundModel, State
from t5x_style.step.monitors import (
    LARGEST_LOGIT,
    UPDATE_RATIO,
    noise_estimates,
    rms_monitors,
    update_ratio,
)

# int32 [B, W]: a row's source, its split position if it has one, its tokens (see `packed_batch`).
Batch = jax.Array
Metrics = dict[str, jax.Array]
# float32 [3, sources], of all steps since the last training line: the sums of -log p in nats, the
# sums of the z term in nats, and the tokens learnt from. Every addition rounds to 24 bits, so after
# n steps a sum is off by n / 2^24 of itself at most: 6e-6 of it after a hundred steps.
LossSums = jax.Array
# float32 [2], replicated: the largest loss and gradient norm whose update is applied. No update is
# applied whose loss or norm is not finite.
Limits = jax.Array
# Of `Metrics`: of each row.
ROW_NATS = "row_nats"
# Of `Metrics`: loss, grad_norm, param_norm and applied as one array. Whoever looks at every step
# fetches it in a quarter of the time of four.
SEEN = "seen"
NO_LIMITS = np.full(2, np.inf, np.float32)

AS_STORED = Packing()


def packed_batch(rows: Rows) -> np.ndarray:
    """Rows, their sources and split positions as one array, so that a batch is one transfer.

    A second transfer takes a fifth of a step of half a millisecond.

    Returns:
      int32 [B, 1 + S + 1], the source and the tokens; of rows with a split int32 [B, 2 + S + 2],
      the source, the split position and the tokens.
    """
    columns = (rows.source,) if rows.split_position is None else (rows.source, rows.split_position)
    batch = np.empty((len(rows.tokens), len(columns) + rows.tokens.shape[1]), np.int32)
    for index, column in enumerate(columns):
        batch[:, index] = column
    batch[:, len(columns) :] = rows.tokens
    return batch


def batch_width(sequence_length: int, packing: Packing) -> int:
    """W of a packed batch, int32 [B, W], of rows that predict `sequence_length` tokens."""
    return sequence_length + (4 if packing.document_starts else 2)


def row_predictions(
    rows: jax.Array, packing: Packing
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The inputs and the targets of packed rows.

    Args:
      rows: a packed batch without its sources: int32 [B, S + 1], or [B, 1 + S + 2] of windows that
        respect document starts, whose second part begins at `Rows.split_position`.

    Returns:
      Inputs int32 [B, S]; the token that follows each, int32 [B, S], never one across the split;
      and bool [B, S], which positions are after the split, or None for rows without a split.
    """
    if not packing.document_starts:
        return rows[:, :-1], rows[:, 1:], None
    split_position, ids = rows[:, :1], rows[:, 1:]
    after_split = jnp.arange(ids.shape[1] - 2) >= split_position
    inputs = jnp.where(after_split, ids[:, 1:-1], ids[:, :-2])
    return inputs, jnp.where(after_split, ids[:, 2:], ids[:, 1:-1]), after_split


def row_segments(inputs: jax.Array, after_split: jax.Array | None, eos_id: int) -> jax.Array:
    """Which document of its row each token belongs to.

    An EOS begins the document that follows it: the first token is predicted from it.

    Args:
      inputs: int32 [B, S]. after_split: as `row_predictions` returns it.

    Returns:
      int32 [B, S], equal within a document, rising along the row.
    """
    segments = jnp.cumsum(inputs == eos_id, axis=1, dtype=jnp.int32)
    return segments if after_split is None else segments + after_split


def make_train_step(
    model: BoundModel,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable,
    *,
    sources: int,
    microbatches: int,
    z_loss: float,
    loss_chunk_tokens: int,
    loss_vocab_chunks: int = 1,
    eos_id: int,
    packing: Packing = AS_STORED,
) -> Callable[[State, Batch, LossSums, Limits], tuple[State, Metrics, LossSums]]:
    """One optimizer step.

    The loss is the mean over the tokens learnt from in the GLOBAL batch: weights are 1 / (B S), or
    1 / (their number) where `packing` leaves some out, before the batch is cut into microbatches,
    so k microbatches of B / k give the loss and the gradients of one batch of B.

    Args:
      sources: number of sources in the blend.
      microbatches: parts of a batch, of B / microbatches rows each; gradients added in float32.
      z_loss: coefficient of log(Z)^2.
      loss_chunk_tokens, loss_vocab_chunks: as in `partitioning.Topology`.
      eos_id: the token that ends a document.
      packing: how the rows of a batch were made, and whether their documents see each other.

    Returns:
      step(state, batch, sums, limits) -> (state, metrics, sums). Metrics of this step, float32 []:
      loss (nats per token, without the z term), grad_norm (before clipping), param_norm (after the
      update), learning_rate; bool [], applied; float32 [4], seen (see SEEN); float32 [B], row_nats
      (the summed -log p of each row); and MONITORS, with microbatches NOISE too, of
      `step.monitors`. The sums are those given and those of this step. Where the update is not
      applied, parameters, optimizer state and sums stay as they were, bit for bit; the step moves
      on.

    Tracing raises:
      UsageError: rows so short that `packing` would learn from nothing.
    """
    softcap = model.architecture.logit_softcap
    optimizer = optax.with_extra_args_support(optimizer)

    def loss_of(parameters: dict, rows: jax.Array, weights: jax.Array | None, mean: float):
        decoder = model(parameters)
        inputs, targets, after_split = row_predictions(rows, packing)
        segments = None
        if not packing.attend_across_documents:
            segments = row_segments(inputs, after_split, eos_id)
        hidden, _ = decoder(inputs, segments=segments)
        return next_token_loss(
            hidden,
            decoder.output_matrix(),
            targets,
            jnp.full(targets.shape, mean, jnp.float32) if weights is None else weights,
            chunk_tokens=loss_chunk_tokens,
            vocab_chunks=loss_vocab_chunks,
            softcap=softcap,
            z_loss=z_loss,
        )

    def weights_of(rows: jax.Array) -> jax.Array:
        inputs, _, after_split = row_predictions(rows, packing)
        if packing.loss_from_context > inputs.shape[1]:
            raise UsageError(
                f"Packing.loss_from_context = {packing.loss_from_context} leaves nothing to learn "
                f"from in rows of this sequence length: {inputs.shape[1]} or fewer"
            )
        before = segment_positions(row_segments(inputs, after_split, eos_id))
        learnt = before + 1 >= packing.loss_from_context
        return learnt / jnp.maximum(learnt.sum(), 1).astype(jnp.float32)

    def gradients_of(parameters: dict, rows: jax.Array, weights: jax.Array | None):
        """(losses of the rows, float32 [k] squared norms of the microbatches, gradients)."""
        sequence_length = rows.shape[1] + 1 - batch_width(0, packing)
        mean = 1 / (rows.shape[0] * sequence_length)
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        if microbatches == 1:
            (_, losses), gradients = gradient(parameters, rows, weights, mean)
            return losses, None, gradients

        # Row b goes to microbatch b % k: every device then keeps rows of its own shard.
        def cut(array: jax.Array) -> jax.Array:
            pieces = array.reshape(-1, microbatches, array.shape[1]).swapaxes(0, 1)
            return constrain(pieces, None, BATCH, None)

        def add(total, piece):
            (_, losses), gradients = gradient(parameters, *piece, mean)
            square = jnp.square(optax.tree.norm(gradients))
            return jax.tree.map(jnp.add, total, gradients), (losses, square)

        zeros = jax.tree.map(jnp.zeros_like, parameters)
        pieces = jax.tree.map(cut, (rows, weights))
        gradients, (losses, squares) = jax.lax.scan(add, zeros, pieces)
        losses = jax.tree.map(lambda loss: loss.swapaxes(0, 1).reshape(-1), losses)
        return losses, squares, gradients

    def step(
        state: State, batch: Batch, sums: LossSums, limits: Limits
    ) -> tuple[State, Metrics, LossSums]:
        parameters, source, rows = state["parameters"], batch[:, 0], batch[:, 1:]
        weights = weights_of(rows) if packing.loss_from_context > 1 else None
        (nll, z, largest_logit), squares, gradients = gradients_of(parameters, rows, weights)
        # The partitioner may drop a gradient's sharding; without it, no reduce-scatter.
        gradients = jax.tree.map(
            lambda leaf, gradient: jax.lax.with_sharding_constraint(gradient, leaf.sharding),
            model.updates,
            gradients,
        )
        loss, grad_norm = nll.sum(), optax.tree.norm(gradients)
        measured = jnp.stack([loss, grad_norm])
        applied = jnp.all(jnp.isfinite(measured) & (measured <= limits))

        def update(operands: tuple[dict, Any, dict]) -> tuple[dict, Any, jax.Array]:
            parameters, optimizer_state, gradients = operands
            updates, optimizer_state = optimizer.update(
                gradients, optimizer_state, parameters, step=state["step"]
            )
            ratio = update_ratio(updates, parameters)
            return optax.apply_updates(parameters, updates), optimizer_state, ratio

        # A `where` over the state costs XLA's CPU compiler a copy of it.
        parameters, optimizer_state, ratio = jax.lax.cond(
            applied,
            update,
            lambda operands: (*operands[:2], jnp.float32(0)),
            (parameters, state["optimizer"], gradients),
        )
        param_norm = optax.tree.norm(parameters)
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "applied": applied,
            "param_norm": param_norm,
            SEEN: jnp.stack([loss, grad_norm, param_norm, applied.astype(jnp.float32)]),
            "learning_rate": learning_rate(state["step"]),
            **rms_monitors(parameters),
            UPDATE_RATIO: ratio,
            LARGEST_LOGIT: largest_logit.max(),
        }
        sequence_length = rows.shape[1] + 1 - batch_width(0, packing)
        if squares is not None:
            metrics |= noise_estimates(grad_norm, squares, rows.shape[0] * sequence_length)
        if weights is None:
            tokens = jnp.full(nll.shape, sequence_length, jnp.float32)
        else:
            tokens = (weights > 0).sum(1, dtype=jnp.float32)
        # The losses of the rows are shares of a mean over the tokens of the batch.
        of_rows = jnp.stack([nll * tokens.sum(), z * tokens.sum(), tokens])
        metrics[ROW_NATS] = of_rows[0]
        # A sum, since the factors of a product may be rounded to fewer bits on an accelerator.
        is_source = jax.nn.one_hot(source, sources, dtype=jnp.float32)
        sums = jnp.where(applied, sums + (of_rows[:, :, None] * is_source).sum(1), sums)
        new_state = {
            "step": state["step"] + 1,
            "parameters": parameters,
            "optimizer": optimizer_state,
        }
        return new_state, metrics, sums

    return step


def make_evaluation_step(
    model: BoundModel,
    *,
    loss_chunk_tokens: int,
    loss_vocab_chunks: int = 1,
    eos_id: int,
    packing: Packing = AS_STORED,
) -> Callable:
    """The summed loss of a batch.

    Rows are windows of the store in its order, also where those of training are not. Documents
    attend to each other as in training.

    Returns:
      evaluate(parameters, tokens int32 [B, S + 1], weights float32 [B, S]) -> (float32 [], float32
      [B]): the sum of weights * -log p(next token) in nats, and that sum of each row.
    """
    softcap = model.architecture.logit_softcap

    def evaluate(parameters: dict, tokens: jax.Array, weights: jax.Array):
        decoder = model(parameters)
        inputs, segments = tokens[:, :-1], None
        if not packing.attend_across_documents:
            segments = row_segments(inputs, None, eos_id)
        hidden, _ = decoder(inputs, segments=segments)
        _, (nll, *_) = next_token_loss(
            hidden,
            decoder.output_matrix(),
            tokens[:, 1:],
            weights,
            chunk_tokens=loss_chunk_tokens,
            vocab_chunks=loss_vocab_chunks,
            softcap=softcap,
        )
        return nll.sum(), nll

    return evaluate
