"""Sampling on known logits, and on a model that was never trained."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.accounting import Topology
from t5x_style.errors import UsageError
from t5x_style.inference import RestoredModel, sample, sampling
from t5x_style.partitioning import in_force, make_mesh
from t5x_style.step.model_state import bind_model
from tests.training.runs import ARCHITECTURE

DRAWS = 40_000
# Not in the order of their probability, as in a vocabulary.
PROBABILITIES = (0.15, 0.5, 0.05, 0.3)


def shares(temperature: float, top_p: float, seed: int = 0) -> list[float]:
    """How often each token is drawn."""
    logits = jnp.tile(jnp.log(jnp.array(PROBABILITIES)), (DRAWS, 1))
    drawn = sampling._draw(logits, jax.random.key(seed), temperature, top_p)
    assert drawn.dtype == jnp.int32
    return (np.bincount(drawn, minlength=4) / DRAWS).tolist()


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, PROBABILITIES),
        # Squares: 0.0225, 0.25, 0.0025, 0.09, of 0.365.
        (0.5, (0.0616, 0.6849, 0.0068, 0.2466)),
        # Roots: 0.3873, 0.7071, 0.2236, 0.5477, of 1.8657.
        (2.0, (0.2076, 0.3790, 0.1199, 0.2936)),
    ],
)
def test_a_temperature_divides_the_logits(temperature, expected):
    # Four standard errors of a share are 0.01.
    assert shares(temperature, 1.0) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("top_p", "temperature", "kept"),
    [
        (1e-6, 1.0, {1}),
        (0.49, 1.0, {1}),
        (0.51, 1.0, {1, 3}),
        (0.79, 1.0, {1, 3}),
        (0.81, 1.0, {0, 1, 3}),
        (0.96, 1.0, {0, 1, 2, 3}),
        # The squares of the shares: the likeliest has 0.685 alone.
        (0.6, 0.5, {1}),
    ],
)
def test_top_p_keeps_the_fewest_likeliest_tokens_that_reach_it(top_p, temperature, kept):
    found = shares(temperature, top_p)
    assert {token for token, share in enumerate(found) if share} == kept


def test_a_probability_that_is_just_reached_admits_no_further_token():
    # In float32 two of the tokens have a half each, and the last is the likelier of them.
    logits = jnp.tile(jnp.array([0.0, -200.0, 1e-30]), (100, 1))
    assert jax.nn.softmax(logits[0]).tolist() == [0.5, 0.0, 0.5]
    assert set(sampling._draw(logits, jax.random.key(0), 1.0, 0.5).tolist()) == {2}


def test_what_top_p_keeps_is_drawn_in_proportion():
    assert shares(1.0, 0.7) == pytest.approx((0, 0.5 / 0.8, 0, 0.3 / 0.8), abs=0.01)


def test_an_id_without_a_logit_takes_no_part():
    """The likeliest id is masked, which leaves 0.3, 0.1 and 0.6 of the others."""
    logits = jnp.log(jnp.array(PROBABILITIES)).at[1].set(-jnp.inf)
    logits = jnp.tile(logits, (DRAWS, 1))
    for temperature, top_p, expected in (
        (1.0, 1.0, [0.3, 0, 0.1, 0.6]),
        (1.0, 0.59, [0, 0, 0, 1]),
        (1.0, 0.61, [1 / 3, 0, 0, 2 / 3]),
        (1.0, 0.9999999, [0.3, 0, 0.1, 0.6]),
        # Squares: 0.09, 0.01 and 0.36, of 0.46.
        (0.5, 1.0, [0.1957, 0, 0.0217, 0.7826]),
        (0.0, 1.0, [0, 0, 0, 1]),
    ):
        drawn = sampling._draw(logits, jax.random.key(0), temperature, top_p)
        found = np.bincount(drawn, minlength=4) / DRAWS
        assert found.tolist() == pytest.approx(expected, abs=0.01)
        assert found[1] == 0


def test_a_temperature_of_zero_takes_the_likeliest():
    assert shares(0.0, 0.5) == [0, 1, 0, 0]


def test_another_seed_is_another_text():
    assert shares(1.0, 0.9, seed=1) == shares(1.0, 0.9, seed=1)
    assert shares(1.0, 0.9, seed=1) != shares(1.0, 0.9, seed=2)


def test_the_cache_gives_what_the_whole_text_gives():
    """Greedy: each token is the likeliest after all before it, read without a cache."""
    topology = Topology()
    mesh = make_mesh(topology)
    with in_force(topology, mesh):
        model = bind_model(ARCHITECTURE, topology, mesh, "float32")
        # Large weights: attention, and with it each position, decides about the next token.
        parameters = jax.tree.map(lambda leaf: 5 * leaf, model.fresh_parameters(0))
        prompt = jnp.array([[1, 7, 3], [1, 90, 41]], jnp.int32)
        every = jnp.ones(ARCHITECTURE.vocab_size, bool)
        drawn = jax.jit(
            lambda key: sampling._sample(
                model, parameters, every, prompt, key, max_tokens=12, temperature=0.0, top_p=1.0
            )
        )(jax.random.key(0))
        text = np.concatenate([prompt, drawn], axis=1)
        decoder = model(parameters)
        hidden, _ = decoder(text[:, :-1])
        likeliest = np.asarray(decoder.logits(hidden)).argmax(-1)
    assert drawn.shape == (2, 12)
    assert drawn.dtype == jnp.int32
    assert drawn.tolist() == likeliest[:, 2:].tolist()


class Letters:
    """A tokenizer whose ids are written as letters; 0 ends a document."""

    eos_id, vocab_size = 0, 27

    def token_bytes(self):
        return np.array([0, *[1] * 26])

    def encode(self, text):
        return [ord(letter) - ord("a") + 1 for letter in text]

    def decode(self, ids):
        return "".join(chr(ord("a") + token - 1) for token in ids)


@pytest.fixture
def restored(monkeypatch):
    """A model of 8 positions, which repeats the prompt between letters; and what it was given."""
    prompts = []

    def draw(model, parameters, drawable, prompt, key, *, max_tokens, temperature, top_p):
        assert drawable.shape == (32,)
        prompts.append((prompt.shape, max_tokens, temperature, top_p))
        first = jnp.arange(1, len(prompt) + 1)[:, None]
        drawn = jax.random.randint(key, (len(prompt), 1), 1, 27)
        end = jnp.zeros_like(first)
        return jnp.concatenate([first, prompt[:, 1:], drawn, end, first, end], 1)

    monkeypatch.setattr(sampling, "_sample", draw)
    topology = Topology()
    model = types.SimpleNamespace(architecture=types.SimpleNamespace(max_length=8, vocab_size=32))
    return RestoredModel(
        None, Letters(), topology, make_mesh(topology), model, {}, 3, None
    ), prompts


OPTIONS = {"samples": 2, "max_tokens": 4, "temperature": 0.5, "top_p": 0.25, "seed": 3}


def test_a_text_follows_an_end_of_document_and_stops_at_the_next(restored):
    model, prompts = restored
    one, two = sample(model, "xyz", **OPTIONS)
    assert (one[:-1], two[:-1]) == ("axyz", "bxyz")
    assert prompts == [((2, 4), 4, 0.5, 0.25)]
    assert sample(model, "xyz", **OPTIONS) == [one, two]
    others = {sample(model, "xyz", **OPTIONS | {"seed": seed})[0] for seed in range(8)}
    assert len(others) > 3
    # Without an end, all of it.
    assert sampling._up_to_end(np.array([5, 6]), 0) == [5, 6]
    assert sampling._up_to_end(np.array([0, 6]), 0) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # An end of document, three letters and four tokens are the eight positions.
        ({"max_tokens": 5}, "a prompt of 4 tokens and --max_tokens=5 exceed the model's 8 posi"),
        ({"max_tokens": 5}, "use --max_tokens=4 or fewer"),
        ({"temperature": -0.1}, "--temperature=-0.1 --top_p=0.25 --samples=2 --max_tokens=4: "),
        ({"top_p": 0.0}, "top_p is above 0 and at most 1"),
        ({"top_p": 1.01}, "top_p is above 0 and at most 1"),
        ({"samples": 0}, "the other two are 1 or more"),
        ({"max_tokens": 0}, "the other two are 1 or more"),
    ],
)
def test_what_cannot_be_sampled_is_refused(restored, change, message):
    with pytest.raises(UsageError, match=message):
        sample(restored[0], "xyz", **OPTIONS | change)


def test_the_bounds_of_the_options_are_allowed(restored):
    bounds = {"samples": 1, "max_tokens": 1, "temperature": 0, "top_p": 1}
    assert len(sample(restored[0], "abcdef", **OPTIONS | bounds)) == 1
    with pytest.raises(UsageError, match="use --max_tokens=0 or fewer"):
        sample(restored[0], "abcdefghi", **OPTIONS | bounds)
    restored[0].model.architecture.max_length = None
    assert len(sample(restored[0], "abcdefghi", **OPTIONS | bounds)) == 1
