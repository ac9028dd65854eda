"""A trained model, restored from the files of its run for evaluation, sampling and export."""

import dataclasses
import pathlib

from jax.sharding import Mesh

from t5x_style.accounting import Topology
from t5x_style.checkpoints import find_checkpoint, restore_parameters, run_folder
from t5x_style.checkpoints.beginning import whose_is
from t5x_style.checkpoints.find import step_of
from t5x_style.checkpoints.initial_weights import run_tokenizer
from t5x_style.data import Tokenizer
from t5x_style.errors import UsageError
from t5x_style.partitioning import in_force, make_mesh
from t5x_style.reporting import DerivedRun, read_derived
from t5x_style.step.model_state import BoundModel, bind_model


@dataclasses.dataclass(frozen=True)
class RestoredModel:
    """Parameters on a mesh, and everything needed to use them.

    Attributes:
      derived: the run's plan.json.
      step: training steps of the parameters.
      checkpoint: the folder that they are from.
    """

    derived: DerivedRun
    tokenizer: Tokenizer
    topology: Topology
    mesh: Mesh
    model: BoundModel
    parameters: dict
    step: int
    checkpoint: pathlib.Path


def restore_model(
    model_dir: str,
    topology: Topology,
    *,
    step: int | None = None,
    vocabulary: str | None = None,
) -> RestoredModel:
    """Load a run's newest whole checkpoint, or that of `step`, onto any topology.

    Args:
      model_dir: the run, or one of its checkpoints.
      vocabulary: its file, if the run's folder has no copy.

    Raises:
      UsageError: there is no run or no such checkpoint, it is not whole, or the run's vocabulary
        has changed since, or is outside of its folder and was not named.
    """
    run_dir = run_folder(model_dir)
    derived = read_derived(run_dir)
    checkpoint = find_checkpoint(model_dir, whose_is(run_dir), step=step)
    tokenizer = run_tokenizer(run_dir, derived.vocabulary, vocabulary)
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
        derived, tokenizer, topology, mesh, model, parameters, step_of(checkpoint), checkpoint
    )
