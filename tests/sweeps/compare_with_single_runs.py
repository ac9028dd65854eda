"""A sweep of real runs over learning rate and width, killed once, against the same runs one by one.

    python -m tests.sweeps.compare_with_single_runs

takes some three minutes on two cores for six trials and prints the largest difference last.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from t5x_style.sweeps import trial_result
from tests import warm

ROOT = Path(__file__).resolve().parents[2]
STEPS = 160
RUN = f"""
include 'gin_configs/runs/pretrain.gin'
include 'gin_configs/optimizers/adamw.gin'
include 'gin_configs/topologies/cpu.gin'
TASK_FEATURE_LENGTHS = {{'targets': 16}}
BATCH_SIZE = 2
TRAIN_STEPS = {STEPS}
LEARNING_RATE = %gin.REQUIRED
WARMUP_TOKENS = 64
COMPUTE_DTYPE = 'float32'
LOG_PERIOD = 1
EVAL_PERIOD = 80
CHECKPOINT_PERIOD = 20
train.eval_tokens = 256
Architecture.vocab_size = 400
Architecture.layers = 1
Architecture.d_model = %gin.REQUIRED
Architecture.d_ff = 16
Architecture.heads = 2
a/Source.name = 'a'
a/Source.splits = {{'train': 'package:legal.validation.jsonl.gz'}}
a/Source.validation_share = 0.5
b/Source.name = 'b'
b/Source.splits = {{'train': 'package:general.validation.jsonl.gz'}}
Tokenizer.path = 'FOLDER/vocabulary.model'
Corpus.tokenizer = @Tokenizer()
Corpus.sources = [@a/Source(), @b/Source()]
Corpus.mixtures = {{'both': {{'a': 0.7, 'b': 0.3}}}}
Corpus.mixture_or_task_name = 'both'
Corpus.cache_dir = 'FOLDER/stores'
tokenizer.corpus = @Corpus()
tokenizer.vocab_size = 400
"""


def compare(folder: Path, rates: Sequence[float], widths: Sequence[int]) -> float:
    """Runs both, and returns the largest difference between any two figures of the tables."""
    environment = {
        **os.environ,
        # What a trial has compiled, the same run by itself need not compile again.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    (folder / "run.gin").write_text(RUN.replace("FOLDER", str(folder)))

    def run(*arguments: str) -> str:
        """Standard output of a command that must end well."""
        done = warm.run(["-m", "t5x_style", *arguments], env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("tokenizer", f"--gin_file={folder}/run.gin")
    sweep = (
        "sweep",
        "--json",
        f"--run_files=['{folder}/run.gin']",
        f"--sweep_dir={folder}/sweep",
        f"--grid={{'LEARNING_RATE': {list(rates)}, 'Architecture.d_model': {list(widths)}}}",
    )
    _kill_in_the_first_trial([sys.executable, "-m", "t5x_style", *sweep], folder, environment)
    trials = json.loads(run(*sweep))["trials"]
    assert [trial["status"] for trial in trials] == ["finished"] * len(rates) * len(widths)
    worst = 0.0
    for trial in trials:
        rate, width = trial["values"]["LEARNING_RATE"], trial["values"]["Architecture.d_model"]
        alone = folder / "alone" / trial["name"]
        run(
            "train",
            f"--gin_file={folder}/run.gin",
            f"--gin.LEARNING_RATE={rate}",
            f"--gin.Architecture.d_model={width}",
            f"--gin.MODEL_DIR={alone}",
        )
        expected = trial_result(alone)
        assert expected.keys() == trial["result"].keys()
        assert expected["tokens"] == 2 * 16 * STEPS
        worst = max(worst, *(abs(expected[name] - trial["result"][name]) for name in expected))
    return worst


def _kill_in_the_first_trial(
    command: Sequence[str], folder: Path, environment: dict[str, str]
) -> None:
    """SIGKILL to the sweep once its first trial has a checkpoint and is not at its end."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while not list(folder.glob("sweep/*/checkpoint_[1-9]*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    [metrics] = folder.glob("sweep/*/metrics.jsonl")
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()[:-1]]
    assert steps[-1] < STEPS


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        worst = compare(Path(folder), rates=(0.001, 0.003, 0.01), widths=(8, 16))
    print(f"6 trials, killed once: largest difference from single runs: {worst}")


if __name__ == "__main__":
    main()
