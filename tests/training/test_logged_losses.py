"""A logged loss is the mean over the tokens of all steps since the line before it."""

import dataclasses
import json
import pathlib
import types

import jax
import numpy as np
import pytest

from t5x_style.accounting import Topology
from t5x_style.checkpoints.manifest import PROMISE
from t5x_style.data import BatchPlan, BatchReader, Packing, TokenStore
from t5x_style.training import session, train
from tests.training.runs import EOS, VOCABULARY, make_run, stores

SOURCES = ("domain", "general")
# Four steps of 4 x 16 tokens, and eight of 8 x 16.
PLAN = BatchPlan.from_settings([(4, 256), (8, None)], 16, train_steps=12)
# Of documents of 1 to 30 tokens: rows differ in how many predictions are learnt from.
LATE = Packing(loss_from_context=5)


def documents(name: str) -> TokenStore:
    rng = np.random.default_rng(len(name))
    lengths = rng.choice([1, 2, 4, 7, 30], 400)
    tokens = rng.integers(2, VOCABULARY, lengths.sum()).astype(np.uint16)
    ends = np.cumsum(lengths)
    tokens[ends - 1] = EOS
    return TokenStore(
        pathlib.Path(name),
        tokens,
        ends,
        {"fingerprint": name, "documents": 400, "checksums": {"tokens.bin": name}},
    )


STORES = dataclasses.replace(stores(), train={name: documents(name) for name in SOURCES})


def lines(model_dir: pathlib.Path) -> list[dict]:
    found = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if "loss" in line]


OPTIONS = {"plan": PLAN, "stores": STORES, "eval_period": 100, "z_loss": 1e-2}


def trained(model_dir, **options) -> list[dict]:
    """The training lines of a run of twelve steps."""
    train(make_run(model_dir, **{**OPTIONS, **options}))
    return lines(model_dir)


def learnt_tokens(model_dir, packing: Packing) -> np.ndarray:
    """int [12, 2]: the predictions of each step and source that are learnt from, one by one."""
    run = make_run(model_dir, packing=packing, **OPTIONS)
    counts = np.zeros((12, 2), int)
    for step in range(12):
        rows = run.reader.rows(np.arange(PLAN.rows_before(step), PLAN.rows_before(step + 1)))
        for tokens, source in zip(rows.tokens, rows.source, strict=True):
            context = 0
            for token in tokens[:-1]:
                context = 1 if token == EOS else context + 1
                counts[step, source] += context >= packing.loss_from_context
    return counts


@pytest.mark.parametrize(
    ("packing", "layout"),
    [(Packing(), {}), (LATE, {"microbatches": 2, "data": 2, "tensor": 2, "sequence": 2})],
    ids=["whole rows", "some tokens on a mesh"],
)
def test_a_line_is_the_mean_over_the_tokens_since_the_line_before(tmp_path, packing, layout):
    topology = Topology(loss_chunk_tokens=64, **layout)
    options = {"packing": packing, "topology": topology, "compute_dtype": "bfloat16"}
    singly = trained(tmp_path / "singly", **options)
    together = trained(tmp_path / "together", log_period=5, **options)
    assert [line["loss_steps"] for line in singly] == [1] * 12
    # Only microbatches tell of the gradient's noise.
    noise = {name for line in singly for name in line if name.startswith("noise/")}
    assert noise == ({"noise/signal", "noise/variance"} if "microbatches" in layout else set())
    # The lines have steps of two sizes.
    assert [(line["step"], line["loss_steps"]) for line in together] == [(5, 5), (12, 7)]
    tokens = learnt_tokens(tmp_path / "none", packing)
    if packing is LATE:
        assert len({*tokens[4:, 0]}) > 2
        assert tokens.sum() < PLAN.tokens
    for line in together:
        steps = slice(line["step"] - line["loss_steps"], line["step"])
        whole = tokens[steps].sum(1)
        for name in ("loss", "z_loss"):
            values = [one[name] for one in singly[steps]]
            assert line[name] == pytest.approx(np.average(values, weights=whole), rel=1e-6)
        for index, source in enumerate(SOURCES):
            values = [one[f"loss/{source}"] or 0.0 for one in singly[steps]]
            mean = np.average(values, weights=tokens[steps, index])
            assert line[f"loss/{source}"] == pytest.approx(mean, rel=1e-6)
        # What is no loss is of the step itself.
        for name in ("grad_norm", "param_norm", "learning_rate"):
            assert line[name] == singly[line["step"] - 1][name]


@pytest.fixture
def no_program_cache():
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def broken_off(monkeypatch, model_dir, at_row: int, **options) -> None:
    """A run that dies when it reads a row of the step after the next."""
    read = BatchReader.rows

    def broken(reader, numbers):
        if at_row in numbers:
            raise InterruptedError
        return read(reader, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(BatchReader, "rows", broken)
        with pytest.raises(InterruptedError):
            trained(model_dir, **options)


LOSSES = ("step", "loss_steps", "loss", "z_loss", "loss/domain", "loss/general")


def losses(found: list[dict]) -> list[tuple]:
    return [tuple(line[name] for name in LOSSES) for line in found]


def test_a_run_broken_off_between_two_lines_logs_the_same_numbers(
    tmp_path, monkeypatch, no_program_cache
):
    options = {"log_period": 5, "checkpoint_period": 4, "packing": LATE}
    whole = trained(tmp_path / "whole", **options)
    # The rows of step 6 are 24 to 31, and those of step 10 are 56 to 63.
    broken_off(monkeypatch, tmp_path / "parts", 24, **options)
    broken_off(monkeypatch, tmp_path / "parts", 60, **options)
    parts = trained(tmp_path / "parts", **options)
    events = (tmp_path / "parts/events.jsonl").read_text()
    resumed = [event for event in map(json.loads, events.splitlines())
               if event["event"] == "resumed"]  # fmt: skip
    assert [event["step"] for event in resumed] == [4, 8]
    assert losses(parts) == losses(whole)


def test_a_checkpoint_without_sums_gives_a_line_of_the_steps_since(tmp_path, monkeypatch):
    """That of an earlier version; the line says that it is about fewer steps."""
    options = {"log_period": 5, "checkpoint_period": 4}
    singly = trained(tmp_path / "singly", log_period=1)
    broken_off(monkeypatch, tmp_path / "parts", 24, **options)
    record = tmp_path / "parts/checkpoint_4/run/metadata"
    fields = json.loads(record.read_text())
    assert fields.pop("losses")["line_step"] == 0
    assert fields.pop(PROMISE)
    record.write_text(json.dumps(fields))
    (tmp_path / "parts/checkpoint_4/MANIFEST.json").unlink()
    parts = trained(tmp_path / "parts", **options)
    assert [line["loss_steps"] for line in parts] == [1, 7]
    assert parts[0]["loss"] == pytest.approx(singly[4]["loss"], rel=1e-5)


def test_sums_belong_to_the_source_of_their_name():
    """A blend may get a further source between two starts, at any place among the others."""
    run = types.SimpleNamespace(reader=types.SimpleNamespace(names=("domain", "general")))
    saved = session.losses_record(run, 3, jax.numpy.array([[9.5, 4], [0.25, 1], [3, 2]]))
    run.reader.names = ("domain", "further", "general")
    step, sums = session.saved_losses(run, {"losses": json.loads(json.dumps(saved))}, 4)
    assert step == 3
    assert sums.tolist() == [[9.5, 0, 4], [0.25, 0, 1], [3, 0, 2]]
    assert sums.dtype == np.float32
