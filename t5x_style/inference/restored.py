"""A trained model, restored from the files of its run for evaluation, sampling and export."""

import dataclasses

from jax.sharding import Mesh

from t5x_style.accounting import Topology
from t5x_style.data import Tokenizer
from t5x_style.errors import UsageError
from t5x_style.partitioning import in_force, make_mesh
from t5x_style.reporting import DerivedRun, read_derived
from t5x_style.step.model_state import BoundModel, bind_model
from t5x_style.training.checkpoints import find_checkpoint, restore_parameters
from t5x_style.training.initial_weights import run_tokenizer


@dataclasses.dataclass(frozen=True)
class RestoredModel:
    """Parameters on a mesh, and everything needed to use them.

    Attributes:
      derived: the run's plan.json.
      step: training steps of the parameters.
    """

    derived: DerivedRun
    tokenizer: Tokenizer
    topology: Topology
    mesh: Mesh
    model: BoundModel
    parameters: dict
    step: int


def restore_model(model_dir: str, topology: Topology, *, step: int | None = None) -> RestoredModel:
    """Load a run's newest checkpoint, or that of `step`, onto any topology.

    Raises:
      UsageError: there is no run or no such checkpoint, or the run's vocabulary has changed since.
    """
    derived = read_derived(model_dir)
    checkpoint = find_checkpoint(model_dir if step is None else f"{model_dir}/checkpoint_{step}")
    tokenizer = run_tokenizer(model_dir, derived.vocabulary)
    if tokenizer.hash != derived.vocabulary.hash:
        raise UsageError(
            f"{tokenizer.path} is not the vocabulary that {model_dir} was trained with: its hash "
            f"is {tokenizer.hash[:12]}, the run's is {derived.vocabulary.hash[:12]}"
        )
    mesh = make_mesh(topology)
    with in_force(topology, mesh):
        model = bind_model(
            derived.architecture,
            topology,
            mesh,
            derived.compute_dtype,
        )
        parameters = restore_parameters(checkpoint, model.abstract)
    return RestoredModel(
        derived, tokenizer, topology, mesh, model, parameters, int(checkpoint.name.split("_")[-1])
    )
