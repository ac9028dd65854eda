"""A run that starts from weights of a smaller vocabulary: rows, what they are worth, refusals."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from t5x_style.accounting import Topology
from t5x_style.checkpoints import restore_parameters
from t5x_style.checkpoints.initial_weights import extended_rows, initial_parameters
from t5x_style.data import Source, Tokenizer, TokenStore, evaluation_set
from t5x_style.data.sources.documents import documents
from t5x_style.data.tokenizers.extend import Extension, extend_vocabulary
from t5x_style.data.tokenizers.made_from import json_file
from t5x_style.data.tokenizers.train import train_tokenizer
from t5x_style.errors import UsageError
from t5x_style.partitioning import in_force, make_mesh
from t5x_style.step.model_state import bind_model
from t5x_style.training import train
from t5x_style.training.evaluation import Evaluator
from tests.training.runs import (
    ARCHITECTURE,
    SEQUENCE,
    FakeStores,
    FakeTokenizer,
    constant,
    make_run,
)

LEGAL = Source(name="legal", splits={"train": "package:legal.validation.jsonl.gz"})
BASE, GROWN = 400, 440
SCORE = "eval/legal/bits_per_byte"


def texts(first: int, last: int) -> list[str]:
    return [text[:2000] for text in documents(LEGAL, "train")][first:last]


def store(tokenizer: Tokenizer, name: str, first: int, last: int) -> TokenStore:
    ids = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts(first, last)]
    return TokenStore(
        path=pathlib.Path(name),
        tokens=np.concatenate(ids).astype(np.uint16),
        document_ends=np.cumsum([len(document) for document in ids]),
        meta={
            "fingerprint": f"{name} {tokenizer.hash}",
            "documents": len(ids),
            "checksums": {"tokens.bin": f"{name} {tokenizer.hash}"},
        },
    )


def text_run(model_dir, tokenizer: Tokenizer, **changes):
    stores = FakeStores(
        phases=constant({"legal": 1.0}),
        train={"legal": store(tokenizer, "train", 0, 12)},
        validation={"legal": store(tokenizer, "validation", 0, 6)},
        tokenizer=tokenizer,
    )
    fields = {
        "architecture": dataclasses.replace(ARCHITECTURE, vocab_size=tokenizer.vocab_size),
        "stores": stores,
        "checkpoint_period": 1000,
        "eval_period": 1000,
        "log_period": 100,
        "max_epochs": 1000.0,
        **changes,
    }
    return make_run(model_dir, **fields)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(folder, vocabulary) of a run that has learnt to spell licences."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(
        {"legal": texts(0, 12)}, {"legal": 1.0}, vocab_size=BASE, path=folder / "base.model"
    )
    train(text_run(folder / "run", tokenizer, steps=250, batch=16))
    return folder, tokenizer


@pytest.fixture(scope="module")
def grown(base):
    """The vocabulary with 40 more pieces, as the verb `tokenizer` leaves it."""
    folder, tokenizer = base
    path = folder / "grown.model"
    extension = extend_vocabulary(
        tokenizer, {"legal": texts(0, 12)}, {"legal": 1.0}, vocab_size=GROWN, path=path
    )
    beside = {"extension": extension.to_json(), "model": Tokenizer(str(path)).hash}
    json_file(path).write_text(json.dumps(beside))
    return Tokenizer(str(path))


def evaluations(model_dir) -> list[float]:
    """Bits per byte at step 0 and at the end."""
    lines = map(json.loads, (model_dir / "metrics.jsonl").read_text().splitlines())
    return [line[SCORE] for line in lines if SCORE in line]


def test_rows_by_hand():
    extension = Extension("hash", 4, {4: (1, 2), 5: (4 - 1, 2, 2)})
    base = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    grown = np.asarray(extended_rows(jax.numpy.asarray(base), extension, 8))
    np.testing.assert_array_equal(grown[:4], base[:4])
    np.testing.assert_allclose(grown[4], (base[1] + base[2]) / 2, rtol=1e-6)
    np.testing.assert_allclose(grown[5], (base[3] + 2 * base[2]) / 3, rtol=1e-6)
    np.testing.assert_array_equal(grown[6:], [base[0], base[0]])


def test_a_grown_vocabulary_starts_near_where_the_base_was(base, grown, tmp_path):
    """In bits per byte, which compares vocabularies, against rows drawn like those that are there.

    The new pieces are the most frequent ones that the base lacks, which is as hard as it gets.
    """
    folder, _ = base
    run = text_run(tmp_path / "run", grown, steps=5, initial_checkpoint_path=str(folder / "run"))
    train(run)
    before, means = evaluations(folder / "run")[-1], evaluations(tmp_path / "run")[0]

    topology, mesh = run.topology, make_mesh(run.topology)
    with in_force(topology, mesh):
        model = bind_model(run.spec.architecture, topology, mesh, run.spec.compute_dtype)
        parameters = initial_parameters(str(folder / "run"), grown, model.abstract)
        rows = parameters["embedding"]
        drawn = rows.std() * jax.random.normal(jax.random.key(0), rows.shape)
        parameters["embedding"] = drawn.at[:BASE].set(rows[:BASE])
        validation = run.stores.validation["legal"]
        sets = {"legal": evaluation_set(validation, grown, SEQUENCE)}
        evaluator = Evaluator(model, mesh, sets, topology, batch_size=8, eos_id=grown.eos_id)
        random = evaluator(parameters)[SCORE]
    assert before < means
    assert means - before < 0.6 * (random - before)


def restored(model_dir, architecture, step: int) -> dict:
    """The parameters of a checkpoint, in host memory."""
    alone = Topology()
    with in_force(alone, make_mesh(alone)):
        model = bind_model(architecture, alone, make_mesh(alone), "float32")
        checkpoint = model_dir / f"checkpoint_{step}"
        return jax.device_get(restore_parameters(checkpoint, model.abstract))


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_arrives_on_a_mesh(tied, tmp_path):
    """130 rows of the base, two of them unused, do not divide by the mesh's four; 144 do."""
    small = dataclasses.replace(ARCHITECTURE, vocab_size=130, tied_head=tied)
    train(make_run(tmp_path / "run", steps=5, architecture=small))
    extension = Extension(FakeTokenizer.hash, 128, {128 + i: (2 + i, 9, 5) for i in range(12)})
    grown = FakeTokenizer(str(tmp_path / "grown.model"), hash="grown", vocab_size=140)
    beside = {"extension": extension.to_json(), "model": grown.hash}
    json_file(tmp_path / "grown.model").write_text(json.dumps(beside))

    before, split = restored(tmp_path / "run", small, 5), Topology(fsdp=2, tensor=4)
    with in_force(split, make_mesh(split)):
        large = dataclasses.replace(small, vocab_size=144)
        model = bind_model(large, split, make_mesh(split), "float32")
        parameters = initial_parameters(str(tmp_path / "run"), grown, model.abstract)
    for wanted, leaf in zip(
        jax.tree.leaves(model.abstract), jax.tree.leaves(parameters), strict=True
    ):
        assert (leaf.shape, leaf.sharding) == (wanted.shape, wanted.sharding)
    after = jax.device_get(parameters)
    assert ("head" in after) != tied
    for name in ["embedding"] if tied else ["embedding", "head"]:
        old, new = before.pop(name), after.pop(name)
        np.testing.assert_array_equal(new[:128], old[:128])
        for i in range(12):
            mean = (old[2 + i] + old[9] + old[5]) / 3
            np.testing.assert_allclose(new[128 + i], mean, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(new[140:], np.tile(old[0], (4, 1)))
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize("rows", [128, 136])
def test_the_same_vocabulary_may_be_padded_otherwise(rows, tmp_path):
    """Two of the base's 130 rows belong to no id; the new run has another number of these."""
    small = dataclasses.replace(ARCHITECTURE, vocab_size=130, tied_head=False)
    train(make_run(tmp_path / "base", steps=5, architecture=small))
    padded = dataclasses.replace(small, vocab_size=rows)
    start = {"initial_checkpoint_path": str(tmp_path / "base"), "eval_period": 100}
    before, topology = restored(tmp_path / "base", small, 5), Topology()
    train(make_run(tmp_path / "run", steps=5, architecture=padded, **start))
    with in_force(topology, make_mesh(topology)):
        model = bind_model(padded, topology, make_mesh(topology), "float32")
        after = initial_parameters(str(tmp_path / "base"), FakeTokenizer(), model.abstract)
    after = jax.device_get(after)
    for name in ("embedding", "head"):
        old, new = before.pop(name), after.pop(name)
        np.testing.assert_array_equal(new[:128], old[:128])
        # An id that does not exist has the row of the padding, which no text has.
        np.testing.assert_array_equal(new[128:], np.tile(old[0], (rows - 128, 1)))
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_logits_of_added_pieces_are_the_means_of_their_sub_pieces():
    """So what the base says of its own ids stands, up to the share that the new ones take."""
    extension = Extension("hash", 128, {128: (5, 6), 129: (7, 8, 9)})
    topology = Topology()
    tokens = np.arange(2, 34, dtype=np.int32).reshape(2, 16)
    logits = []
    for rows in (128, 130):
        with in_force(topology, make_mesh(topology)):
            a = dataclasses.replace(ARCHITECTURE, vocab_size=rows)
            model = bind_model(a, topology, make_mesh(topology), "float32")
            if rows == 128:
                parameters = model.fresh_parameters(0)
            else:
                embedding = extended_rows(parameters["embedding"], extension, rows)
                parameters = {**parameters, "embedding": embedding}
            decoder = model(parameters)
            logits.append(np.asarray(decoder.logits(decoder(tokens)[0])))
    base, grown = logits
    np.testing.assert_allclose(grown[..., :128], base, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grown[..., 128], base[..., 5:7].mean(-1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grown[..., 129], base[..., 7:10].mean(-1), rtol=1e-4, atol=1e-6)


def test_vocabularies_that_do_not_fit(base, grown, tmp_path):
    folder, _ = base
    start = {"steps": 5, "initial_checkpoint_path": str(folder / "run")}
    other = train_tokenizer(
        {"legal": texts(0, 20)}, {"legal": 1.0}, vocab_size=BASE, path=tmp_path / "other.model"
    )
    with pytest.raises(
        UsageError, match=r"another vocabulary, .*run/vocabulary.model.* extends nothing"
    ):
        train(text_run(tmp_path / "run", other, **start))
    path = tmp_path / "stranger.model"
    extension = extend_vocabulary(
        other, {"legal": texts(0, 20)}, {"legal": 1.0}, vocab_size=BASE + 20, path=path
    )
    beside = {"extension": extension.to_json(), "model": Tokenizer(str(path)).hash}
    json_file(path).write_text(json.dumps(beside))
    with pytest.raises(UsageError, match=r"stranger\.model, which extends another one"):
        train(text_run(tmp_path / "run", Tokenizer(str(path)), **start))
    beside["model"] = grown.hash
    json_file(path).write_text(json.dumps(beside))
    with pytest.raises(UsageError, match=r"stranger.*made_from.json describes another vocabulary"):
        train(text_run(tmp_path / "run", Tokenizer(str(path)), **start))
    deeper = dataclasses.replace(ARCHITECTURE, vocab_size=GROWN, layers=3)
    with pytest.raises(UsageError, match="another architecture: blocks"):
        train(text_run(tmp_path / "run", grown, architecture=deeper, **start))
    assert not (tmp_path / "run/plan.json").exists()
