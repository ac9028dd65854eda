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
    """Refuse a mesh that does not divide what it splits, and chunks that divide nothing.

    Raises:
      UsageError: the message names the size, the axes and the next size that would do.
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
    for what, size, axis in (
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
            axes += tuple(name for name in topology.axes_of(UPDATES) if name not in axes)
        pieces = topology.pieces(axes)
        named = f"the mesh's {' x '.join(axes)}"
        if axis == SEQUENCE and pieces > 1:
            # The devices exchange halves of their pieces (see `models.attention`).
            pieces, named = 2 * pieces, f"twice {named}"
        if size % pieces:
            return (
                f"{what} = {size} is not a multiple of {named} = {pieces}: the next multiple is "
                f"{-(-size // pieces) * pieces}"
            )
    replicas = topology.pieces(topology.axes_of(UPDATES))
    if a.positions == "learned" and a.max_length % replicas:
        return (
            f"Architecture.max_length = {a.max_length} is not a multiple of the mesh's data = "
            f"{replicas}, over which Topology.shard_optimizer_over_data splits the positions' "
            f"state: the next multiple is {-(-a.max_length // replicas) * replicas}"
        )
    own_words = a.vocab_size // topology.pieces(topology.axes_of(VOCAB))
    if own_words % topology.loss_vocab_chunks:
        divisors = [n for n in range(1, own_words + 1) if own_words % n == 0]
        nearest = min(divisors, key=lambda n: abs(n - topology.loss_vocab_chunks))
        return (
            f"Topology.loss_vocab_chunks = {topology.loss_vocab_chunks} does not divide the "
            f"{own_words} words of the vocabulary that a device holds: the nearest divisor is "
            f"{nearest}"
        )
    return None
