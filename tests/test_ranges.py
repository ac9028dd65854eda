"""The range of every number that a user may write, against a table written by hand."""

import dataclasses
import inspect
import math
import re
from collections.abc import Mapping
from typing import Annotated

import hypothesis
import jax
import numpy as np
import pytest
from gin import config as gin_config
from hypothesis import strategies as st

from t5x_style.accounting.laws.fitting import fit_parametric_law
from t5x_style.commands import main
from t5x_style.config.help import annotation_text, parameter_lines, signature_of
from t5x_style.config.types import annotations_of, mismatch
from t5x_style.data.tokenizers.train import sampled
from t5x_style.errors import UsageError
from t5x_style.ranges import (
    PositiveFloat,
    PositiveInt,
    Range,
    Share,
    check_ranges,
    folded_seed,
    range_problem,
)
from t5x_style.step.model_state import random_key

main.load_everything()

# Interval -> the numbers that lie in it. `[` and `]` belong to it, `(` and `)` do not.
INTERVALS = {
    "[1, inf)": """
        Architecture.vocab_size Architecture.layers Architecture.d_model Architecture.d_ff
        Architecture.heads Architecture.kv_heads Architecture.head_dim Architecture.max_length
        Architecture.window Topology.data Topology.fsdp Topology.tensor Topology.sequence
        Topology.slices Topology.microbatches Topology.attention_block Topology.loss_chunk_tokens
        Topology.loss_vocab_chunks tokenizer.vocab_size tokenizer.vocab_sizes tokenizer.round_to
        tokenizer.sample_bytes compile.train_tokens compile.train_steps compile.phase
        compile.sources evaluate.batch_size evaluate.eval_tokens generate.samples
        generate.max_tokens train.train_tokens train.train_steps train.log_period
        train.eval_period train.checkpoint_period train.keep_checkpoints plan.chips
        plan.vocab_size plan.sequence_length plan.batch_sequences sweep.concurrent_trials
        Duplicates.shingle_words Duplicates.permutations Corpus.workers Hosts.processes
        EarlyStopping.patience_tokens Source.max_record_bytes Spikes.window Spikes.patience
        Watchdog.medians
    """,
    "[0, inf)": """
        compile.z_loss compile.dollars_per_chip_hour compile.eos_id evaluate.step
        generate.temperature generate.step train.z_loss train.eval_tokens train.keep_period
        train.resume_step fit.drop_highest fit.bootstrap
        Packing.loss_from_context Length.min_characters
        Length.max_characters Hosts.index AdamW.weight_decay Schedule.warmup_tokens
        EarlyStopping.min_delta compare.tolerance Spikes.margin Spikes.rewinds train.save_patience
        export.step
    """,
    "(0, inf)": """
        Architecture.rope_theta Architecture.norm_epsilon Architecture.attention_softcap
        Architecture.logit_softcap Architecture.init_std compile.search_minutes plan.flops
        plan.days plan.chip_hours plan.money plan.price_per_chip_hour plan.cpu_minutes
        plan.unique_tokens plan.shares plan.max_epochs plan.served_tokens Hosts.timeout_seconds
        AdamW.epsilon AdamW.clip_norm Spikes.deviations Monitors.first_gain_rms
        Monitors.embedding_rms Monitors.update_ratio Monitors.largest_logit Hosts.silent_seconds
        Watchdog.min_seconds Watchdog.first_seconds train.save_timeout
    """,
    "[0, 1]": """
        Topology.unsharded_tolerance Schedule.final_fraction Schedule.decay_fraction
    """,
    "(0, 1]": "generate.top_p plan.mfu Duplicates.threshold",
    "[0, 1)": "Contamination.max_share Language.min_probability AdamW.b1 AdamW.b2",
    "(0, 1)": "Source.validation_share",
    "[0, 10]": "Schedule.peak_learning_rate",
    "[8, inf)": "Contamination.ngram",
    # A seed may be any integer.
    "any": """
        train.seed generate.seed fit.seed tokenizer.seed Corpus.seed Source.validation_seed
    """,
    # Their own parsers check lists of phases, blends and caps, each with a test of its own.
    "parsed": """
        compile.task_feature_lengths compile.batch_size train.task_feature_lengths
        train.batch_size train.max_epochs train.skip_steps Corpus.mixtures
    """,
}


def declared() -> dict[str, object]:
    """Every parameter of a verb or configurable that takes a number: its annotation."""
    found = {}
    for selector, configurable in gin_config._REGISTRY.items():
        wrapped = configurable.wrapped
        if not selector.startswith("t5x_style."):
            continue
        for name, annotation in annotations_of(wrapped).items():
            if re.search(r"\b(int|float)\b", str(annotation)):
                found[f"{selector.rpartition('.')[2]}.{name}"] = annotation
    return found


DECLARED = declared()
TABLE = {name: interval for interval, names in INTERVALS.items() for name in names.split()}
RANGED = sorted(name for name in TABLE if "," in TABLE[name])


def test_every_number_that_a_user_may_write_is_in_the_table():
    assert set(DECLARED) == set(TABLE)
    assert len(DECLARED) > 90


def edges(interval: str, whole: bool) -> tuple[list[float], list[float]]:
    """Numbers at the edges of an interval: those inside, and those outside."""

    def next_to(bound: float, towards: float) -> float:
        if whole:
            return int(bound + math.copysign(1, towards))
        return math.nextafter(bound, towards)

    low, high = map(float, interval[1:-1].split(","))
    inside, outside = [], [] if whole else [math.nan, math.inf, -math.inf]
    for bound, closed, outwards in (
        (low, interval[0] == "[", -math.inf),
        (high, interval[-1] == "]", math.inf),
    ):
        if math.isfinite(bound):
            (inside if closed else outside).append(int(bound) if whole else bound)
            outside += [next_to(bound, outwards), int(bound + math.copysign(1, outwards))]
            inside.append(next_to(bound, -outwards))
    return inside, outside


@pytest.mark.parametrize("name", RANGED)
@hypothesis.settings(max_examples=20)
@hypothesis.given(data=st.data())
def test_the_edges_of_a_range_are_where_the_table_has_them(name, data):
    interval, annotation = TABLE[name], DECLARED[name]
    text = annotation_text(annotation)

    def typed(value: float) -> object:
        if text.startswith("Sequence"):
            return [value]
        return {"legal": value} if text.startswith("Mapping") else value

    inside, outside = edges(interval, "float" not in text)
    low, high = map(float, interval[1:-1].split(","))
    far = data.draw(st.integers(1, 2**40))
    outside.append(int(low) - far)
    if high == math.inf:
        inside.append(int(low) + far)
    good, bad = (typed(data.draw(st.sampled_from(values))) for values in (inside, outside))
    assert mismatch(good, annotation) is None, good
    assert "must be" in (mismatch(bad, annotation) or "nothing"), bad


@pytest.mark.parametrize("name", RANGED)
def test_the_default_lies_in_its_range(name):
    selector, _, parameter = name.rpartition(".")
    (wrapped,) = [
        configurable.wrapped
        for full, configurable in gin_config._REGISTRY.items()
        if full.startswith("t5x_style.") and full.endswith(f".{selector}")
    ]
    default = inspect.signature(wrapped).parameters[parameter].default
    if default is not inspect.Parameter.empty:
        assert mismatch(default, DECLARED[name]) is None


def test_a_range_says_itself_in_words():
    assert str(Range(least=1)) == "1 or more"
    assert str(Range(above=0, most=1)) == "above 0 and at most 1"
    assert str(Range(least=0, below=1)) == "0 or more and below 1"
    assert Range(least=1, hint=" (None: all)").problem(0) == "must be 1 or more (None: all)"


def test_a_number_is_looked_for_in_unions_and_containers():
    assert range_problem(0, PositiveInt | None) == "must be 1 or more"
    assert range_problem(None, PositiveInt | None) is None
    caps = PositiveFloat | Mapping[str, PositiveFloat]
    assert range_problem({"a": 1.0, "b": 0}, caps) == "has an entry 'b': 0 that must be above 0"
    assert range_problem(-1.0, caps) == "must be above 0"
    assert range_problem([2, 0], list[PositiveInt]).startswith(
        "has an element 1, 0, that must be 1"
    )
    # Another kind of value is the type's concern.
    assert range_problem("0", PositiveInt) is None
    assert range_problem(False, PositiveInt) is None


def test_a_dataclass_checks_its_fields_in_plain_python():
    @dataclasses.dataclass
    class Sampling:
        top: Annotated[float, Range(above=0, most=1)]
        samples: PositiveInt = 1
        name: str = "a"

        def __post_init__(self):
            check_ranges(self)

    assert Sampling(1.0).top == 1.0
    for wrong, message in (
        ((0.0,), "Sampling.top = 0.0: must be above 0 and at most 1"),
        ((math.nan,), "Sampling.top = nan: must be above 0 and at most 1"),
        ((1.0, 0), "Sampling.samples = 0: must be 1 or more"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            Sampling(*wrong)


def test_help_names_the_type_and_the_range():
    def verb(*, share: Share = 0.5, samples: "PositiveInt | None" = None):
        """A verb."""

    text = parameter_lines(signature_of(verb), {}, "--")
    assert "--share (float, 0 or more and at most 1, default 0.5)" in text
    assert "--samples (int | None, 1 or more, default None)" in text


# Equal in their lower 32 bits or in their absolute values, and past every width of a machine's int.
SEEDS = (0, 1, -1, 2**31, -(2**31), 2**32 - 1, 2**32, 2**32 + 1, 2**63, -(2**63), 2**64, 2**64 + 1)


def test_seeds_that_differ_stay_different_and_small_ones_stay_themselves():
    assert len({*map(folded_seed, SEEDS)}) == len(SEEDS)
    assert all(0 <= folded_seed(seed) < 2**63 for seed in SEEDS)
    assert [folded_seed(seed) for seed in (0, 7, 2**32 - 1)] == [0, 7, 2**32 - 1]


def test_seeds_that_differ_choose_other_texts_for_a_vocabulary():
    texts = [f"text {number}" for number in range(60)]
    chosen = {tuple(sampled("a", texts, 300, seed)) for seed in SEEDS}
    assert len(chosen) == len(SEEDS)


def test_seeds_that_differ_draw_other_samples_of_the_points_of_a_law():
    params = [10.0**n for n in (6, 7, 8) for _ in range(4)]
    tokens = [10.0**d for _ in range(3) for d in (7, 8, 9, 10)]
    wobble = [1 + 0.01 * (-1) ** (k // 2) for k in range(12)]
    losses = [
        (1.7 + 400 / n**0.34 + 410 / d**0.28) * w
        for n, d, w in zip(params, tokens, wobble, strict=True)
    ]
    intervals = {
        fit_parametric_law(params, tokens, losses, name="a", bootstrap=3, seed=seed).law
        for seed in (-1, 1, 2**64, 0)
    }
    assert len(intervals) == 4


def test_seeds_that_differ_are_other_keys_of_jax():
    keys = {tuple(jax.random.key_data(random_key(seed)).tolist()) for seed in SEEDS}
    assert len(keys) == len(SEEDS)
    for seed in (0, 3, 2**31, 2**32 - 1):
        assert random_key(seed) == jax.random.key(np.uint32(seed))
