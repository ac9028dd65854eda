"""Loss and bits per byte of every source's validation split."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from t5x_style.accounting import Topology
from t5x_style.data import EvaluationSet, Packing
from t5x_style.errors import UsageError
from t5x_style.partitioning import batch_sharding
from t5x_style.partitioning.sharding import replicated
from t5x_style.plugins import check_fulfils
from t5x_style.quantities import bits_per_byte
from t5x_style.reporting.logs.log_lines import EVALUATION_PREFIX
from t5x_style.reporting.run.writer import EVALUATION_MEASURES
from t5x_style.step.batches import global_batch
from t5x_style.step.model_state import BoundModel
from t5x_style.step.step import AS_STORED, make_evaluation_step

# Batches queued on the device, so that an evaluation can be left within a few of them.
BATCHES_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class EvaluationSums:
    """The losses of an evaluation on one source, from which a metric is computed.

    Attributes:
      source: name.
      row_nats: float64 [n], the summed -log p of a row's predicted tokens.
      row_tokens: int64 [n], the number of a row's predicted tokens.
      bytes: UTF-8 bytes of the original text of all predicted tokens.
    """

    source: str
    row_nats: np.ndarray
    row_tokens: np.ndarray
    bytes: int


class Metric(Protocol):
    """A figure next to the loss, such as `train.metrics = [@my_team.WorstRow()]` in gin.

    Its value is in the evaluation lines as `eval/<source>/<name>`.
    """

    @property
    def name(self) -> str:
        """The last part of the key, and none of EVALUATION_MEASURES."""

    def value(self, sums: EvaluationSums) -> float:
        """The figure of one source."""


def check_metrics(metrics: Sequence[Metric]) -> None:
    """Check the names of the metrics.

    Raises:
      UsageError: two metrics have the same name, or one has that of a built-in measure; or an
        object is no metric.
    """
    for metric in metrics:
        check_fulfils("train.metrics", metric, Metric)
    names = [*EVALUATION_MEASURES, *(metric.name for metric in metrics)]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"metrics: {name!r} is the name of two figures; built in are "
                f"{', '.join(EVALUATION_MEASURES)}"
            )


class Evaluator:
    """The compiled evaluation of one model over fixed sets, called with parameters."""

    def __init__(
        self,
        model: BoundModel,
        mesh: Mesh,
        sets: Mapping[str, EvaluationSet],
        topology: Topology,
        *,
        batch_size: int,
        eos_id: int,
        packing: Packing = AS_STORED,
        metrics: Sequence[Metric] = (),
    ):
        """Compiles for `batch_size` rows. Call inside `in_force(topology, mesh)`.

        Args:
          sets: by source. If it is empty, evaluation lines are empty.
          batch_size: rows per call, a multiple of the axes that split the batch.
          eos_id: the token that ends a document.
          packing: of the training: whether documents of a row attend to each other.
          metrics: further figures.

        Raises:
          UsageError: as `check_metrics`.
        """
        check_metrics(metrics)
        self._metrics = tuple(metrics)
        self._sets = dict(sets)
        self._batch_size = batch_size
        if self._sets:
            length = next(iter(self._sets.values())).weights.shape[1]
            sharding = batch_sharding(mesh)
            self._abstract = [
                jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
                for shape, dtype in (
                    ((batch_size, length + 1), np.int32),
                    ((batch_size, length), np.float32),
                )
            ]
            step = make_evaluation_step(
                model,
                loss_chunk_tokens=topology.loss_chunk_tokens,
                loss_vocab_chunks=topology.loss_vocab_chunks,
                eos_id=eos_id,
                packing=packing,
            )
            # Replicated: every process reads the sums of all rows.
            jitted = jax.jit(step, out_shardings=replicated(mesh))
            lowered = jitted.lower(model.abstract, *self._abstract)
            self._compiled = lowered.compile(compiler_options=dict(topology.compiler_flags))

    def __call__(
        self, parameters: dict, leave: Callable[[], object] = lambda: None
    ) -> dict[str, float] | None:
        """The keys of an evaluation line.

        Args:
          leave: asked before each batch, equally often in all processes. The evaluation is left
            when the answer is true.

        Returns:
          eval/<source>/loss (nats per token), .../perplexity, .../bits_per_byte (comparable
          between vocabularies), .../tokens, and .../<name> of every metric. None if it was left.
        """
        line: dict[str, float] = {}
        for source, rows in self._sets.items():
            losses = self._losses(parameters, rows, leave)
            if losses is None:
                return None
            nats, row_nats = losses
            row_tokens = rows.weights.sum(1, dtype=np.int64)
            tokens = int(row_tokens.sum())
            loss = nats / tokens
            sums = EvaluationSums(source, row_nats, row_tokens, rows.bytes)
            figures = {
                "loss": loss,
                "perplexity": math.exp(min(loss, 700.0)),
                "bits_per_byte": bits_per_byte(nats, rows.bytes),
                "tokens": tokens,
                **{metric.name: float(metric.value(sums)) for metric in self._metrics},
            }
            line |= {f"{EVALUATION_PREFIX}{source}/{name}": x for name, x in figures.items()}
        return line

    def _losses(
        self, parameters: dict, rows: EvaluationSet, leave: Callable[[], object]
    ) -> tuple[float, np.ndarray] | None:
        """The summed loss, and the loss of every row, float64 [n]; None if it was left."""
        found: list[tuple[jax.Array, jax.Array]] = []
        for start in range(0, len(rows.tokens), self._batch_size):
            jax.block_until_ready(found[:-BATCHES_IN_FLIGHT][-1:])
            if leave():
                return None
            batch = [
                global_batch(functools.partial(_rows, array), start, like)
                for array, like in zip((rows.tokens, rows.weights), self._abstract, strict=True)
            ]
            found.append(self._compiled(parameters, *batch))
        sums, row_sums = zip(*jax.device_get(found), strict=True)
        row_nats = np.concatenate(row_sums).astype(np.float64)[: len(rows.tokens)]
        return float(np.sum(np.asarray(sums, np.float64))), row_nats


def _rows(array: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Rows by number; numbers past the last row give padding, zeros in tokens and weights."""
    rows = np.zeros((len(numbers), array.shape[1]), array.dtype)
    inside = numbers < len(array)
    rows[inside] = array[numbers[inside]]
    return rows
