"""Loss and bits per byte of every source's validation split."""

import functools
import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from t5x_style.accounting import Topology
from t5x_style.data import EvaluationSet, Packing
from t5x_style.partitioning import batch_sharding
from t5x_style.quantities import bits_per_byte
from t5x_style.step.batches import global_batch
from t5x_style.step.model_state import BoundModel
from t5x_style.step.step import AS_STORED, make_evaluation_step


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
    ):
        """Compiles for `batch_size` rows. Call inside `in_force(topology, mesh)`.

        Args:
          sets: by source; may be empty, and then every evaluation is.
          batch_size: rows per call, a multiple of the axes that split the batch.
          eos_id: the token that ends a document.
          packing: of the training, which tells what documents of a row see of each other.
        """
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
            lowered = jax.jit(step).lower(model.abstract, *self._abstract)
            self._compiled = lowered.compile(compiler_options=dict(topology.compiler_flags))

    def __call__(self, parameters: dict) -> dict[str, float]:
        """The keys of an evaluation line.

        Returns:
          eval/<source>/loss (nats per token), .../perplexity, .../bits_per_byte (comparable
          between vocabularies) and .../tokens.
        """
        line: dict[str, float] = {}
        for source, rows in self._sets.items():
            nats = self._total_loss(parameters, rows)
            tokens = int(rows.weights.sum(dtype=np.float64))
            loss = nats / tokens
            line[f"eval/{source}/loss"] = loss
            line[f"eval/{source}/perplexity"] = math.exp(min(loss, 700.0))
            line[f"eval/{source}/bits_per_byte"] = bits_per_byte(nats, rows.bytes)
            line[f"eval/{source}/tokens"] = tokens
        return line

    def _total_loss(self, parameters: dict, rows: EvaluationSet) -> float:
        sums = []
        for start in range(0, len(rows.tokens), self._batch_size):
            batch = [
                global_batch(functools.partial(_rows, each), start, like)
                for each, like in zip((rows.tokens, rows.weights), self._abstract, strict=True)
            ]
            sums.append(self._compiled(parameters, *batch))
        return float(np.sum(np.asarray(jax.device_get(sums), np.float64)))


def _rows(array: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Rows by number; zeros for those behind the last, whose weights are zero with them."""
    rows = np.zeros((len(numbers), array.shape[1]), array.dtype)
    there = numbers < len(array)
    rows[there] = array[numbers[there]]
    return rows
