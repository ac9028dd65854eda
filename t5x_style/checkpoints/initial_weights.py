"""Initial weights from another run, also one with a smaller or otherwise padded vocabulary.

The row of an added piece is the mean of the rows of its sub-pieces. That holds for the embedding
and for an output matrix that is not tied to it.
"""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from t5x_style.checkpoints import find_checkpoint, restore_parameters, run_folder
from t5x_style.checkpoints.beginning import whose_is
from t5x_style.data import Tokenizer
from t5x_style.data.tokenizers.extend import Extension, read_extension
from t5x_style.data.tokenizers.kinds import BYTES
from t5x_style.data.tokenizers.tokenizer import PAD_ID
from t5x_style.errors import UsageError
from t5x_style.files import is_inside
from t5x_style.reporting import VocabularyRecord, read_derived

# The parameters [V, D] with a row for each id; a tied model has only the first.
ROWS = ("embedding", "head")


def initial_parameters(path: str, tokenizer: Tokenizer, target: dict) -> dict:
    """The parameters of a checkpoint of another run, in the shapes and shardings of `target`.

    If `tokenizer` extends that run's vocabulary (see `data.tokenizers.extend`), rows for the added
    pieces are computed. The rows to which no id belongs may be more or fewer.

    Args:
      path: a checkpoint in a run's folder, or that folder for its newest checkpoint.
      tokenizer: the vocabulary of the run that starts.
      target: the parameters as ShapeDtypeStructs with shardings.

    Raises:
      UsageError: there is no whole checkpoint, its architecture differs, or the vocabulary is
        neither that of the checkpoint's run nor an extension of it.
    """
    checkpoint = find_checkpoint(path, whose_is(run_folder(path)))
    base = read_derived(checkpoint.parent)
    stored_rows = base.architecture.vocab_size
    if tokenizer.hash == base.vocabulary.hash:
        if target["embedding"].shape[0] == stored_rows:
            return restore_parameters(checkpoint, target)
        nothing = Extension(tokenizer.hash, tokenizer.vocab_size, {})
        return _extended(checkpoint, stored_rows, nothing, target)
    extension = read_extension(tokenizer)
    if extension is None or extension.base_hash != base.vocabulary.hash:
        vocabulary = _vocabulary_path(str(checkpoint.parent), base.vocabulary)
        what = "extends nothing" if extension is None else "extends another one"
        raise UsageError(
            f"INITIAL_CHECKPOINT_PATH = {path} was trained with another vocabulary, "
            f"{vocabulary}: its ids mean other text than those of {tokenizer.path}, "
            f"which {what}. Take that vocabulary, or extend it: "
            f"t5x-style tokenizer --extend={vocabulary}"
        )
    return _extended(checkpoint, stored_rows, extension, target)


def run_tokenizer(
    model_dir: str, record: VocabularyRecord, vocabulary: str | None = None
) -> Tokenizer:
    """The vocabulary of a run, from the run's own copy.

    Args:
      record: of the run's plan.json, which may be a stranger's. That of an old run has the path of
        the original vocabulary.
      vocabulary: the file that the user has named instead.

    Raises:
      UsageError: the plan names a file outside of the run's folder, and the user names none.
    """
    path = vocabulary or _vocabulary_path(model_dir, record)
    if vocabulary is None and path != BYTES and not is_inside(path, model_dir):
        raise UsageError(
            f"{model_dir}/plan.json names the vocabulary {record.path!r}, outside of {model_dir}: "
            f"if it is yours, give --vocabulary={pathlib.Path(path).resolve()}"
        )
    return Tokenizer(path, record.eos)


def _vocabulary_path(model_dir: str, record: VocabularyRecord) -> str:
    return record.path if record.path == BYTES else str(pathlib.Path(model_dir) / record.path)


def _extended(
    checkpoint: pathlib.Path, stored_rows: int, extension: Extension, target: dict
) -> dict:
    stored = dict(target)
    for name in target.keys() & set(ROWS):
        leaf = target[name]
        # The mesh may not divide the base's rows. It divides the columns, as in the target.
        columns = PartitionSpec(None, leaf.sharding.spec[1])
        stored[name] = jax.ShapeDtypeStruct(
            (stored_rows, leaf.shape[1]),
            leaf.dtype,
            sharding=NamedSharding(leaf.sharding.mesh, columns),
        )
    parameters = restore_parameters(checkpoint, stored)
    for name in target.keys() & set(ROWS):
        rows = target[name].shape[0]
        parameters[name] = jax.jit(
            lambda base, rows=rows: extended_rows(base, extension, rows),
            out_shardings=target[name].sharding,
        )(parameters[name])
    return parameters


def extended_rows(base: jax.Array, extension: Extension, rows: int) -> jax.Array:
    """The matrix of a grown vocabulary.

    Args:
      base: [V0 or more, D], a row for each id of the base, then unused rows.
      extension: how the vocabulary has grown, from V0 to V ids.
      rows: of the result, V or more.

    Returns:
      [rows, D]: the base's V0 rows; for each added id the mean of the rows of its sub-pieces; for
      ids that do not exist the row of the padding id, which the base learnt never to predict.
    """
    added = [extension.sub_pieces[token] for token in sorted(extension.sub_pieces)]
    lengths = np.array([len(ids) for ids in added], np.int64)
    owners = np.repeat(np.arange(len(added)), lengths)
    flat = np.fromiter(itertools.chain.from_iterable(added), np.int32)
    sums = jax.ops.segment_sum(base[flat], owners, num_segments=len(added))
    unused = rows - extension.base_size - len(added)
    parts = [
        base[: extension.base_size],
        sums / lengths[:, None].astype(base.dtype),
        jnp.broadcast_to(base[PAD_ID], (unused, base.shape[1])),
    ]
    return jnp.concatenate(parts)
