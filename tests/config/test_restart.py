"""A run's config.gin starts the same run again, alone and from any folder, whatever was set."""

import ast
import inspect
import pathlib
import re

import gin
import pytest

from t5x_style.commands.main import load_named, load_verb, selectors
from t5x_style.config import checks
from t5x_style.config.flags import FlagBinding

ROOT = pathlib.Path(__file__).parents[2]
PARTS = ("models/quickstart_500k", "mixtures/legal_general", "optimizers/adamw", "topologies/cpu")
NEEDED = {
    "MODEL_DIR": "'runs/one'",
    "TASK_FEATURE_LENGTHS": "{'targets': 128}",
    "BATCH_SIZE": "16",
    "TRAIN_TOKENS": "1_000_000",
    "LEARNING_RATE": "1e-3",
    "WARMUP_TOKENS": "1000",
}


def of_folder(name: str) -> list[str]:
    return [f"{name}/{path.stem}" for path in sorted((ROOT / "gin_configs" / name).glob("*.gin"))]


def shipped() -> dict[str, tuple[list[str], dict[str, str]]]:
    """Name -> the files of a run and the flags: each file of gin_configs/ is in one of them."""
    runs = {
        "runs/quickstart": (["runs/quickstart"], {"MODEL_DIR": "'runs/one'"}),
        "runs/bloomberggpt": (
            ["mixtures/legal_general", "runs/bloomberggpt"],
            {"MODEL_DIR": "'runs/one'"},
        ),
    }
    for folder in ("models", "mixtures", "optimizers", "topologies"):
        for name in of_folder(folder):
            others = [part for part in PARTS if not part.startswith(folder)]
            runs[name] = (["runs/pretrain", *others, name], NEEDED)
    return runs


class Opened(Exception):
    """Raised by `train` where its config.gin is known, and before any work."""


def opened(files: list[str], flags: dict[str, str] | None = None) -> tuple[dict, str]:
    """What `train` is called with, and the config.gin that it would write."""
    module = load_verb("train")
    bindings = [
        FlagBinding(name, text, f"--gin.{name}={text}") for name, text in (flags or {}).items()
    ]
    checks.parse(files, bindings, load=load_named)
    checks.check(module.train, verbs=selectors())

    texts = []

    def stop(*, without):
        texts.append(checks.operative_config(without=without))
        raise Opened

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "operative_config", stop)
        patch.setattr(module, "read_law", lambda path: None)
        with pytest.raises(Opened):
            module.train(dry_run=True)
    values = gin.get_bindings(module.train)
    parameters = inspect.signature(module.train).parameters.values()
    return {one.name: values.get(one.name, one.default) for one in parameters}, texts[0]


@pytest.fixture
def restarted(tmp_path, monkeypatch):
    """Opens a run in one folder, and its config.gin alone in another: the values of both."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(exist_ok=True)
    second.mkdir()

    def restart(files: list[str], flags: dict[str, str] | None = None) -> tuple[str, str, str]:
        monkeypatch.chdir(first)
        values, text = opened(files, flags)
        monkeypatch.chdir(second)
        pathlib.Path("config.gin").write_text(text)
        again, text_again = opened(["config.gin"])
        assert text_again == text
        # The paths are those of the first folder, wherever the run is started again.
        return repr(values), repr(again).replace(f"{first}/", ""), text

    yield restart
    gin.clear_config()


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_configuration_is_the_same_from_its_config_gin(name, restarted):
    names, flags = shipped()[name]
    before, after, _ = restarted([f"gin_configs/{name}.gin" for name in names], flags)
    assert after == before


def test_no_shipped_file_is_left_out():
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "gin_configs").rglob("*.gin")}
    named = {f"gin_configs/{name}.gin" for names, _ in shipped().values() for name in names}
    # The trials of a sweep are starts of `train` with the flags of a grid.
    assert {file for file in files - named if "/sweeps/" not in file} == set()


EVERYTHING = """
import tests.my_team
include 'gin_configs/runs/pretrain.gin'
include 'gin_configs/models/quickstart_500k.gin'
include 'gin_configs/optimizers/adamw.gin'
include 'gin_configs/topologies/cpu.gin'

MODEL_DIR = 'runs/the run, "quoted" it\\'s 100% @home'
TASK_FEATURE_LENGTHS = {'targets': [(64, 100_000), (128, None)]}
BATCH_SIZE = [(8, 200_000), (16, None)]
TRAIN_TOKENS = 1_000_000
WARMUP_TOKENS = 1_000
LEARNING_RATE = 0.30000000000000004
SEED = 12345678901234567890
AT_CAP = 'renormalise'
EARLY_STOPPING = @EarlyStopping()
INITIAL_CHECKPOINT_PATH = 'runs/base'
RATE = 1e-3
VOCABULARY = 'vocabularies/law.json'
STORES = 'stores'
LEGAL_TEXT = ['text/legal/*.jsonl', 'package:legal.train.jsonl.gz']
MIXTURE = {'zoology': 0.125, 'law': 0.5, 'art': 0.375}

EarlyStopping.patience_tokens = 100_000
EarlyStopping.sources = ['zoology', 'law']
train.optimizer = @AdamW()
AdamW.schedule = @tests.my_team.Staircase()
tests.my_team.Staircase.first = %RATE
train.metrics = [@tests.my_team.WorstRow()]
train.max_epochs = {'zoology': 1e999, 'law': 2.5, 'art': 40}
train.own_law = 'laws/own.json'
train.eval_tokens = 5000
train.keep_period = 1000
train.z_loss = 1e-5
train.allow_blend_change = True
Architecture.feed_forward = 'tests.my_team.GEGLU'
Topology.chip = 'tests.my_team.MY_CHIP'
Topology.compiler_flags = {'xla_z': 'true', 'xla_a': '-1'}
Packing.windows = 'document_starts'
Packing.attend_across_documents = False
Packing.loss_from_context = 3

law/Source.name = 'law'
law/Source.splits = {'validation': 'text/legal/held out.jsonl', 'train': %LEGAL_TEXT}
law/Source.id_field = 'id'
law/Source.date_field = 'day'
law/Source.dates = ('1900', None)
law/Source.filters = [@Length(), @wide/Length(), @Rewrite()]
wide/Length.max_characters = 1_000_000
Length.min_characters = 3
Rewrite.function = 'tests.my_team:shout'
zoology/Source.name = 'zoology'
zoology/Source.splits = {'train': 'package:general.train.jsonl.gz'}
art/Source.name = 'art'
art/Source.splits = {'train': 'train', 'validation': 'train[:1%]'}
art/Source.format = 'tfds'
art/Source.tfds_name = 'art:1.0.0'
art/Source.tfds_data_dir = 'prepared'
exam/Source.name = 'exam'
exam/Source.splits = {'train': ['/elsewhere/exam.jsonl', 'exams']}

Tokenizer.path = %VOCABULARY
Tokenizer.eos = '</s>'
Corpus.tokenizer = @Tokenizer()
Corpus.sources = [@zoology/Source(), @law/Source(), @art/Source()]
Corpus.mixtures = {'start': {'law': 1.0}, 'end': %MIXTURE}
Corpus.mixture_or_task_name = [('start', 'end', 100_000), ('end', None)]
Corpus.cache_dir = %STORES
Corpus.cached_task_dirs = ['seqio', 'gs://bucket/seqio']
Corpus.mixture_or_task_module = 'tests.data.their_mixtures'
Corpus.duplicates = @Duplicates()
Corpus.contamination = @Contamination()
Contamination.evaluation_sets = [@exam/Source()]
"""


@pytest.fixture
def everything(tmp_path) -> pathlib.Path:
    """A gin file with everything set, beside the files that it names."""
    for name in ("text/legal/a.jsonl", "text/legal/held out.jsonl", "prepared/art/1.0.0/x"):
        (tmp_path / "first" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "first" / name).write_text("{}\n")
    (tmp_path / "first/prepared/art/1.0.0/dataset_info.json").write_text("{}")
    # Names of other things that are folders there, too.
    for name in ("train", "law", "zoology", "runs"):
        (tmp_path / "first" / name).mkdir()
    path = tmp_path / "everything.gin"
    path.write_text(EVERYTHING)
    return path


def test_everything_switched_on_is_the_same_from_its_config_gin(everything, restarted):
    before, after, text = restarted([str(everything)])
    assert after == before
    # The order of a dictionary is the user's. Where duplicates are dropped, it has a meaning.
    assert "'end': {'zoology': 0.125, 'law': 0.5, 'art': 0.375}" in before
    assert "'zoology': inf" in before
    assert "tests.my_team" in text


def test_the_paths_in_a_config_gin_are_those_of_the_folder_of_the_start(everything, restarted):
    text = restarted([str(everything)])[2]
    first = everything.parent / "first"
    for name, value in {
        "MODEL_DIR": f'{first}/runs/the run, "quoted" it\'s 100% @home',
        "INITIAL_CHECKPOINT_PATH": f"{first}/runs/base",
        "VOCABULARY": f"{first}/vocabularies/law.json",
        "STORES": f"{first}/stores",
        "LEGAL_TEXT": [f"{first}/text/legal/*.jsonl", "package:legal.train.jsonl.gz"],
        "train.own_law": f"{first}/laws/own.json",
        "art/Source.tfds_data_dir": f"{first}/prepared",
        "Corpus.cached_task_dirs": [f"{first}/seqio", "gs://bucket/seqio"],
        "art/Source.splits": {"train": "train", "validation": "train[:1%]"},
        "zoology/Source.splits": {"train": "package:general.train.jsonl.gz"},
        "exam/Source.splits": {"train": ["/elsewhere/exam.jsonl", f"{first}/exams"]},
        "law/Source.name": "law",
        "Architecture.feed_forward": "tests.my_team.GEGLU",
    }.items():
        written = re.search(rf"^{re.escape(name)} = (.*(?:\n    .*)*)", text, re.MULTILINE)
        assert written, name
        assert ast.literal_eval(written[1].lstrip("\\\n ")) == value, name
