"""Loss and bits per byte of every source's validation split."""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from t5x_style.accounting import bits_per_byte
from t5x_style.data import EvaluationSet, Packing
from t5x_style.partitioning import batch_sharding
from t5x_style.training.model_state import BoundModel
from t5x_style.training.step import AS_STORED, make_evaluation_step


class Evaluator:
    """The compiled evaluation of one model over fixed sets, called with parameters."""

    def __init__(
        self,
        model: BoundModel,
        mesh: Mesh,
        sets: Mapping[str, EvaluationSet],
        *,
        batch_size: int,
        loss_chunk_tokens: int,
        loss_vocab_chunks: int = 1,
        eos_id: int,
        packing: Packing = AS_STORED,
        compiler_flags: Mapping[str, str] | None = None,
    ):
        """Compiles for `batch_size` rows. Call inside `topology.in_force(mesh)`.

        Args:
          sets: by source; may be empty, and then every evaluation is.
          batch_size: rows per call, a multiple of the axes that split the batch.
          loss_chunk_tokens, loss_vocab_chunks: as in `partitioning.Topology`.
          eos_id: the token that ends a document.
          packing: of the training, which tells what documents of a row see of each other.
          compiler_flags: options of XLA, as in `Topology`.
        """
        self._sets = dict(sets)
        self._batch_size = batch_size
        self._sharding = batch_sharding(mesh)
        if self._sets:
            length = next(iter(self._sets.values())).weights.shape[1]
            abstract = [
                jax.ShapeDtypeStruct(shape, dtype, sharding=self._sharding)
                for shape, dtype in (
                    ((batch_size, length + 1), np.int32),
                    ((batch_size, length), np.float32),
                )
            ]
            step = make_evaluation_step(
                model,
                loss_chunk_tokens=loss_chunk_tokens,
                loss_vocab_chunks=loss_vocab_chunks,
                eos_id=eos_id,
                packing=packing,
            )
            lowered = jax.jit(step).lower(model.abstract, *abstract)
            self._compiled = lowered.compile(compiler_options=dict(compiler_flags or {}))

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
                _padded(each[start : start + self._batch_size], self._batch_size)
                for each in (rows.tokens, rows.weights)
            ]
            sums.append(self._compiled(parameters, *jax.device_put(batch, self._sharding)))
        return float(np.sum(np.asarray(jax.device_get(sums), np.float64)))


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    """Zero rows behind; their weights are zero with them."""
    return np.pad(rows, ((0, count - len(rows)), (0, 0)))
