"""The figures of README and docs, computed anew from the code.

docs/claims.toml says which test holds which figure. A test receives its figures from the page, each
as a number that equals whatever rounds to it. tools/check_claims finds figures that nothing holds.
"""

import ast
import contextlib
import gzip
import importlib.util
import inspect
import io
import json
import math
import pathlib
import re
import shlex
from fractions import Fraction
from socket import TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL

import numpy as np
import pytest

from t5x_style import errors
from t5x_style.accounting import (
    CHIPS,
    FREE_EPOCHS,
    LAWS,
    Architecture,
    Auditor,
    StepShape,
    Topology,
    bloomberggpt,
    non_embedding_parameters,
    sources_of,
    total_parameters,
)
from t5x_style.accounting.attention_blocks import ALIBI_FEATURES
from t5x_style.accounting.chips import LINK_EFFICIENCY
from t5x_style.accounting.laws.batch_and_learning_rate import step_law
from t5x_style.accounting.laws.chinchilla import HOFFMANN_PRINTED
from t5x_style.accounting.laws.data_constrained import effective_tokens
from t5x_style.accounting.layouts.roofline import roofline
from t5x_style.accounting.planner.budget import budget_of, measured_cpu_flops
from t5x_style.accounting.planner.recipe import recipe_of
from t5x_style.accounting.planner.service import lifetime_flops
from t5x_style.accounting.planner.shape import buildable_shape, levine_width
from t5x_style.commands.main import main
from t5x_style.commands.runs.train import train
from t5x_style.compiling.estimates.assumptions import ASSUMPTIONS, KERNEL_EFFICIENCY
from t5x_style.data import BatchReader, Blend, Contamination, Duplicates, Language
from t5x_style.data.blend.shares import rows_of_period
from t5x_style.data.sources.documents import PART_BYTES
from t5x_style.data.sources.filters import LANGUAGE_CHARACTERS
from t5x_style.data.tokenizers.train import train_tokenizer
from t5x_style.hosts import Hosts
from t5x_style.hosts.lifeline import KEEP_ALIVE
from t5x_style.kernels.flash import ALIBI_POSITIONS
from t5x_style.quantities import bits_per_byte
from tests.data.store_helpers import counting_stores
from tests.scripts import script

ROOT = pathlib.Path(__file__).parents[1]
GIN = ROOT / "gin_configs"
MIXTURE = GIN / "mixtures/legal_general.gin"
# The goals that this project set itself: GiB a chip at most, MFU hidden and exposed at least.
GOALS = {
    "bloomberggpt-v5p": (60, 74, 68),
    "bloomberggpt-v5e": (14.5, 66, 56),
    "bloomberggpt-v6e": (28, 54, 47),
    "llama-8b-v5p": (math.inf, 66, 61),
    "llama-8b-v6e": (math.inf, 48, 44),
    "llama-1b-v5e": (math.inf, 56, 52),
    "llama-16b-v5e": (math.inf, 64, 58),
    "chinchilla-70b-v5p": (math.inf, 70, 64),
    "llama-64b-v5e-x2": (math.inf, 55, 0),
}


check_claims = script("check_claims")


@pytest.fixture
def figures(request):
    """The figures that this test holds: numbers that equal what rounds to them."""
    found = check_claims.held_by(f"tests/test_claims.py::{request.node.originalname}")
    assert found, "docs/claims.toml gives this test no figure"
    return [
        pytest.approx(check_claims.value(text), rel=1e-12, abs=check_claims.rounding(text))
        for text in found
    ]


def plain(figures) -> list[float]:
    """The figures as plain numbers."""
    return [figure.expected for figure in figures]


@pytest.fixture(scope="module")
def readme_plan() -> dict:
    """The JSON of README's own command, which writes no file here."""
    text = (ROOT / "README.md").read_text().replace("\\\n", "")
    command = re.search(r"\nt5x-style (plan.*)\n```", text)[1]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        assert main([*shlex.split(command), "--dry_run", "--json"]) == 0
    return json.loads(printed.getvalue())


def gin_value(file: str, name: str) -> float:
    """The number that a line of a gin file binds."""
    return float(re.search(rf"^{name} = (\S+)", (GIN / file).read_text(), re.MULTILINE)[1])


def test_the_length_of_the_way_of_a_token(figures):
    """As the command of docs/reading.md counts it; "some" lines are rounded to hundreds."""
    files, lines, stations = plain(figures)
    text = (ROOT / "docs/reading.md").read_text()
    named = set(re.findall(r"t5x_style/[a-z_/]*\.py", text))
    counted = sum(len((ROOT / name).read_text().splitlines()) for name in named)
    assert (files, stations) == (len(named), len(re.findall(r"^## \d\. ", text, re.MULTILINE)))
    assert lines % 100 == 0
    assert lines == pytest.approx(counted, rel=0.05)


def test_the_stations_of_the_reading_page(figures):
    stations = re.findall(r"^## (\d)\. ", (ROOT / "docs/reading.md").read_text(), re.MULTILINE)
    assert [len(stations)] * 2 == figures


def test_the_questions_of_the_reading_page(figures):
    stations = (ROOT / "docs/reading.md").read_text().split("\n## ")[1:-1]
    asked = {len(re.findall(r"^\d\. .*", station, re.MULTILINE)) for station in stations}
    assert list(asked) == [figures[0].expected + 1]  # and the station's own number


def quickstart_architecture() -> Architecture:
    text = (GIN / "models/quickstart_500k.gin").read_text().replace("%VOCAB_SIZE", "2048")
    lines = re.findall(r"^Architecture\.(\w+) = (.*)$", text, re.MULTILINE)
    return Architecture(**{name: ast.literal_eval(number) for name, number in lines})


def test_the_model_of_the_quick_start(figures):
    blend = re.search(r"\{'legal': ([\d.]+), 'general': ([\d.]+)\}", MIXTURE.read_text())
    size = gin_value("models/quickstart_500k.gin", "VOCAB_SIZE")
    shares = map(float, blend.groups())
    assert [size, total_parameters(quickstart_architecture()), *shares] == figures


def test_the_audit_of_the_quick_start(figures):
    tokens = gin_value("runs/quickstart.gin", "TRAIN_TOKENS")
    line = Auditor(quickstart_architecture(), 128).line_at(int(tokens))
    efficiencies = [
        line[f"chinchilla/{law}/compute_efficiency"] for law in ("hoffmann", "besiroglu")
    ]
    assert [line["tokens_per_param"], *efficiencies] == figures


def test_the_plan_of_the_readme(readme_plan, figures):
    legal, cost = readme_plan["sources"]["legal"], readme_plan["cap_costs"][0]
    chosen, budget = readme_plan["chosen"], readme_plan["budget"]
    assert cost["source"] == "legal"
    assert [
        *(budget["flops"], chosen["params"], chosen["tokens"], legal["epochs"], legal["share"]),
        *(cost["efficiency"], cost["money"], budget["cost"]),
    ] == figures


def test_the_sensitivity_of_a_plan(readme_plan, figures):
    less, more = plain(figures)
    factors = {row["factor"] for row in readme_plan["sensitivity"]}
    assert factors == {1 - less, 1, 1 + more}


def test_the_accounts_of_bloomberggpt(figures):
    accounts = bloomberggpt.accounts()
    flops, audit = accounts["flops"], accounts["audit"]
    assert [
        *(accounts["total_parameters"], accounts["tokens"]),
        *(flops["6nd"]["total"], flops["8n_full_batches"]["total"]),
        audit["chinchilla/besiroglu/compute_efficiency"],
        audit["chinchilla/hoffmann/compute_efficiency"],
    ] == figures


def test_the_exit_statuses(figures):
    table = [0, errors.EXIT_FAULT, errors.EXIT_USAGE, errors.EXIT_AGAIN]
    table += [errors.EXIT_PREEMPTED, errors.EXIT_INTERRUPTED]
    # The status of a preemption is on a second page, too, and the table on a third.
    assert [*table, errors.EXIT_PREEMPTED, *table] == figures


def test_the_wings_of_data(figures):
    wings = [path for path in (ROOT / "t5x_style/data").iterdir() if any(path.glob("__init__.py"))]
    assert [len(wings)] == figures


def test_alibi_as_features(figures):
    """tests/kernels/test_agreement.py shows that they are exact so far."""
    assert figures == [ALIBI_FEATURES, ALIBI_POSITIONS]


def embedded_texts(split: str, source: str) -> list[str]:
    with gzip.open(ROOT / f"t5x_style/data/corpora/{source}.{split}.jsonl.gz", "rt") as file:
        return [json.loads(line)["text"] for line in file]


@pytest.mark.skipif(importlib.util.find_spec("py3langid") is None, reason="the extra clean has it")
def test_languages_of_the_embedded_validation_texts(figures):
    language = Language()
    licences, pages = (embedded_texts("validation", source) for source in ("legal", "general"))
    kept = [sum(language(text) is not None for text in texts) for texts in (licences, pages)]
    assert kept[1] == len(pages)
    assert [LANGUAGE_CHARACTERS, kept[0], len(licences), len(pages)] == figures


def test_defaults_of_cleaning(figures):
    cleaning = Contamination()
    assert [Duplicates().shingle_words, cleaning.ngram, cleaning.max_share] == figures


def test_shares_by_document_and_by_byte(figures):
    """51 licences and 49 articles of the mean length."""
    sizes = []
    for source in ("legal", "general"):
        texts = embedded_texts("train", source)
        sizes.append(sum(len(text.encode()) for text in texts) / len(texts))
    by_document, by_byte = plain(figures)
    assert by_document == 51 / 49
    legal = 51 * sizes[0] / (51 * sizes[0] + 49 * sizes[1])
    assert by_byte == round(100 * legal) / round(100 * (1 - legal))


def test_a_row_is_owed_in_the_middle(figures):
    """Rows by the times at which the page says that they are owed."""
    shares = {"a": 0.7, "b": 0.2, "c": 0.1}
    source, _ = Blend.constant(shares).locate(0, 1000)
    for middle in plain(figures):
        times = [
            ((row + Fraction(middle)) / Fraction(str(share)), number)
            for number, share in enumerate(shares.values())
            for row in range(round(1000 * share))
        ]
        assert [number for _, number in sorted(times)] == source.tolist()


def test_the_bound_of_few_sources(figures):
    """1/2 + s (k - 2) / 2 for k sources and the largest share s."""
    two, bound_of_two, three, bound_of_three = plain(figures)
    assert [1 / 2 + (sources - 2) / 2 for sources in (two, three)] == [bound_of_two, bound_of_three]


def test_the_longest_period_of_a_blend(figures):
    (rows, parts), exact = plain(figures), rows_of_period([1e-5, 1 - 1e-5])
    assert sum(exact) == rows
    # No period holds pi - 3 as it is written.
    assert sum(rows_of_period([math.pi - 3, 4 - math.pi])) == parts


def test_epochs(figures):
    cap = inspect.signature(train).parameters["max_epochs"].default
    assert [FREE_EPOCHS, cap] == figures


def test_the_size_of_a_part(figures):
    assert figures == [PART_BYTES / 2**20]


@pytest.mark.parametrize(("length", "windows"), [(9, 11), (11, 9), (33, 3)])
def test_windows_of_a_store(length, windows, tmp_path, figures):
    """A store of 100 tokens: 99 are predicted, and these lengths divide 99."""
    fewer, more = plain(figures)
    assert (100 - fewer) // length == windows
    blend, stores = Blend.constant({"a": 1.0}), counting_stores(tmp_path, {"a": 100})
    reader = BatchReader(blend, stores, sequence_lengths=[(0, length)], seed=0)
    epoch = reader.rows(np.arange(windows)).tokens
    assert epoch.shape == (windows, length + more)
    assert sorted(epoch[:, 0]) == [length * window for window in range(windows)]


def test_bits_per_byte(figures):
    """A loss of 3 nats over 5 bytes."""
    assert bits_per_byte(3.0, 5.0) == pytest.approx(3 / (math.log(figures[0].expected) * 5))


def test_the_first_ids_of_a_vocabulary(tmp_path, figures):
    texts = {"legal": embedded_texts("validation", "legal")}
    path = tmp_path / "small.model"
    vocabulary = train_tokenizer(
        texts, {"legal": 1.0}, vocab_size=512, path=path, sample_bytes=100_000
    )
    pieces = [vocabulary.piece(token) for token in range(vocabulary.vocab_size)]
    *special, size = plain(figures)
    assert [pieces[int(token)] for token in special] == ["<pad>", "</s>", "<unk>"]
    assert pieces[3 : 3 + int(size)] == [f"<0x{byte:02X}>" for byte in range(256)]


def test_a_budget_is_six_n_d(readme_plan, figures):
    chosen = readme_plan["chosen"]
    assert [chosen["flops"] / chosen["params"] / chosen["tokens"]] == figures


def test_mfu_by_convention(figures):
    flops = bloomberggpt.accounts()["flops"]
    shares = [flops[name]["share_of_peak"] for name in ("6nd", "palm", "megatron_recompute")]
    assert [budget_of(chip_name="v5p", chips=1, days=1).mfu, *shares] == figures


def test_the_rounded_constants_of_hoffmann(figures):
    """At Gopher's budget."""
    assert [law.optimal(5.76e23)[0] for law in (HOFFMANN_PRINTED, LAWS["hoffmann"])] == figures


def test_the_columns_of_a_fit(figures):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(["plan", "--flops=1e22"])
    low, high = plain(figures)
    assert printed.getvalue().count(f"{low:g} to {high:.0%}".replace("%", " %")) == 2


def test_how_long_a_cpu_is_timed(figures):
    assert [inspect.signature(measured_cpu_flops).parameters["seconds"].default] == figures


def test_epochs_of_a_plan(figures):
    default, most, domain = plain(figures)
    text = {"legal": 1e9, "general": 100e9}
    assert set(sources_of(text, None).max_epochs.values()) == {default}
    assert sources_of(text, None, most).max_epochs["legal"] == most
    with pytest.raises(errors.UsageError, match="past_forty_epochs"):
        sources_of(text, None, most + 0.1)
    chosen = sources_of(text, "choose", domain="legal", wanted_tokens=50e9)
    assert chosen.shares["legal"] == pytest.approx(domain / 50)


def test_the_decay_of_repeated_tokens(figures):
    """Endless epochs of a token are worth 1 + R*."""
    assert [effective_tokens(1e6, 1.0) - 1] == figures


def test_the_reserve_of_one_epoch(readme_plan, figures):
    rule, budget = readme_plan["bloomberggpt_rule"], readme_plan["budget"]
    assert rule["tokens"] == 320e9
    assert [1 - 6 * rule["params"] * rule["tokens"] / budget["flops"]] == figures


def test_the_cost_of_service(figures):
    training, served = lifetime_flops(1.0, 1.0, 0.0), lifetime_flops(1.0, 0.0, 1.0)
    assert [training, served] == figures


def test_the_width_of_levine(figures):
    width = math.log(levine_width(0))
    assert [width, math.log(levine_width(1)) - width] == figures


def test_widths_are_multiples(figures):
    """Of this, and of no more: the greatest common divisor of many widths."""
    shapes = [buildable_shape(size, vocab_size=32_000) for size in (1e9, 3e9, 7e9, 2e10, 6e10)]
    assert [math.gcd(*(n for shape in shapes for n in (shape.d_model, shape.d_ff)))] == figures


def test_the_warm_up(readme_plan, figures):
    def warm_up(tokens: float) -> tuple[float, float]:
        recipe = recipe_of(bloomberggpt.ARCHITECTURE, tokens, 2048, loss=2.0)
        batch = recipe.batch_sequences * 2048
        return recipe.warmup_tokens / batch, recipe.warmup_tokens / recipe.tokens

    assert [warm_up(5e11)[0], warm_up(1e10)[1]] == figures


def test_the_end_of_the_cosine(readme_plan, figures):
    assert [readme_plan["recipe"]["final_fraction"]] == figures


def test_the_learning_rate_of_bloomberggpt(figures):
    parameters = non_embedding_parameters(bloomberggpt.ARCHITECTURE)
    law = step_law(parameters, bloomberggpt.accounts()["tokens"])
    assert [gin_value("runs/bloomberggpt.gin", "LEARNING_RATE"), law.learning_rate] == figures


def test_the_step_of_bloomberggpt(figures):
    """On four replicas of 128 A100s, all of it recomputed."""
    shape = StepShape(bloomberggpt.ARCHITECTURE, 2048, 2048)
    step = roofline(shape, Topology(data=4, fsdp=128, remat="full"), CHIPS["a100_40gb"])
    measured = [bloomberggpt.GPUS, bloomberggpt.SECONDS_PER_FULL_STEP]
    expected = [step.seconds, step.hidden_seconds, step.exposed_seconds]
    assert [*measured, *expected] == figures


def test_the_flops_that_bloomberggpt_printed(figures):
    accounts = bloomberggpt.accounts()
    printed, parameters = accounts["flops"]["8n_full_batches"], accounts["total_parameters"]
    per_token = (
        printed["per_token"] / parameters,
        accounts["flops"]["6nd"]["per_token"] / parameters,
    )
    above = printed["total"] / accounts["flops"]["6nd"]["total"] - 1
    assert [printed["total"], per_token[0], above, per_token[1]] == figures


def test_how_long_hosts_wait(figures):
    """For each other, and in minutes for a vanished one: idle, then so many probes in vain."""
    idle, interval, count = map(KEEP_ALIVE.get, (TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT))
    assert [Hosts().timeout_seconds, (idle + interval * count) / 60] == figures


@pytest.fixture(scope="module")
def bench_rows() -> dict[str, tuple]:
    """ROWS of tools/bench_scale: (model, topology, sequences, tokens a sequence, more) by name."""
    names: dict = {}
    program = (ROOT / "tools/bench_scale").read_text().split("<<'PYTHON'\n")[1]
    exec(program.split("def command")[0], names)
    return names["ROWS"]


def chips_of(topology: str) -> int:
    """v5e_16x16_x2 has 2 x 16 x 16 chips."""
    return math.prod(map(int, re.findall(r"(?<=[_x])\d+", topology)))


def test_the_batches_of_the_rows(bench_rows, figures):
    expected = []
    for name, (_, topology, sequences, length, _) in bench_rows.items():
        a_chip = sequences / chips_of(topology)
        expected += {
            "llama-8b-v6e": [a_chip, length],
            "llama-16b-v5e": [a_chip, length],
            "llama-64b-v5e-x2": [a_chip, length],
            "llama-8b-131072-v5p": [length, sequences],
        }.get(name, [sequences, length])
    assert expected == figures


def test_the_chips_of_the_rows(bench_rows, figures):
    v5p, v5e, v6e = (CHIPS[name] for name in ("v5p", "v5e", "v6e"))
    assert v6e.peak_bf16_flops == 2 * v5p.peak_bf16_flops
    chips, bandwidth = chips_of(bench_rows["bloomberggpt-v5p"][1]), v6e.hbm_bandwidth
    assert [chips, v5e.hbm_bytes / 1e9, bandwidth / v5p.hbm_bandwidth] == figures


def test_the_shrunk_rows(bench_rows, figures):
    suite = check_claims.definitions("tests/training/test_scale_rows.py")["IN_THE_SUITE"]
    every, in_suite = len(bench_rows), len(ast.literal_eval(suite.value))
    assert [every, every, in_suite] == figures


def test_shards_that_are_padded(bench_rows, figures):
    """Rows of a shard are padded to a multiple of 8."""
    fsdp, width = gin_value("topologies/v5e_16x16.gin", "Topology.fsdp"), 7680
    assert bloomberggpt.ARCHITECTURE.d_model == width
    assert (width / fsdp) % 8 == 0
    shard = width / (2 * fsdp)
    chips = chips_of(bench_rows["bloomberggpt-v5e"][1])
    assert [fsdp, 2 * fsdp, width, shard, 8 * math.ceil(shard / 8), chips] == figures


def rate(chip: str, chips: float) -> float:
    """GB/s of a group of so many chips at flat rates."""
    places = [(place,) for place in range(int(chips))]
    return ASSUMPTIONS["flat"].bandwidth(CHIPS[chip], places, []) / 1e9


def test_the_assumptions_of_the_estimates(figures):
    rates = [rate("v5e", 2), rate("v5p", 2)]
    assert [KERNEL_EFFICIENCY, KERNEL_EFFICIENCY, *rates, LINK_EFFICIENCY] == figures
    assert rate("v6e", 2) == rates[1]


def test_axes_of_a_group(figures):
    one, few, two, more, three = plain(figures)
    axis = rate("v5p", 2)
    rates = [rate("v5p", chips) / axis for chips in (few, few + 1, more, more + 1)]
    assert rates == pytest.approx([one, two, two, three])


def test_the_goals_that_were_missed(figures):
    """The page speaks of each row that misses a goal, and of no other."""
    assert [goal for row in GOALS.values() for goal in row if 0 < goal < math.inf] == figures
    text = (ROOT / "docs/results/scale.md").read_text()
    cells = r"^\| `([\w-]+)` \|.*?\| ([\d.]+) \| [−+]\d+ % \| ([\d.]+) / ([\d.]+) \|"
    found = {row: tuple(map(float, rest)) for row, *rest in re.findall(cells, text, re.MULTILINE)}
    missed = [
        row
        for row, (most, hidden, exposed) in GOALS.items()
        if found[row][0] > most or found[row][1] < hidden or found[row][2] < exposed
    ]
    openings = re.findall(r"^\*\*([^*]+) for ([\d /]+)[.,]\*\*", text, re.MULTILINE)
    assert len(openings) == len(missed)
    for (opening, goal), row in zip(openings, missed, strict=True):
        measured = tuple(map(float, re.findall(r"\d\d\.\d", opening)))
        assert measured == found[row][-len(measured) :]
        assert tuple(map(float, goal.split(" / "))) == GOALS[row][-len(measured) :]
