import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_style.accounting import Topology
from t5x_style.models import next_token_loss
from t5x_style.partitioning import in_force, make_mesh
from tests.jaxprs import shapes

BATCH, LENGTH, WIDTH, VOCABULARY = 8, 6, 16, 64


def problem(dtype=jnp.float32):
    """hidden, head, targets and weights, some weights zero."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(BATCH, LENGTH, WIDTH)), dtype)
    head = jnp.asarray(rng.normal(size=(VOCABULARY, WIDTH)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, VOCABULARY, (BATCH, LENGTH)), jnp.int32)
    weights = jnp.asarray(rng.random((BATCH, LENGTH)) * (rng.random((BATCH, LENGTH)) > 0.3))
    return hidden, head, targets, weights.astype(jnp.float32)


def by_optax(hidden, head, targets, weights, softcap, z_loss):
    """The same sums with all logits at once, differentiated by jax."""
    logits = jnp.einsum("bsd,vd->bsv", hidden.astype(jnp.float32), head)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    nll = weights * optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    z = weights * z_loss * jax.nn.logsumexp(logits, -1) ** 2
    return nll.sum() + z.sum(), (nll.sum(1), z.sum(1), logits.max((1, 2)))


@functools.partial(jax.jit, static_argnames=("softcap", "z_loss"))
def expected(hidden, head, targets, weights, softcap=None, z_loss=0.0):
    gradient = jax.value_and_grad(by_optax, (0, 1), has_aux=True)
    return gradient(hidden, head, targets, weights, softcap, z_loss)


def ours(hidden, head, targets, weights, **options):
    gradient = jax.value_and_grad(
        functools.partial(next_token_loss, **options), (0, 1), has_aux=True
    )
    return jax.jit(gradient)(hidden, head, targets, weights)


def assert_close(got, right, tolerance=2e-5):
    """Loss, rows and gradients; each within the tolerance of its largest entry."""
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(right), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max() + 1e-30)


BY_TOKENS = {"chunk_tokens": 7}
BY_WORDS = {"chunk_tokens": 1, "vocab_chunks": 4}
both_forms = pytest.mark.parametrize("chunks", [BY_TOKENS, BY_WORDS], ids=["tokens", "words"])


@pytest.mark.parametrize(
    ("chunks", "softcap", "z_loss"),
    [
        ({"chunk_tokens": 10_000}, None, 0.0),  # one chunk
        ({"chunk_tokens": 7}, None, 1e-2),  # 48 tokens are not a multiple: chunks of six
        ({"chunk_tokens": 5}, 3.0, 0.0),
        ({"chunk_tokens": 16}, 3.0, 1e-2),
        ({"chunk_tokens": 1}, None, 0.0),
        (BY_WORDS, None, 0.0),
        (BY_WORDS | {"vocab_chunks": 2}, None, 1e-2),
        (BY_WORDS | {"vocab_chunks": VOCABULARY}, 3.0, 1e-2),
    ],
)
def test_loss_and_gradients_against_optax(chunks, softcap, z_loss):
    got = ours(*problem(), **chunks, softcap=softcap, z_loss=z_loss)
    assert_close(got, expected(*problem(), softcap=softcap, z_loss=z_loss))


@both_forms
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_loss_and_gradients_against_float64(chunks, scale):
    """By hand, with numpy; of logits that reach hundreds, too, where exp overflows float32."""
    hidden, head, targets, weights = (np.asarray(x, np.float64) for x in problem())
    hidden, cap, z_loss = hidden * scale, 200.0, 1e-3
    logits = cap * np.tanh(hidden @ head.T / cap)
    top = logits.max(-1, keepdims=True)
    log_z = top + np.log(np.exp(logits - top).sum(-1, keepdims=True))
    one_hot = np.eye(VOCABULARY)[targets.astype(int)]
    nll = weights * (log_z[..., 0] - (logits * one_hot).sum(-1))
    z = weights * z_loss * log_z[..., 0] ** 2
    slope = (1 + 2 * z_loss * log_z) * np.exp(logits - log_z) - one_hot
    slope *= weights[..., None] * (1 - (logits / cap) ** 2)
    right = (
        (nll.sum() + z.sum(), (nll.sum(1), z.sum(1), logits.max((1, 2)))),
        (slope @ head, np.einsum("bsv,bsd->vd", slope, hidden)),
    )
    arguments = (hidden.astype(np.float32), *problem()[1:])
    assert_close(ours(*arguments, **chunks, softcap=cap, z_loss=z_loss), right)


MESHES = {
    "data": Topology(data=8),
    "fsdp": Topology(fsdp=8),
    "fsdp x tensor": Topology(fsdp=2, tensor=4),
    "data x fsdp x tensor": Topology(data=2, fsdp=2, tensor=2),
    "fsdp x sequence": Topology(fsdp=4, sequence=2),
    "tensor x sequence": Topology(tensor=4, sequence=2),
    "head split along its width by fsdp and tensor": Topology(
        fsdp=4,
        tensor=2,
        rules={"embed": ("fsdp", "tensor")}
        | dict.fromkeys(("vocab", "heads", "kv_heads", "mlp"), None),
    ),
    "head whole on every device": Topology(fsdp=4, tensor=2, rules={"vocab": None, "embed": None}),
}


@both_forms
@pytest.mark.parametrize("name", MESHES)
def test_the_same_on_every_mesh(name, chunks):
    topology = MESHES[name]
    mesh = make_mesh(topology)
    with in_force(topology, mesh):
        got = ours(*problem(), **chunks, softcap=3.0, z_loss=1e-2)
    assert_close(got, expected(*problem(), softcap=3.0, z_loss=1e-2))


@both_forms
def test_evaluation_computes_the_training_loss(chunks):
    """The pass without gradients is another branch: value and rows are the same bits."""
    options = {**chunks, "softcap": 3.0, "z_loss": 1e-2}
    alone = jax.jit(functools.partial(next_token_loss, **options))(*problem())
    assert_close(alone, ours(*problem(), **options)[0], tolerance=1e-7)
    topology = MESHES["data x fsdp x tensor"]
    with in_force(topology, make_mesh(topology)):
        on_mesh = jax.jit(functools.partial(next_token_loss, **options))(*problem())
    assert_close(on_mesh, alone)


def test_gradients_scale_with_the_loss():
    def tripled(*arguments):
        loss, rows = next_token_loss(*arguments, chunk_tokens=7)
        # The rows are for the record: nothing flows back through them.
        return 3 * loss + 100 * rows[0].sum()

    got = jax.jit(jax.grad(tripled, (0, 1)))(*problem())
    _, gradients = expected(*problem())
    assert_close(got, jax.tree.map(lambda leaf: 3 * leaf, gradients))


@both_forms
def test_under_bfloat16_the_head_gradient_is_float32_and_both_are_near(chunks):
    got = ours(*problem(jnp.bfloat16), **chunks)
    right = expected(*problem())
    assert [leaf.dtype for leaf in got[1]] == [jnp.bfloat16, jnp.float32]
    assert got[0][0].dtype == jnp.float32
    assert_close(got, right, tolerance=0.03)


def test_the_logits_of_all_tokens_are_never_held():
    """Forward and backward, the largest array with a side of V has one chunk on the other."""
    arguments = problem()
    gradient = jax.grad(functools.partial(next_token_loss, chunk_tokens=8), (0, 1), has_aux=True)
    held = shapes(jax.make_jaxpr(gradient)(*arguments).jaxpr)
    with_words = {shape for shape in held if VOCABULARY in shape}
    assert (8, VOCABULARY) in with_words
    largest = max(int(np.prod(shape)) for shape in with_words)
    assert largest == VOCABULARY * WIDTH  # the head itself and its gradient
    assert largest < BATCH * LENGTH * VOCABULARY


def test_by_words_no_more_than_a_chunk_of_the_head_is_gathered():
    """Four chips hold a quarter of D each; the widest that any has of it are 8 of 64 words."""
    topology = Topology(fsdp=4, data=2)
    gradient = jax.grad(
        functools.partial(next_token_loss, chunk_tokens=1, vocab_chunks=8), (0, 1), has_aux=True
    )
    with in_force(topology, make_mesh(topology)):
        held = shapes(jax.make_jaxpr(gradient)(*problem()).jaxpr)
    tokens = BATCH * LENGTH // 8
    assert {(8, WIDTH // 4), (8, WIDTH), (tokens, 8)} <= held
    # The head as it lies, whole in the program's view and a quarter in the device's.
    assert {shape for shape in held if VOCABULARY in shape} == {
        (VOCABULARY, WIDTH),
        (VOCABULARY, WIDTH // 4),
    }
