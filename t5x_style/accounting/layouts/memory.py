"""Bytes that a training step holds on each device, from shapes alone.

The bytes held for the whole step (parameters, optimizer) are exact. Temporary bytes are estimated:
they count the arrays that the backward pass needs, and the compiler fuses some of them away and
copies others. The tests compare it with compiled steps, within 20 %; nothing here is fitted.
"""

import dataclasses

from t5x_style.accounting.architecture import Architecture
from t5x_style.accounting.attention_blocks import LANES, USUAL_BLOCK
from t5x_style.accounting.parameter_count import attention_widths, parameters, total_parameters
from t5x_style.accounting.recompute import KEEP_ATTENTION
from t5x_style.accounting.step_shape import ADAMW_BYTES, StepShape
from t5x_style.accounting.topology import Topology

# float32.
PARAMETER_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, by part.

    A step has phases, and not every part is in memory in all of them: `total` is the largest.

    Attributes:
      parameters, optimizer: the state, for the whole step.
      gradients: float32, sharded as the optimizer's state.
      summed_gradients: with microbatches, the sum so far next to a microbatch's own.
      activations: arrays that the forward pass keeps for the backward pass, all layers together.
      weights: one layer's weights gathered over fsdp in the compute dtype, and their gradients
        before they are scattered.
      layer: arrays that are computed for one layer at a time, without scores.
      scores: one layer's attention scores and weights; with the blockwise kernel a pair of blocks',
        and the gradients of queries, keys and values; with the flash kernel a sum for each query
        and head.
      logits: the head gathered, its float32 gradient, and a chunk's logits.
      lookup: the embedding gathered over fsdp, and its gradient before it is scattered.
      update: arrays that the optimizer writes next to the gradients.
    """

    parameters: int
    optimizer: int
    gradients: int
    summed_gradients: int
    activations: int
    weights: int
    layer: int
    scores: int
    logits: int
    lookup: int
    update: int

    @property
    def temporary(self) -> int:
        """Bytes without the state: of the loss, the backward pass through a layer or through the
        embedding, or the update, whichever is largest."""
        backward = self.gradients + self.weights + self.layer + self.scores
        passing = self.activations + max(self.logits, backward) + self.summed_gradients
        return max(passing, self.gradients + max(self.lookup, self.update))

    @property
    def total(self) -> int:
        """Bytes at the fullest moment of the step: less than the sum of the parts."""
        return self.parameters + self.optimizer + self.temporary


def checkpoint_bytes(arch: Architecture, optimizer_bytes: int = ADAMW_BYTES) -> int:
    """A checkpoint's size: parameters and optimizer state, 12 bytes a parameter with AdamW."""
    return total_parameters(arch) * (PARAMETER_BYTES + optimizer_bytes)


def parameters_per_device(arch: Architecture, topology: Topology, replicas: int = 1) -> int:
    """Parameters on one device under the default rules.

    Matrices are split over fsdp x tensor; the biases of columns that tensor splits, over tensor;
    learned positions over fsdp; norms and the biases of residual matrices are whole.

    Args:
      replicas: pieces into which the matrices and the positions are cut once more, as the
        optimizer's state is with `Topology.shard_optimizer_over_data`.
    """
    queries, keys = attention_widths(arch)
    terms = parameters(arch)
    inner = arch.d_ff * arch.feed_forward_kind.input_matrices
    split = arch.layers * (queries + 2 * keys + inner) if arch.biases else 0
    whole = terms["norms"] + (2 * arch.layers * arch.d_model if arch.biases else 0)
    matrices = sum(terms.values()) - terms["positions"] - split - whole
    return (
        matrices // (topology.fsdp * topology.tensor * replicas)
        + split // topology.tensor
        + terms["positions"] // (topology.fsdp * replicas)
        + whole
    )


def kept_bytes_per_layer(shape: StepShape, topology: Topology, tokens: int) -> int:
    """Bytes that the forward pass keeps of one layer for the backward pass, without weights.

    These are the arrays that the scan over the layers stacks:
      full: the layer's input; offload: the same, the rest is in the host's memory.
      save_attention: that, the attended values (and float32 log-sum-exps where the kernel is not
        'plain'), and the result of attention's last matrix (in a parallel block no gradient reads
        it).
      save_qkv_out: that, and queries, keys and values; save_qkv: without attention's last product.
      save_dots: that, the attended values (and log-sum-exps), and the result of every weight matrix
        but the feed-forward's last, which no gradient reads (nor attention's last, in a parallel
        block).
      none: the input and the result of each norm; queries, keys, values and the attended values;
        float32 exponentials and weights of the scores [T, N, S] (plain kernel), or the attended
        values once more, by blocks, and float32 log-sum-exps (blockwise); the result of the
        feed-forward's first matrices and the input of its last one.

    Args:
      tokens: T, on one device. `Topology.tensor` splits heads and F; the residual stream is whole.
    """
    arch, c, tensor = shape.architecture, shape.compute_bytes, topology.tensor
    remat, kernel, width = topology.remat, topology.kernel, arch.d_model
    if remat in ("full", "offload"):
        return tokens * c * width
    columns, keys = attention_widths(arch)
    norms = 1 if arch.parallel_block else 2
    attended = c * columns + (0 if kernel == "plain" else 4 * arch.heads)
    if remat in ("save_attention", "save_qkv", "save_qkv_out"):
        whole = 1 if remat == "save_qkv" else norms
        split = attended + (0 if remat == "save_attention" else c * (columns + 2 * keys))
        return tokens * (c * whole * width + split // tensor)
    if remat == "save_dots":
        inner = arch.d_ff * arch.feed_forward_kind.input_matrices
        split = attended + c * (columns + 2 * keys + inner)
        return tokens * (c * norms * width + split // tensor)
    split = _attention_bytes(arch, shape.sequence_length, kernel, c)
    split += c * arch.d_ff * arch.feed_forward_kind.kept_arrays
    if arch.qk_norm:
        split += c * (columns + keys)
    return tokens * (2 * c * norms * width + split // tensor)


def _attention_bytes(arch: Architecture, sequence_length: int, kernel: str, c: int) -> int:
    """Bytes of a token's queries, keys, values and the kernel's residuals; c bytes a number."""
    columns, keys = attention_widths(arch)
    if kernel == "plain":
        residuals = arch.heads * (sequence_length * (4 + c) + 8)
    else:
        residuals = c * columns + 4 * arch.heads if kernel == "blockwise" else 0
    return c * (2 * columns + 2 * keys) + residuals


def _backward_bytes_per_layer(
    arch: Architecture, tokens: int, sequence_length: int, kernel: str, tensor: int, c: int
) -> int:
    """Bytes that a layer holds at once while the backward pass is in it.

    They are the arrays that it keeps under 'none', and the factors of the derivatives of its norms
    (three float32 arrays [T, D] and two [T, 1] each) and of its activation: six arrays [T, F] for
    gelu, two and a mask for relu2. For swiglu they are four, its two products and their gradients;
    the rest is computed from them where it is read.
    """
    columns, keys = attention_widths(arch)
    norms = 1 if arch.parallel_block else 2
    split = _attention_bytes(arch, sequence_length, kernel, c)
    split += arch.d_ff * arch.feed_forward_kind.factor_bytes(c)
    if arch.qk_norm:
        split += 12 * (columns + keys) + 8 * (arch.heads + arch.kv_heads)
    return tokens * (norms * (12 * arch.d_model + 8 + c * arch.d_model) + split // tensor)


def step_memory(shape: StepShape, topology: Topology) -> Memory:
    """Bytes per device of a training step under the default rules.

    Args:
      shape: data x fsdp x microbatches of the topology divides its sequences.
    """
    arch, sequence_length, c = shape.architecture, shape.sequence_length, shape.compute_bytes
    remat, kernel, tensor = topology.remat, topology.kernel, topology.tensor
    own = parameters_per_device(arch, topology)
    replicas = topology.data if topology.shard_optimizer_over_data else 1
    updated = parameters_per_device(arch, topology, replicas)
    rows = shape.sequences // (topology.data * topology.fsdp * topology.microbatches)
    tokens = rows * sequence_length // topology.sequence
    matrices = _layer_matrices(arch)
    kept = kept_bytes_per_layer(shape, topology, tokens)
    activations = arch.layers * kept
    if kernel == "flash" and remat not in ("full", "offload"):
        # A head's features of its output are along the lanes of a TPU, padded to 128.
        padding = -arch.head_dim % LANES
        activations += arch.layers * tokens * c * arch.heads * padding // tensor
    if remat == "none" and c < PARAMETER_BYTES:
        # Without remat the scan also keeps each layer's weights as they were multiplied.
        activations += arch.layers * matrices * c // (topology.fsdp * tensor)
    # One layer with nothing recomputed. Its scores are counted apart: flash keeps none.
    scoreless = "flash" if kernel == "plain" else kernel
    layer = _backward_bytes_per_layer(arch, tokens, sequence_length, scoreless, tensor, c)
    if remat in KEEP_ATTENTION:
        # The arrays that are kept of the layer are counted already.
        layer = max(0, layer - kept)
    if topology.sequence > 1:
        # Keys and values of the whole sequence.
        _, keys = attention_widths(arch)
        layer += 2 * c * rows * sequence_length * keys // tensor
    # float32 scores and exponentials, and the weights in the compute dtype.
    scores = tokens * sequence_length * (arch.heads // tensor) * (4 + 4 + c)
    if kernel == "blockwise":
        # float32 weights and their gradient, which the gradient of the scores replaces.
        block = topology.attention_block or USUAL_BLOCK
        pairs = min(tokens, rows * block) * min(sequence_length, block)
        scores = pairs * (arch.heads // tensor) * (4 + 4)
        # Queries, keys and values by blocks, and their gradients added up in float32.
        columns, keys = attention_widths(arch)
        scores += (4 + c) * tokens * (columns + 2 * keys) // tensor
    if kernel == "cudnn":
        # Those stay on the chip; the output is each query's log-sum-exp.
        scores = tokens * (arch.heads // tensor) * 4
    if kernel == "flash":
        # Those stay on the chip; the output is each query's log-sum-exp, as a row of float32 lanes.
        scores = tokens * (arch.heads // tensor) * LANES * 4

    # Weights are used in place if nothing has to be gathered or cast.
    copied = topology.fsdp > 1 or c < PARAMETER_BYTES
    vocabulary = arch.vocab_size // tensor
    head = vocabulary * arch.d_model
    # float32 logits and their exponentials; the gradient takes the place of one of them.
    chunk = min(tokens, topology.loss_chunk_tokens) * vocabulary * (4 + 4)
    logits = head * (4 + c if copied else 4) + chunk + c * tokens * arch.d_model
    if topology.loss_vocab_chunks > 1:
        # A chunk of the head and of its gradient; the gradient's shard, and the gradient of the
        # hidden states, which is summed in float32.
        pieces = (
            head * (4 + c if copied else 4) + tokens * vocabulary * (4 + 4)
        ) // topology.loss_vocab_chunks
        logits = pieces + 4 * head // topology.fsdp + 4 * tokens * arch.d_model
    return Memory(
        parameters=own * PARAMETER_BYTES,
        optimizer=updated * shape.optimizer_bytes,
        gradients=updated * PARAMETER_BYTES,
        summed_gradients=updated * PARAMETER_BYTES if topology.microbatches > 1 else 0,
        activations=activations,
        weights=2 * c * matrices // tensor if copied else 0,
        layer=layer,
        scores=scores,
        logits=logits,
        lookup=2 * c * head if topology.fsdp > 1 else 0,
        update=updated * PARAMETER_BYTES,
    )


def _layer_matrices(arch: Architecture) -> int:
    """Elements of one layer's matrices, without biases."""
    columns, keys = attention_widths(arch)
    inner = arch.d_ff * arch.feed_forward_kind.matrices
    return arch.d_model * (2 * columns + 2 * keys + inner)
