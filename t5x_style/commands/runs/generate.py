"""`t5x-style generate`: sample from a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import gin

from t5x_style.config.checks import refuse_unconsumed
from t5x_style.files import LocalPath
from t5x_style.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt, Range

if TYPE_CHECKING:
    from t5x_style.accounting import Topology

CONFIGURABLES = ("t5x_style.accounting.topology",)


@gin.configurable
def generate(
    *,
    model_dir: str,
    prompt: str = "",
    samples: PositiveInt = 1,
    max_tokens: PositiveInt = 128,
    temperature: NonNegativeFloat = 0.8,
    top_p: Annotated[float, Range(above=0, most=1)] = 0.95,
    seed: int = 0,
    step: NonNegativeInt | None = None,
    vocabulary: LocalPath | None = None,
    topology: Topology | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Samples continuations of a prompt from a run's checkpoint.

    Args:
      model_dir: the run, or one of its checkpoints.
      prompt: the start of the text; if empty, a new document.
      samples: number of continuations.
      max_tokens: most tokens after the prompt; a document may end earlier.
      temperature: 0 always takes the likeliest token.
      top_p: sample among the likeliest tokens that together have this probability.
      seed: of the random numbers.
      step: the checkpoint of this step; the newest whole one if not given.
      vocabulary: its file, where plan.json names one outside of the run's folder, as that of an old
        run does.
      topology: @Topology(); one device if not given.
      dry_run: only check that the model can be loaded.
    """
    refuse_unconsumed()
    from t5x_style.accounting import Topology
    from t5x_style.inference import restore_model, sample

    restored = restore_model(model_dir, topology or Topology(), step=step, vocabulary=vocabulary)
    if dry_run:
        return {"model_dir": model_dir, "step": restored.step}
    texts = sample(
        restored,
        prompt,
        samples=samples,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    for number, text in enumerate(texts, start=1):
        print(f"--- sample {number} of {samples}, step {restored.step:,} ---")
        print(prompt + text)
    return {"model_dir": model_dir, "step": restored.step, "prompt": prompt, "texts": texts}
