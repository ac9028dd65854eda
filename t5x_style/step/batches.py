"""The global batch of a step. Every process reads the rows of its own devices."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding

from t5x_style.data import Packing
from t5x_style.step.step import AS_STORED, batch_width


def abstract_batch(
    size: int, sequence_length: int, sharding: NamedSharding, packing: Packing = AS_STORED
) -> jax.ShapeDtypeStruct:
    """The shape of a batch: int32 [B, W] (see `step.packed_batch`)."""
    shape = (size, batch_width(sequence_length, packing))
    return jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding)


def global_batch(
    read: Callable[[np.ndarray], np.ndarray], first: int, like: jax.ShapeDtypeStruct
) -> jax.Array:
    """The rows of one step over the whole mesh: the same array for any number of processes.

    Row numbers follow from the step by arithmetic, so processes do not communicate. A process whose
    devices hold a part of the batch reads that part alone.

    Args:
      read: from row numbers int64 [n] to an array [n, W].
      first: number of the step's first row.
      like: [B, W] with a sharding that splits rows over the mesh and leaves each whole.
    """
    count, sharding = len(like), like.sharding
    if sharding.is_fully_addressable:
        return jax.device_put(read(np.arange(first, first + count)), sharding)
    # Devices along axes that do not split the batch hold the same rows, which are read once.
    devices = {
        device: index[0].indices(count)[:2]
        for device, index in sharding.addressable_devices_indices_map(like.shape).items()
    }
    held = sorted(set(devices.values()))
    rows = read(np.concatenate([np.arange(first + start, first + stop) for start, stop in held]))
    ends = np.cumsum([stop - start for start, stop in held])
    pieces = dict(zip(held, np.split(rows, ends[:-1]), strict=True))
    return jax.make_array_from_single_device_arrays(
        like.shape,
        sharding,
        [jax.device_put(pieces[row_range], device) for device, row_range in devices.items()],
    )
