"""A made-up run: the files that a training run leaves, without training."""

import math
import random

import pytest

from t5x_style.accounting import Architecture, Auditor, Ledger
from t5x_style.reporting import RunWriter
from tests.plans import made_up_plan, write_plan

SHARES = {"legal": 0.51, "general": 0.49}
ARCHITECTURE = Architecture(vocab_size=4096, layers=4, d_model=128, d_ff=344, heads=4)


@pytest.fixture(scope="session")
def made_up_run():
    """A function from a directory, and values that differ by run, to a finished run in it."""

    def make(model_dir, *, peak=3e-3, steps=400, mfu=0.31):
        noise = random.Random(peak)
        auditor = Auditor(ARCHITECTURE, 128)
        ledger = Ledger({"compile": 6.2, "other": 1.4})
        with RunWriter(model_dir, resume_step=None) as writer:
            writer.event("started", step=0, tokens=0, reason="fresh")
            for step in range(steps + 1):
                tokens = step * 2048
                loss = 2.4 + 5.9 / (1 + step / 14) ** (0.5 + 20 * peak) + noise.gauss(0, 0.02)
                if step % 100 == 0:
                    ledger.add("evaluate", 1.3)
                    writer.metrics(
                        {"step": step, "tokens": tokens}
                        | {
                            f"eval/{source}/{measure}": value
                            for source, offset in (("legal", -0.15), ("general", 0.2))
                            for measure, value in {
                                "loss": loss + offset,
                                "bits_per_byte": (loss + offset) / math.log(2) / 3.6,
                                "perplexity": math.exp(loss + offset),
                                "tokens": 100_000,
                            }.items()
                        }
                    )
                if step % 10 or not step:
                    continue
                ledger.add("step", 4.1)
                ledger.add("data", 0.02)
                line = {
                    "step": step,
                    "tokens": tokens,
                    "loss": None if step == 50 else loss,
                    "z_loss": 1e-4,
                    "learning_rate": peak * min(step / 40, 0.55 + 0.45 * math.cos(step / 128)),
                    "grad_norm": 0.4,
                    "param_norm": 41.0,
                    "step_seconds": 0.41,
                    "data_wait_seconds": 0.002,
                    "tokens_per_second": 5000 + noise.gauss(0, 150),
                }
                for source, share in SHARES.items():
                    rows = round(tokens / 128 * share)
                    line[f"tokens/{source}"] = rows * 128
                    line[f"share/{source}"] = rows * 128 / tokens
                    line[f"epochs/{source}"] = rows * 128 / 4e6
                    line[f"loss/{source}"] = loss + (-0.15 if source == "legal" else 0.2)
                known = None if mfu is None else mfu + noise.gauss(0, 0.005)
                line |= {"mfu_full": known, "mfu_causal": known, "hfu": known}
                writer.metrics(line | auditor.line_at(tokens) | ledger.line())
            writer.event("saved", step=steps, tokens=tokens)
            writer.event("finished", step=steps, tokens=tokens, seconds=ledger.seconds)
        total = {"total": auditor.parameters}
        write_plan(model_dir, made_up_plan(SHARES, tokens=steps * 2048, parameters=total))
        (model_dir / "config.gin").write_text("train.steps = 400\ntrain.name = '<a & b>'\n")
        return model_dir

    return make
