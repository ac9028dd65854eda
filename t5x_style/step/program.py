"""The train step as a program: what a run compiles, and what `compile` does for absent chips."""

import dataclasses

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from jax.stages import Compiled

from t5x_style.accounting import Architecture
from t5x_style.data import BatchPlan, Packing
from t5x_style.errors import UsageError
from t5x_style.optim import Optimizer
from t5x_style.partitioning import Topology, batch_sharding, check_sharded
from t5x_style.partitioning.sharding import replicated
from t5x_style.step.batches import abstract_batch
from t5x_style.step.memory_advice import memory_refusal, unknown_flag
from t5x_style.step.model_state import BoundModel, State, abstract_state, bind_model
from t5x_style.step.step import make_train_step


def keep_programs_in(folder: str) -> None:
    """Keep what this process compiles from now on in JAX's persistent cache, every program of it.

    Its key is made of the program, the options, the versions of JAX and of the compiler, and the
    shape of the slice: a program that was compiled for a described slice has the key that a real
    one asks for. (JAX's other way to keep a program, `serialize_executable`, pickles.)
    """
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """A run's train step on its mesh, not yet compiled for a batch; see `step_program`.

    Attributes:
      model: the model, abstractly.
      optimizer: its transformation.
      state: the train state as ShapeDtypeStructs that carry their shardings.
      batch_sharding: how a batch is placed.
      step: the jitted step; the state is donated and comes back in the same shardings.
      packing, microbatches, compute_dtype: of the run.
    """

    model: BoundModel
    topology: Topology
    optimizer: optax.GradientTransformation
    state: State
    batch_sharding: NamedSharding
    step: jax.stages.Wrapped
    packing: Packing
    microbatches: int
    compute_dtype: str

    def batch(self, sequences: int, sequence_length: int) -> jax.ShapeDtypeStruct:
        """A batch of that shape, abstractly."""
        return abstract_batch(sequences, sequence_length, self.batch_sharding, self.packing)

    def compile(self, sequences: int, sequence_length: int) -> Compiled:
        """The step for batches of one shape, ready to run. Call inside `topology.in_force`.

        Raises:
          UsageError: it does not fit the memory, and what would; or XLA does not know a flag.
        """
        lowered = self.step.lower(self.state, self.batch(sequences, sequence_length))
        try:
            return lowered.compile(compiler_options=dict(self.topology.compiler_flags))
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            said = str(error)
            refused = unknown_flag(said) or memory_refusal(
                said,
                self.model.architecture,
                self.topology,
                sequences=sequences,
                sequence_length=sequence_length,
                microbatches=self.microbatches,
                compute_dtype=self.compute_dtype,
            )
            if refused is None:
                raise
            raise UsageError(refused) from error


def step_program(
    architecture: Architecture,
    topology: Topology,
    mesh: Mesh,
    optimizer: Optimizer,
    plan: BatchPlan,
    *,
    compute_dtype: str,
    packing: Packing,
    microbatches: int,
    z_loss: float,
    sources: int,
    eos_id: int,
) -> StepProgram:
    """The train step of a run. Nothing is allocated. Call inside `topology.in_force(mesh)`.

    Args:
      plan: by which the learning rate follows the tokens.
      sources: number of sources in the blend.
      eos_id: the token that ends a document.

    Raises:
      UsageError: parameters lie unsharded that the mesh could split.
    """
    model = bind_model(architecture, topology, mesh, compute_dtype)
    check_sharded(model.abstract, topology)
    transformation = optimizer.transformation(plan, model.axes)
    state = abstract_state(model, transformation, mesh)
    step = jax.jit(
        make_train_step(
            model,
            transformation,
            optimizer.learning_rate(plan),
            sources=sources,
            microbatches=microbatches,
            z_loss=z_loss,
            loss_chunk_tokens=topology.loss_chunk_tokens,
            loss_vocab_chunks=topology.loss_vocab_chunks,
            eos_id=eos_id,
            packing=packing,
        ),
        donate_argnums=0,
        # Of several processes, each reads the metrics.
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), replicated(mesh)),
    )
    return StepProgram(
        model=model,
        topology=topology,
        optimizer=transformation,
        state=state,
        batch_sharding=batch_sharding(mesh),
        step=step,
        packing=packing,
        microbatches=microbatches,
        compute_dtype=compute_dtype,
    )
