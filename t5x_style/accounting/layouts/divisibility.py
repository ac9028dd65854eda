"""Which topologies divide a model and a batch, for the planner, `compile` and a run."""

from t5x_style.accounting.step_shape import StepShape
from t5x_style.accounting.topology import (
    BATCH,
    EMBED,
    HEADS,
    HEADS_ROWS,
    KV_HEADS,
    MLP,
    MLP_ROWS,
    SEQUENCE,
    UPDATES,
    VOCAB,
    Topology,
)
from t5x_style.errors import UsageError

_ROWS = (VOCAB, EMBED, MLP_ROWS, HEADS_ROWS)


def check_divisible(shape: StepShape, topology: Topology) -> None:
    """Refuse a mesh that does not divide the sizes that it splits, and chunks that divide nothing.

    Raises:
      UsageError: the message has the size, the axes and the next size that they divide.
    """
    if (reason := indivisible(shape, topology)) is not None:
        raise UsageError(reason)


def indivisible(shape: StepShape, topology: Topology) -> str | None:
    """Why a topology does not divide a step; None where it does."""
    a = shape.architecture
    if shape.sequences % topology.microbatches:
        return (
            f"BATCH_SIZE = {shape.sequences} is not a multiple of Topology.microbatches = "
            f"{topology.microbatches}"
        )
    for name, size, axis in (
        ("the batch", shape.sequences // topology.microbatches, BATCH),
        ("the sequence length", shape.sequence_length, SEQUENCE),
        ("Architecture.heads", a.heads, HEADS),
        ("Architecture.kv_heads", a.kv_heads, KV_HEADS),
        ("Architecture.d_ff", a.d_ff, MLP),
        ("Architecture.d_ff", a.d_ff, MLP_ROWS),
        ("Architecture.vocab_size", a.vocab_size, VOCAB),
        ("Architecture.d_model", a.d_model, EMBED),
        ("heads x head_dim", a.heads * a.head_dim, HEADS_ROWS),
    ):
        axes = topology.axes_of(axis)
        if axis in _ROWS:
            axes += tuple(extra for extra in topology.axes_of(UPDATES) if extra not in axes)
        pieces = topology.pieces(axes)
        axes_text = f"the mesh's {' x '.join(axes)}"
        if axis == SEQUENCE and pieces > 1:
            # The devices exchange halves of their pieces (see `models.attention`).
            pieces, axes_text = 2 * pieces, f"twice {axes_text}"
        if size % pieces:
            return (
                f"{name} = {size} is not a multiple of {axes_text} = {pieces}: the next multiple "
                f"is {-(-size // pieces) * pieces}"
            )
    replicas = topology.pieces(topology.axes_of(UPDATES))
    if a.position_rows % replicas:
        return (
            f"Architecture.max_length = {a.position_rows} is not a multiple of the mesh's data = "
            f"{replicas}, over which Topology.shard_optimizer_over_data splits the positions' "
            f"state: the next multiple is {-(-a.position_rows // replicas) * replicas}"
        )
    device_words = a.vocab_size // topology.pieces(topology.axes_of(VOCAB))
    if device_words % topology.loss_vocab_chunks:
        divisors = [n for n in range(1, device_words + 1) if device_words % n == 0]
        nearest = min(divisors, key=lambda n: abs(n - topology.loss_vocab_chunks))
        return (
            f"Topology.loss_vocab_chunks = {topology.loss_vocab_chunks} does not divide the "
            f"{device_words} words of the vocabulary that a device holds: the nearest divisor is "
            f"{nearest}"
        )
    return None
