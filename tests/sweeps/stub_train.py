"""Stands in for `t5x-style train`: same flags, same files, same resuming, no model.

The loss after a step depends on the values and the step alone, as a real run's does.
"""

import ast
import json
import os
import signal
import sys
import time
from pathlib import Path


def flag_values(arguments: list[str]) -> dict:
    pairs = (a.removeprefix("--gin.").partition("=") for a in arguments if a.startswith("--gin."))
    return {name: ast.literal_eval(text) for name, _, text in pairs}


def main() -> int:
    values = flag_values(sys.argv[1:])
    known = {"LEARNING_RATE", "Model.width", "STEPS", "SECONDS", "MODEL_DIR", "FAIL", "STUBBORN"}
    known |= {"TOGETHER"}
    if unknown := sorted(set(values) - known):
        print(f"error: --gin.{unknown[0]}=…: nothing uses a macro {unknown[0]}", file=sys.stderr)
        return 2
    rate, width = values.get("LEARNING_RATE", 1.0), values.get("Model.width", 1)
    folder = Path(values["MODEL_DIR"])
    folder.mkdir(exist_ok=True)
    with (folder / "starts").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    # Until so many trials have started, which they never do one after another.
    deadline = time.monotonic() + 60
    while len(list(folder.parent.glob("*/starts"))) < values.get("TOGETHER", 0):
        if time.monotonic() > deadline:
            return 1
        time.sleep(0.01)
    if values.get("STUBBORN"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    metrics = folder / "metrics.jsonl"
    done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    for step in range(done + 1, values.get("STEPS", 3) + 1):
        time.sleep(values.get("SECONDS", 0.0))
        if values.get("FAIL") == width:
            print("some words\nerror: ZeroDivisionError: width", flush=True)
            return 1
        line = {
            "step": step,
            "tokens": 10 * step,
            "time": float(step),
            "loss": 1 / (rate * width * step),
            "loss_steps": min(step, 2),
            "chinchilla/besiroglu/compute_efficiency": 0.5 / width,
        }
        with metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")
    print("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
