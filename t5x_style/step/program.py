"""The train step as a program, which a run compiles, and `compile` for described chips."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.stages import Compiled

from t5x_style.accounting import Topology
from t5x_style.errors import UsageError
from t5x_style.partitioning import batch_sharding, check_sharded
from t5x_style.partitioning.sharding import replicated
from t5x_style.step.batches import abstract_batch
from t5x_style.step.memory_advice import memory_refusal, unknown_flag
from t5x_style.step.model_state import BoundModel, State, abstract_state, bind_model
from t5x_style.step.spec import StepSpec
from t5x_style.step.step import NO_LIMITS, make_train_step


def keep_programs_in(folder: str) -> None:
    """Keep every program that this process compiles from now on in JAX's persistent cache.

    Its key consists of the program, the options, the versions of JAX and of the compiler, and the
    shape of the slice: a program compiled for a described slice has the key of a real one.
    (JAX's other way to keep a program, `serialize_executable`, pickles.)
    """
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """A run's train step on its mesh, not yet compiled for a batch; see `step_program`.

    Attributes:
      spec, topology: WHAT it computes and WHERE it runs.
      model: the model, abstractly.
      optimizer: its transformation.
      state: the train state as ShapeDtypeStructs that carry their shardings.
      batch_sharding: how a batch is placed.
      sums: the sums of losses that a step takes and returns, as a ShapeDtypeStruct.
      step: the jitted step; the state is donated and returned in the same shardings. The sums are
        not donated, so those of one step may be read during the next.
    """

    spec: StepSpec
    topology: Topology
    model: BoundModel
    optimizer: optax.GradientTransformation
    state: State
    batch_sharding: NamedSharding
    sums: jax.ShapeDtypeStruct
    step: jax.stages.Wrapped

    def batch(self, sequences: int, sequence_length: int) -> jax.ShapeDtypeStruct:
        """A batch of that shape, abstractly."""
        return abstract_batch(sequences, sequence_length, self.batch_sharding, self.spec.packing)

    @property
    def limits(self) -> jax.ShapeDtypeStruct:
        """The limits of an update that is applied, as a ShapeDtypeStruct."""
        return jax.ShapeDtypeStruct(NO_LIMITS.shape, NO_LIMITS.dtype, sharding=self.sums.sharding)

    def place(self, values: np.ndarray) -> jax.Array:
        """Sums of losses or limits, replicated over the mesh; every process gives the same."""
        return jax.make_array_from_callback(
            values.shape, self.sums.sharding, lambda index: values[index]
        )

    def compile(self, sequences: int, sequence_length: int) -> Compiled:
        """The step for batches of one shape, ready to run. Call inside `partitioning.in_force`.

        Raises:
          UsageError: it does not fit the memory (with advice), or XLA does not know a flag.
        """
        batch = self.batch(sequences, sequence_length)
        lowered = self.step.lower(self.state, batch, self.sums, self.limits)
        try:
            return lowered.compile(compiler_options=dict(self.topology.compiler_flags))
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            shape = self.spec.shape(sequences, sequence_length)
            refused = unknown_flag(str(error)) or memory_refusal(str(error), shape, self.topology)
            if refused is None:
                raise
            raise UsageError(refused) from error


def step_program(spec: StepSpec, topology: Topology, mesh: Mesh) -> StepProgram:
    """The train step of a run. Nothing is allocated. Call inside `in_force(topology, mesh)`.

    Raises:
      UsageError: parameters are unsharded that the mesh could split.
    """
    model = bind_model(spec.architecture, topology, mesh, spec.compute_dtype)
    check_sharded(model.abstract, topology)
    transformation = spec.optimizer.transformation(spec.plan, model.axes)
    state = abstract_state(model, transformation, mesh)
    step = jax.jit(
        make_train_step(
            model,
            transformation,
            spec.optimizer.learning_rate(spec.plan),
            sources=spec.sources,
            microbatches=topology.microbatches,
            z_loss=spec.z_loss,
            loss_chunk_tokens=topology.loss_chunk_tokens,
            loss_vocab_chunks=topology.loss_vocab_chunks,
            eos_id=spec.eos_id,
            packing=spec.packing,
        ),
        donate_argnums=0,
        # Every process reads the metrics and the sums.
        out_shardings=(
            jax.tree.map(lambda leaf: leaf.sharding, state),
            replicated(mesh),
            replicated(mesh),
        ),
    )
    sums = jax.ShapeDtypeStruct((3, spec.sources), jnp.float32, sharding=replicated(mesh))
    return StepProgram(
        spec, topology, model, transformation, state, batch_sharding(mesh), sums, step
    )
