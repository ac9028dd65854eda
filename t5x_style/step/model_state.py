"""The state of a run as a plain pytree, born in its shards, and the model bound to it again."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from t5x_style.accounting import Architecture, Topology
from t5x_style.errors import UsageError
from t5x_style.kernels import attention_kernel
from t5x_style.models import Decoder
from t5x_style.models.logical import update_axes
from t5x_style.partitioning import shardings_of
from t5x_style.partitioning.sharding import check_heads, leaf_name, replicated
from t5x_style.ranges import folded_seed

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# Kernels that run on one platform alone: its devices for messages, and its name in JAX.
_KERNEL_PLATFORMS = {"flash": ("TPUs", "tpu"), "cudnn": ("NVIDIA GPUs", "gpu")}

# {'step': int32 [], 'parameters': nested dict of float32 arrays, 'optimizer': optax's state}.
State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class BoundModel:
    """A model's definition apart from its parameters.

    Parameters travel as a nested dict of arrays: few leaves, no Python objects, which is what
    keeps the dispatch of a step and a checkpoint simple.

    Attributes:
      architecture: its shape.
      definition: the NNX graph without values.
      template: the NNX state with ShapeDtypeStructs for values.
      updates: the parameters as ShapeDtypeStructs that carry the shardings of their gradients and
        of their optimizer state.
      make: builds a fresh Decoder from a seed.
    """

    architecture: Architecture
    definition: nnx.GraphDef
    template: nnx.State
    updates: dict
    make: Callable[[int], Decoder]

    @functools.cached_property
    def abstract(self) -> dict:
        """The parameters as ShapeDtypeStructs that carry their shardings."""
        return nnx.to_pure_dict(self.template)

    @functools.cached_property
    def axes(self) -> dict:
        """Each parameter's logical axes."""
        return _logical_axes(self.template)

    def __call__(self, parameters: dict) -> Decoder:
        """The Decoder with these parameters; for use while tracing."""
        state = jax.tree.map(lambda leaf: leaf, self.template)
        nnx.replace_by_pure_dict(state, parameters)
        return nnx.merge(self.definition, state)

    def fresh_parameters(self, seed: int) -> dict:
        """Parameters drawn on the mesh, each device making its own shards."""

        def draw():
            return nnx.to_pure_dict(nnx.split(self.make(seed))[1])

        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        return jax.jit(draw, out_shardings=shardings)()


def random_key(seed: int) -> jax.Array:
    """JAX's key of any integer; JAX itself reads the lower 32 bits alone."""
    high, low = divmod(folded_seed(seed), 2**32)
    key = jax.random.key(np.uint32(low))
    return jax.random.fold_in(key, high) if high else key


def bind_model(
    architecture: Architecture, topology: Topology, mesh: Mesh, compute_dtype: str
) -> BoundModel:
    """The model of a run, abstractly: nothing is allocated. Call inside `topology.in_force`.

    Raises:
      UsageError: the kernel does not run on the mesh's devices; the rules put queries and their
        keys on different devices.
    """
    check_heads(architecture, topology)
    platform = mesh.devices.flat[0].platform
    devices, needed = _KERNEL_PLATFORMS.get(topology.kernel, ("", platform))
    if platform != needed:
        raise UsageError(
            f"Topology.kernel = {topology.kernel!r} runs on {devices} alone, but the mesh has "
            f"{platform!r} devices: 'blockwise' computes the same numbers with as little memory on "
            "any device"
        )

    def make(seed: int) -> Decoder:
        return Decoder(
            architecture,
            rngs=nnx.Rngs(random_key(seed)),
            compute_dtype=COMPUTE_DTYPES[compute_dtype],
            kernel=attention_kernel(topology.kernel, topology.attention_block, topology.chip),
            remat=topology.remat,
        )

    definition, template = nnx.get_abstract_model(lambda: make(0), mesh)
    updates = jax.tree.map(
        lambda leaf, names: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, update_axes(*names))
        ),
        nnx.to_pure_dict(template),
        _logical_axes(template),
    )
    return BoundModel(architecture, definition, template, updates, make)


def not_finite(parameters: dict) -> list[str]:
    """The names of the parameters that have a NaN or an infinity."""
    paths, leaves = zip(*jax.tree.leaves_with_path(parameters), strict=True)
    everywhere = replicated(leaves[0].sharding.mesh)

    def finite(leaves):
        return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])

    found = jax.device_get(jax.jit(finite, out_shardings=everywhere)(leaves))
    return [leaf_name(path) for path, good in zip(paths, found.tolist(), strict=True) if not good]


def _logical_axes(template: nnx.State) -> dict:
    leaves = jax.tree.map(
        lambda parameter: tuple(parameter.get_metadata("out_sharding")),
        template,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
    return nnx.to_pure_dict(leaves)


def abstract_state(model: BoundModel, optimizer: optax.GradientTransformation, mesh: Mesh) -> State:
    """Shapes, dtypes and shardings of the whole state: the target of a restore."""
    optimizer_state = jax.eval_shape(optimizer.init, model.abstract)
    shardings = shardings_of(optimizer_state, model.updates, mesh)
    return {
        "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh)),
        "parameters": model.abstract,
        "optimizer": jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            optimizer_state,
            shardings,
        ),
    }


def fresh_state(
    model: BoundModel,
    optimizer: optax.GradientTransformation,
    target: State,
    seed: int,
    parameters: dict | None = None,
) -> State:
    """The state at step 0, from a seed or around given parameters; sharded as `target`."""
    if parameters is None:
        parameters = model.fresh_parameters(seed)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    return {
        "step": jax.make_array_from_callback((), shardings["step"], lambda _: np.int32(0)),
        "parameters": parameters,
        "optimizer": jax.jit(optimizer.init, out_shardings=shardings["optimizer"])(parameters),
    }
