"""A small training that a fault may hit: its text, its configuration and its command lines."""

import json
import pathlib
import random

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = """runs/pretrain mixtures/legal_general models/quickstart_500k optimizers/adamw
topologies/cpu"""
NAMES = ("legal", "general")
WORDS = """the lessee shall pay rent on day one of every month and keep all rooms dry clean warm
quiet while a court may hear both sides before it finds that no breach was made by either party
return value if index else raise error import module class self list dict int string"""
# The byte tokenizer has fewer ids, so this one is in no text.
UNUSED_ID = 383
STEPS, SAVE_PERIOD, EVAL_PERIOD, KEPT = 40, 5, 10, 3
BINDINGS = {
    "TOKENIZER": "'bytes'", "VOCAB_SIZE": 384, "TASK_FEATURE_LENGTHS": {"targets": 16},
    "BATCH_SIZE": 4, "TRAIN_STEPS": STEPS, "COMPUTE_DTYPE": "'float32'", "LEARNING_RATE": 4e-3,
    # So that a run may be given more steps, and its first ones stay.
    "SCHEDULE": "'constant'", "WARMUP_TOKENS": 500, "LOG_PERIOD": 1,
    "EVAL_PERIOD": EVAL_PERIOD, "CHECKPOINT_PERIOD": SAVE_PERIOD, "train.keep_checkpoints": KEPT,
    "train.eval_tokens": 600, "Architecture.layers": 1, "Architecture.d_model": 16,
    "Architecture.d_ff": 32, "Architecture.heads": 2, "Topology.attention_block": 8,
}  # fmt: skip


def make_home(folder: pathlib.Path) -> None:
    """Write the text and `run.gin`; the stores are built by the first training."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"include '{ROOT}/gin_configs/{name}.gin'" for name in SHIPPED.split()]
    lines += [f"{name} = {value}" for name, value in BINDINGS.items()]
    lines += [f"CACHE_DIR = '{folder}/stores'"]
    for name in NAMES:
        splits = {}
        for split, count in (("train", 150), ("validation", 10)):
            drawn = random.Random(f"{name} {split}")
            documents = (
                {"id": str(n), "text": " ".join(drawn.choices(WORDS.split(), k=30))}
                for n in range(count)
            )
            splits[split] = f"{folder}/{name}.{split}.jsonl"
            text = "".join(json.dumps(document) + "\n" for document in documents)
            pathlib.Path(splits[split]).write_text(text)
        lines += [f"{name}/Source.splits = {splits}"]
    (folder / "run.gin").write_text("\n".join([*lines, ""]))


def train_arguments(home: pathlib.Path, model_dir: pathlib.Path, **bindings: object) -> list[str]:
    """The command line of a training, without the name of the program.

    `bindings` are written by gin's names, with `__` for a dot: `Hosts__index=1`.
    """
    named = {name.replace("__", "."): value for name, value in bindings.items()}
    return [
        "train",
        f"--gin_file={home}/run.gin",
        f"--gin.MODEL_DIR={model_dir}",
        *(f"--gin.{name}={value}" for name, value in named.items()),
    ]
