"""Small runs for the tests: made-up token stores with something to learn, and a resolved Run."""

import dataclasses
import hashlib
import pathlib

import numpy as np

from t5x_style.accounting import Architecture, Topology
from t5x_style.data import BatchPlan, SharePhase, TokenStore
from t5x_style.optim import AdamW, Schedule
from t5x_style.step.spec import StepSpec
from t5x_style.training import Run, open_run

VOCABULARY = 128
SEQUENCE = 16
EOS = 1

ARCHITECTURE = Architecture(
    vocab_size=VOCABULARY, layers=2, d_model=64, d_ff=128, heads=8, positions="rope"
)


@dataclasses.dataclass(frozen=True)
class FakeTokenizer:
    """What a run asks of a tokenizer, for stores that no text lies behind."""

    path: str = "made-up"
    eos: str | None = None
    hash: str = "made-up-hash"
    vocab_size: int = VOCABULARY
    eos_id: int = EOS

    @property
    def name_in_run(self) -> str:
        return self.path

    def write_copy(self, model_dir: str) -> None:
        """No file lies behind it."""

    def token_bytes(self) -> np.ndarray:
        return np.ones(VOCABULARY, np.int32)


@dataclasses.dataclass(frozen=True)
class FakeStores:
    phases: tuple
    train: dict
    validation: dict
    tokenizer: FakeTokenizer = dataclasses.field(default_factory=FakeTokenizer)
    notices: tuple = ()


def made_up_store(name: str, tokens: int, seed: int) -> TokenStore:
    """Counting sequences with noise: a model of two layers learns them in a few steps."""
    rng = np.random.default_rng(seed)
    start = rng.integers(2, VOCABULARY, tokens // 8)
    ids = (start[:, None] + np.arange(8)) % (VOCABULARY - 2) + 2
    flat = ids.reshape(-1).astype(np.uint16)
    return TokenStore(
        path=pathlib.Path(name),
        tokens=flat,
        document_ends=np.arange(8, len(flat) + 1, 8),
        meta={
            "fingerprint": f"{name}-{tokens}-{seed}",
            "documents": len(flat) // 8,
            "checksums": {"tokens.bin": hashlib.sha256(flat.tobytes()).hexdigest()},
        },
    )


def constant(shares: dict[str, float]) -> tuple[SharePhase, ...]:
    return (SharePhase(None, shares, shares),)


def stores() -> FakeStores:
    return FakeStores(
        phases=constant({"domain": 0.51, "general": 0.49}),
        train={"domain": made_up_store("d", 4096, 0), "general": made_up_store("g", 8192, 1)},
        validation={"domain": made_up_store("dv", 512, 2), "general": made_up_store("gv", 256, 3)},
    )


def make_run(model_dir, *, steps: int = 20, batch: int = 8, **changes) -> Run:
    """A run of `steps` steps on 8 rows of 16 tokens, in float32 on one device.

    `changes` are fields of the run, or of its `spec`.
    """
    spec = {
        "architecture": ARCHITECTURE,
        "optimizer": AdamW(Schedule(peak_learning_rate=1e-2, warmup_tokens=256)),
        "plan": BatchPlan.from_settings(batch, SEQUENCE, train_steps=steps),
        "compute_dtype": "float32",
    }
    of_the_spec = {field.name for field in dataclasses.fields(StepSpec)}
    spec |= {name: changes.pop(name) for name in of_the_spec & changes.keys()}
    fields = {
        "model_dir": str(model_dir),
        "spec": StepSpec(**spec),
        "topology": Topology(loss_chunk_tokens=64),
        "stores": stores(),
        "seed": 0,
        "max_epochs": 40.0,
        "log_period": 1,
        "eval_period": 10,
        "eval_tokens": None,
        "checkpoint_period": 5,
        "keep_checkpoints": 2,
        "keep_period": None,
        "initial_checkpoint_path": None,
        "config_text": "# made up\n",
    }
    return open_run(**{**fields, **changes})
