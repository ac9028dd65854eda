"""`t5x-style evaluate`: loss and bits per byte of a checkpoint, by source."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gin

from t5x_style.commands.runs.train import shared_stores
from t5x_style.config.checks import operative_config, refuse_unconsumed
from t5x_style.errors import UsageError
from t5x_style.files import LocalPath, is_inside, local_path
from t5x_style.ranges import EvalTokens, NonNegativeInt, PositiveInt
from t5x_style.reporting import table

if TYPE_CHECKING:
    from t5x_style.accounting import Topology
    from t5x_style.data import Corpus, TokenStore
    from t5x_style.hosts import Hosts
    from t5x_style.training.evaluation import Metric

CONFIGURABLES = ("t5x_style.data", "t5x_style.hosts", "t5x_style.accounting.topology")


@gin.configurable
def evaluate(
    *,
    model_dir: str,
    corpus: Corpus | None = None,
    step: NonNegativeInt | None = None,
    cache_dir: LocalPath | None = None,
    vocabulary: LocalPath | None = None,
    batch_size: PositiveInt = 16,
    eval_tokens: EvalTokens | None = None,
    metrics: Sequence[Metric] = (),
    topology: Topology | None = None,
    hosts: Hosts | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Evaluates a run's checkpoint on the validation split of every source.

    Bits per byte do not depend on the vocabulary, so models can be compared by them. Loss and
    perplexity are per token.

    Args:
      model_dir: the run, or one of its checkpoints.
      corpus: @Corpus() with the run's tokenizer, for other sources than those of the run. They need
        no train files. A notice counts the documents that the run was trained on.
      step: the checkpoint of this step; the newest whole one if not given.
      cache_dir: the folder of the run's stores, as CACHE_DIR was in training. plan.json has their
        places, and may be a stranger's: outside of the run's folder nothing is opened that is not
        named here.
      vocabulary: its file, where plan.json names one outside of the run's folder, as that of an old
        run does.
      batch_size: sequences per call.
      eval_tokens: tokens of each split to evaluate; all of them if not given.
      metrics: further figures, such as [@my_team.WorstRow()].
      topology: @Topology(); one device if not given.
      hosts: the index of this process among several, @Hosts(); from the environment if not given.
      dry_run: only check that the model and the stores can be loaded.
    """
    refuse_unconsumed()
    from t5x_style.accounting import StepShape, Topology
    from t5x_style.accounting.layouts.divisibility import check_divisible
    from t5x_style.checkpoints import run_folder
    from t5x_style.data import Packing, evaluation_set
    from t5x_style.data.stores.held_out import seen_by_run, stores_by_name
    from t5x_style.hosts import Hosts, from_writer
    from t5x_style.inference import restore_model
    from t5x_style.partitioning import in_force
    from t5x_style.reporting.run.writer import EVALUATION_MEASURES
    from t5x_style.training.evaluation import Evaluator, check_metrics

    check_metrics(metrics)

    with (hosts or Hosts()).join(operative_config(without=Hosts)):
        restored = restore_model(
            model_dir, topology or Topology(), step=step, vocabulary=vocabulary
        )
        if corpus is None:
            stores = {
                name: _opened(
                    run_folder(model_dir), name, held_out.store, cache_dir, restored.tokenizer.hash
                )
                for name, held_out in restored.derived.held_out[-1].stores.items()
            }
        else:
            if corpus.tokenizer.hash != restored.tokenizer.hash:
                raise UsageError(
                    f"Tokenizer.path = {corpus.tokenizer.path!r} is not the vocabulary of "
                    f"{model_dir}, which is {restored.tokenizer.path!r}"
                )
            opened = shared_stores(corpus, build=not dry_run, evaluate_only=True)
            stores = dict(opened.validation)
            trained_on, unknown = stores_by_name(
                {name: x.store for name, x in restored.derived.sources.items()},
                cache_dir or corpus.cache_dir,
            )
            for notice in unknown:
                print(notice)
            for notice in from_writer(lambda: seen_by_run(trained_on, stores, restored.tokenizer)):
                print(f"the run was trained on held-out text: {notice}")
        if not stores:
            raise UsageError(f"{model_dir}: no source has a validation split")
        length = restored.derived.horizon.sequence_length
        check_divisible(
            StepShape(restored.model.architecture, batch_size, length), restored.topology
        )
        if dry_run:
            return {"model_dir": model_dir, "step": restored.step, "sources": sorted(stores)}
        with in_force(restored.topology, restored.mesh):
            evaluator = Evaluator(
                restored.model,
                restored.mesh,
                {
                    name: evaluation_set(store, restored.tokenizer, length, eval_tokens)
                    for name, store in stores.items()
                },
                restored.topology,
                batch_size=batch_size,
                eos_id=restored.tokenizer.eos_id,
                packing=Packing(**restored.derived.packing),
                metrics=metrics,
            )
        line = evaluator(restored.parameters)
        assert line is not None  # nobody asks to leave
        measures = (*EVALUATION_MEASURES, *(metric.name for metric in metrics))
        print(
            table(
                [
                    (name, *(line[f"eval/{name}/{measure}"] for measure in measures))
                    for name in sorted(stores)
                ],
                ("source", *measures),
            )
        )
        return {"model_dir": model_dir, "step": restored.step, **line}


def _opened(
    model_dir: str, source: str, path: str, cache_dir: str | None, tokenizer_hash: str
) -> TokenStore:
    """The validation store of a source; a run that was copied may not have it at hand."""
    from t5x_style.data import TokenStore

    folder = pathlib.Path(path)
    if cache_dir is not None and folder.name not in ("", ".."):
        folder = local_path(cache_dir, "--cache_dir") / folder.name
    elif not is_inside(folder, model_dir):
        raise UsageError(
            f"{model_dir}/plan.json names the validation store of {source!r}, {path!r}, outside of "
            f"{model_dir}: if it is yours, give --cache_dir={folder.parent}"
        )
    if not folder.exists():
        raise UsageError(
            f"{model_dir}: the validation store of {source!r}, {folder}, is not here: give "
            "evaluate.corpus = @Corpus() in a gin file with the sources, and it is built"
        )
    return TokenStore.open(str(folder), tokenizer_hash=tokenizer_hash)
