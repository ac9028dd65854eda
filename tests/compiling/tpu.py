"""Toy programs, compiled for TPU slices that are not there by the real compiler on this CPU."""

import functools
import importlib.util
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# The whole-program tests go over one of each family; the smallest slice that has two axes.
SLICES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# A gather of a matrix's shards as one gather, rather than as a chain of permutations that
# multiplies as the parts come in.
WHOLE_GATHERS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
NEEDS_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler comes with the extra 'tpu'",
)
LAYERS, TOKENS, WIDTH, INNER = 3, 64, 256, 512


@functools.cache
def devices(topology: str, slices: int = 1) -> tuple[jax.Device, ...]:
    pytest.importorskip("libtpu", reason="the TPU compiler comes with the extra 'tpu'")
    for name in ("ALLOW_MULTIPLE_LIBTPU_LOAD", "TPU_SKIP_MDS_QUERY"):
        os.environ.setdefault(name, "1")
    several = {"num_slices": slices} if slices > 1 else {}
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **several)
    return tuple(described.devices)


def mesh(topology: str, slices: int = 1, **axes: int) -> Mesh:
    """The first devices of a slice as a mesh of named axes."""
    chosen = devices(topology, slices)[: math.prod(axes.values())]
    return Mesh(np.array(chosen).reshape(tuple(axes.values())), tuple(axes))


def compiled_text(function, *arguments, flags: dict[str, str] | None = None, **jit) -> str:
    lowered = jax.jit(function, **jit).lower(*arguments)
    return lowered.compile(compiler_options=flags).as_text()


def array(mesh: Mesh, shape: tuple[int, ...], dtype, *axes) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))


def chain_step(weights, tokens):
    """A step of gradient descent on a scanned chain of two matrices a layer."""

    def layer(x, matrices):
        first, second = (matrix.astype(jnp.bfloat16) for matrix in matrices)
        return x + jnp.tanh(x @ first) @ second, None

    def loss(weights):
        x, _ = jax.lax.scan(layer, tokens, weights)
        return (x.astype(jnp.float32) ** 2).mean()

    gradients = jax.grad(loss)(weights)
    return jax.tree.map(lambda weight, gradient: weight - 1e-3 * gradient, weights, gradients)


def chain_arguments(mesh: Mesh, width: int = WIDTH, inner: int = INNER):
    """(weights, tokens) of `chain_step`: rows over fsdp, the batch over data and fsdp."""
    weights = (
        array(mesh, (LAYERS, width, inner), jnp.float32, None, "fsdp"),
        array(mesh, (LAYERS, inner, width), jnp.float32, None, "fsdp"),
    )
    return weights, array(mesh, (TOKENS, width), jnp.bfloat16, ("data", "fsdp"))


def chain_text(mesh: Mesh, flags: dict[str, str] | None = None, **sizes: int) -> str:
    weights, tokens = chain_arguments(mesh, **sizes)
    shardings = jax.tree.map(lambda weight: weight.sharding, weights)
    return compiled_text(chain_step, weights, tokens, flags=flags, out_shardings=shardings)
