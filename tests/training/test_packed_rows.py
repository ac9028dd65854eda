"""The train step on rows of several documents, against each document run by itself."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import optax
import pytest

from t5x_style.accounting import Topology
from t5x_style.data import BatchReader, Blend, EvaluationSet, Packing, Rows, TokenStore
from t5x_style.errors import UsageError
from t5x_style.models.layers import segment_positions
from t5x_style.partitioning import batch_sharding, in_force, make_mesh
from t5x_style.step.model_state import abstract_state, bind_model, fresh_state
from t5x_style.step.step import (
    NO_LIMITS,
    batch_width,
    make_train_step,
    packed_batch,
    row_predictions,
    row_segments,
)
from t5x_style.training.evaluation import Evaluator
from tests.training.runs import ARCHITECTURE, EOS, SEQUENCE, VOCABULARY

ARCH = dataclasses.replace(ARCHITECTURE, d_model=32, head_dim=4, d_ff=48)
LEARNED = dataclasses.replace(ARCH, positions="learned", max_length=SEQUENCE)
BATCH, RATE, Z_LOSS = 8, 0.5, 1e-2
APART = Packing(attend_across_documents=False)
TURNED = Packing("document_starts")


@functools.cache
def store(name: str) -> TokenStore:
    """Documents of 1 to 30 tokens, so that some windows hold several and some no end of one."""
    rng = np.random.default_rng(len(name))
    documents = [
        [*rng.integers(2, VOCABULARY, length - 1), EOS]
        for length in rng.choice([1, 2, 4, 7, 30], 200)
    ]
    return TokenStore(
        path=pathlib.Path(name),
        tokens=np.concatenate(documents).astype(np.uint16),
        document_ends=np.cumsum([len(document) for document in documents]),
        meta={},
    )


@functools.cache
def rows_of(packing: Packing) -> Rows:
    """The same windows of two sources for either packing."""
    return BatchReader(
        Blend.constant({"a": 0.5, "another": 0.5}),
        {name: store(name) for name in ("a", "another")},
        sequence_lengths=[(0, SEQUENCE)],
        seed=0,
        document_starts=packing.document_starts,
    ).rows(np.arange(40, 40 + BATCH))


def documents_in(window: np.ndarray) -> list[np.ndarray]:
    """A window of S + 1 tokens cut before each EOS, which goes with what follows it; each piece
    with the one token more that it ends by predicting."""
    eos = [at for at in range(1, SEQUENCE) if window[at] == EOS]
    return [window[a : b + 1] for a, b in zip([0, *eos], [*eos, SEQUENCE], strict=True)]


@functools.cache
def lessons(packing: Packing) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What `packing` learns from, each context as a row of its own, padded behind: inputs and
    targets int [n, S], whether a prediction is learnt from bool [n, S], source [n]."""
    plain, packed = rows_of(Packing()), rows_of(packing)
    found = []
    for row, window in enumerate(plain.tokens):
        pieces = documents_in(window)
        if packing.document_starts and packed.split_position[row] < SEQUENCE:
            pieces = pieces[1:] + pieces[:1]
        learnt = [np.arange(1, len(piece)) >= packing.loss_from_context for piece in pieces]
        if packing.attend_across_documents:
            inputs = [np.concatenate([piece[:-1] for piece in pieces])]
            targets = [np.concatenate([piece[1:] for piece in pieces])]
            learnt = [np.concatenate(learnt)]
        else:
            inputs = [piece[:-1] for piece in pieces]
            targets = [piece[1:] for piece in pieces]
        for lesson in zip(inputs, targets, learnt, strict=True):
            padded = [np.pad(item, (0, SEQUENCE - len(item))) for item in lesson]
            found.append((*padded, plain.source[row]))
    return tuple(np.array(item) for item in zip(*found, strict=True))


@functools.cache
def first_parameters(arch=ARCH) -> dict:
    topology = Topology()
    mesh = make_mesh(topology)
    with in_force(topology, mesh):
        return jax.device_get(bind_model(arch, topology, mesh, "float32").fresh_parameters(0))


@functools.cache
def expected(packing: Packing, arch=ARCH):
    """(loss, z term, source losses, gradients), from whole logits and by optax."""
    inputs, targets, learnt, source = lessons(packing)
    topology = Topology()
    mesh = make_mesh(topology)
    with in_force(topology, mesh):
        model = bind_model(arch, topology, mesh, "float32")

        def loss(parameters):
            decoder = model(parameters)
            logits = decoder.logits(decoder(inputs)[0])
            nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            z = Z_LOSS * jax.nn.logsumexp(logits, -1) ** 2
            return ((nll + z) * learnt).sum() / learnt.sum(), (nll, z)

        gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (_, (nll, z)), gradients = jax.device_get(gradient(first_parameters(arch)))
    of_source = [
        np.average(nll[source == k], weights=learnt[source == k].astype(float)) for k in (0, 1)
    ]
    nll, z = (np.average(loss, weights=learnt.astype(float)) for loss in (nll, z))
    return nll, z, of_source, gradients


def after_a_step(packing: Packing, microbatches: int = 1, arch=ARCH, **topology):
    """(metrics, sums, gradients) of a step on the packed rows."""
    topology = Topology(**topology)
    mesh = make_mesh(topology)
    optimizer = optax.sgd(RATE)
    with in_force(topology, mesh):
        model = bind_model(arch, topology, mesh, "float32")
        target = abstract_state(model, optimizer, mesh)
        state = fresh_state(model, optimizer, target, 0)
        step = make_train_step(
            model,
            optimizer,
            lambda _: RATE,
            sources=3,
            microbatches=microbatches,
            z_loss=Z_LOSS,
            loss_chunk_tokens=24,
            eos_id=EOS,
            packing=packing,
        )
        batch = packed_batch(rows_of(packing))
        assert batch.shape == (BATCH, batch_width(SEQUENCE, packing))
        batch = jax.device_put(batch, batch_sharding(mesh))
        none = np.zeros((3, 3), np.float32)
        new, metrics, sums = jax.jit(step)(state, batch, none, NO_LIMITS)
        after = jax.device_get(new["parameters"])
    gradients = jax.tree.map(lambda new, old: (old - new) / RATE, after, first_parameters(arch))
    return *jax.device_get((metrics, sums)), gradients


def test_the_made_up_rows_hold_what_is_to_be_tested():
    pieces = [len(documents_in(window)) for window in rows_of(Packing()).tokens]
    assert min(pieces) == 1
    assert max(pieces) > 2
    join = rows_of(TURNED).split_position
    assert (join < SEQUENCE).sum() > 3
    assert (join == SEQUENCE).any()


@pytest.mark.parametrize(
    ("packing", "layout"),
    [
        (APART, {}),
        (Packing(loss_from_context=5), {"microbatches": 4}),
        (Packing("document_starts", loss_from_context=3), {}),
        (
            Packing("document_starts", False, 3),
            {"microbatches": 2, "data": 2, "fsdp": 2, "tensor": 2},
        ),
        (
            Packing("document_starts", False),
            {"fsdp": 2, "tensor": 2, "sequence": 2, "kernel": "blockwise", "remat": "full"},
        ),
        (APART, {"arch": LEARNED}),
        (
            Packing("document_starts", False),
            {"arch": LEARNED, "microbatches": 2, "fsdp": 2, "tensor": 2, "sequence": 2},
        ),
    ],
    ids=[
        "apart",
        "context x4",
        "turned",
        "all of it x2 on a mesh",
        "turned over the sequence",
        "learned positions",
        "learned positions, turned, x2 over the sequence",
    ],
)
def test_loss_and_gradients_are_those_of_the_documents_by_themselves(packing, layout):
    nll, z, of_source, gradients = expected(packing, layout.get("arch", ARCH))
    metrics, (nats, z_nats, tokens), got = after_a_step(packing, **layout)
    assert metrics["loss"] == pytest.approx(nll, rel=1e-5)
    assert nats.sum() / tokens.sum() == pytest.approx(nll, rel=1e-5)
    assert z_nats.sum() / tokens.sum() == pytest.approx(z, rel=1e-5)
    np.testing.assert_allclose(nats[:2] / tokens[:2], of_source, rtol=1e-5)
    learnt, source = lessons(packing)[2:]
    assert tokens.tolist() == [learnt[source == index].sum() for index in range(3)]
    assert nats[2] == 0
    for (path, right), ours in zip(
        jax.tree_util.tree_flatten_with_path(gradients)[0], jax.tree.leaves(got), strict=True
    ):
        np.testing.assert_allclose(
            ours, right, rtol=0, atol=1e-4 * np.abs(right).max(), err_msg=jax.tree_util.keystr(path)
        )


def test_documents_apart_are_learnt_alike_from_either_windows():
    """What is turned is the same pieces in another order."""
    turned = dataclasses.replace(APART, windows="document_starts")
    assert expected(turned)[0] == pytest.approx(expected(APART)[0], rel=1e-6)
    assert expected(Packing())[0] != pytest.approx(expected(APART)[0], rel=1e-4)


def test_a_turned_row_by_hand():
    """The window 7 8 1 9 1 6 (S = 5) begins at its first EOS: 1 9 1 6 | 7 8 1."""
    rows = np.array([[3, 1, 9, 1, 6, 7, 8, 1]], np.int32)
    inputs, targets, behind = row_predictions(rows, TURNED)
    assert inputs.tolist() == [[1, 9, 1, 7, 8]]
    assert targets.tolist() == [[9, 1, 6, 8, 1]]
    segments = row_segments(inputs, behind, EOS)
    assert segments.tolist() == [[1, 1, 2, 3, 3]]
    assert segment_positions(segments).tolist() == [[0, 1, 0, 0, 1]]


def test_a_context_longer_than_a_row_is_refused():
    with pytest.raises(UsageError, match=r"Packing.loss_from_context = 17 .*: 16 or fewer"):
        after_a_step(Packing(loss_from_context=SEQUENCE + 1))


@pytest.mark.parametrize(
    ("packing", "arch"),
    [(Packing("document_starts", False, 3), ARCH), (TURNED, ARCH), (APART, LEARNED)],
)
def test_evaluation_keeps_documents_apart_where_training_does(packing, arch):
    """Over windows as they lie, whatever those of training, and with all that is predicted."""
    as_they_lie = Packing(attend_across_documents=packing.attend_across_documents)
    tokens = rows_of(as_they_lie).tokens
    weights = np.ones((BATCH, SEQUENCE), np.float32)
    topology = Topology(loss_chunk_tokens=24)
    mesh = make_mesh(topology)
    with in_force(topology, mesh):
        evaluator = Evaluator(
            bind_model(arch, topology, mesh, "float32"),
            mesh,
            {"a": EvaluationSet(tokens, weights, 1)},
            topology,
            batch_size=4,
            eos_id=EOS,
            packing=packing,
        )
        line = evaluator(jax.device_put(first_parameters(arch)))
    assert line["eval/a/loss"] == pytest.approx(expected(as_they_lie, arch)[0], rel=1e-5)
