"""The plan: from a budget, its data and its chips to a run that a team could sign."""

import dataclasses
import math

from t5x_style.accounting.architecture import Architecture
from t5x_style.accounting.audit.auditor import laws_of_audit
from t5x_style.accounting.chips import chip
from t5x_style.accounting.laws import LAWS, Law, ParametricLaw
from t5x_style.accounting.laws.kaplan import critical_batch_tokens
from t5x_style.accounting.layouts.memory import Memory, checkpoint_bytes, step_memory
from t5x_style.accounting.layouts.meshes import Candidate, fitting_meshes
from t5x_style.accounting.parameter_count import total_parameters
from t5x_style.accounting.planner.allocation import (
    Allocation,
    CapCost,
    allocation_at,
    allocations_within_data,
    best_allocation,
    bloomberggpt_rule,
    cap_costs,
    optima,
)
from t5x_style.accounting.planner.budget import THIS_CPU, Budget
from t5x_style.accounting.planner.recipe import Recipe, recipe_of
from t5x_style.accounting.planner.sensitivity import Sensitivity, sensitivity
from t5x_style.accounting.planner.service import ServedModel, cheapest_to_serve
from t5x_style.accounting.planner.shape import buildable_shape
from t5x_style.accounting.planner.sources import FREE_EPOCHS, SourceLimits
from t5x_style.accounting.planner.vocabulary import chosen_vocabulary
from t5x_style.accounting.recompute import REMAT_RECOMPUTES
from t5x_style.accounting.step_shape import StepShape
from t5x_style.accounting.topology import Topology
from t5x_style.errors import UsageError, did_you_mean
from t5x_style.quantities import count, scientific

DEFAULT_LAW = "besiroglu"

# Where a planned run runs, its chip, mesh, remat policy and microbatches apart.
TOPOLOGY = Topology(kernel="blockwise", loss_chunk_tokens=4096)

# A checkpoint for every hundredth of the run: a fault costs half of that on average. In a short run
# saving would take longer than the steps between two, so those are at least a hundred.
CHECKPOINTS_PER_RUN = 100
LEAST_CHECKPOINT_STEPS = 100


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan and the numbers behind it (see `make_plan`).

    Attributes:
      budget, sources: as asked.
      law: the one that the recommendation follows.
      laws: name -> law, of those that are shown.
      optima: every law's own, with unlimited text.
      within_data: see `allocations_within_data`.
      recommended: the best N and D within the data by `law`, before anything is rounded.
      cap_costs: of every source's limit, and of all together (last); empty without sources.
      bloomberggpt: the choice of BloombergGPT's rule; None without sources.
      served: the model of the same loss that costs least with the tokens to be served; None
        without such tokens.
      vocabulary: approach -> V by Tao's law for this model; empty where the model was given.
      architecture: the buildable model.
      recipe: batch, horizon, learning rate.
      chosen: N, D, loss and efficiency of the run that is written.
      meshes: those that fit, the fastest first; None where the chips are not known.
      remat_memory: remat policy -> bytes on a device of the fastest mesh, whether they fit or not;
        None where the chips are not known.
      checkpoint_bytes: of one checkpoint.
      checkpoint_period: steps between two checkpoints.
      sensitivity: the recommendation for another budget, domain or MFU.
      warnings: for the team, before it signs.
    """

    budget: Budget
    sources: SourceLimits
    law: ParametricLaw
    laws: dict[str, Law]
    optima: list[Allocation]
    within_data: list[Allocation]
    recommended: Allocation
    cap_costs: list[CapCost]
    bloomberggpt: Allocation | None
    served: ServedModel | None
    vocabulary: dict[str, int]
    architecture: Architecture
    recipe: Recipe
    chosen: Allocation
    meshes: list[Candidate] | None
    remat_memory: dict[str, Memory] | None
    checkpoint_bytes: int
    checkpoint_period: int
    sensitivity: list[Sensitivity]
    warnings: list[str]

    @property
    def flops(self) -> float:
        """6 N D of the run that is written."""
        return 6.0 * self.chosen.params * self.chosen.tokens


def recommending_law(
    name: str | None = None, own_law: ParametricLaw | None = None
) -> ParametricLaw:
    """The law that a recommendation follows: the one named, else the user's own, else DEFAULT_LAW.

    Raises UsageError for a law without a loss.
    """
    if name is None:
        name = DEFAULT_LAW if own_law is None else own_law.name
    laws = laws_of_audit(own_law)
    usable = {key: law for key, law in laws.items() if isinstance(law, ParametricLaw)}
    if name not in usable:
        why = "gives no loss" if name in laws else "is not known"
        raise UsageError(
            f"law = {name!r} {why}: one of {', '.join(usable)}{did_you_mean(name, usable)}"
        )
    return usable[name]


def make_plan(
    budget: Budget,
    sources: SourceLimits,
    *,
    law: ParametricLaw | None = None,
    laws: dict[str, Law] = LAWS,
    domain: str | None = None,
    served_tokens: float | None = None,
    architecture: Architecture | None = None,
    vocab_size: int | None = None,
    style: str = "llama",
    sequence_length: int = 2048,
    batch_sequences: int | None = None,
) -> Plan:
    """The whole plan.

    Args:
      budget, sources: see `budget_of` and `sources_of`.
      law: the one to follow, DEFAULT_LAW unless given; laws: those to show.
      domain: the source whose size the sensitivity varies; None means the scarcest.
      served_tokens: tokens that the model will read and write in service.
      architecture: of a given model; None builds one for the recommended N.
      vocab_size: of an existing tokenizer; None takes Tao's law.
      style: see `buildable_shape`.
      sequence_length: S, tokens.
      batch_sequences: sequences a step; None takes StepLaw's.

    Raises:
      UsageError: an impossible number, a model that cannot be built, or a model that no mesh of the
        chips holds.
    """
    for name, value in (
        ("served_tokens", served_tokens),
        ("sequence_length", sequence_length),
        ("batch_sequences", batch_sequences),
    ):
        if value is not None and not value > 0:
            raise UsageError(f"{name} = {value!r}: must be above 0")
    law = law or recommending_law()
    flops = budget.flops
    recommended = best_allocation(flops, law, sources)
    vocabulary: dict[str, int] = {}
    if architecture is None:
        if vocab_size is None:
            vocab_size, vocabulary = chosen_vocabulary(recommended.params)
        architecture = buildable_shape(recommended.params, vocab_size=vocab_size, style=style)
    params = total_parameters(architecture)
    accelerator, devices = None, 1
    if budget.chips is not None and budget.chip is not None and budget.chip != THIS_CPU:
        accelerator = chip(budget.chip)
        devices = budget.chips * accelerator.devices_per_chip
    cap, scarce = sources.cap()
    tokens = min(flops / (6 * params), cap)
    loss = law.loss(params, sources.effective_tokens(tokens))
    recipe = recipe_of(architecture, tokens, sequence_length, loss, devices, batch_sequences)
    chosen = allocation_at(law, params, recipe.tokens, sources, scarce if tokens >= cap else None)
    meshes = None
    if accelerator is not None and budget.chips is not None:
        meshes = fitting_meshes(
            StepShape(architecture, recipe.batch_sequences, sequence_length),
            dataclasses.replace(TOPOLOGY, chip=budget.chip),
            accelerator,
            budget.chips,
        )
    domain = domain or recommended.scarce_source or sources.cap(epochs=1.0)[1]
    return Plan(
        budget=budget,
        sources=sources,
        law=law,
        laws=laws,
        optima=optima(flops, laws),
        within_data=allocations_within_data(flops, sources, laws),
        recommended=recommended,
        cap_costs=cap_costs(flops, law, sources) if sources.shares else [],
        bloomberggpt=bloomberggpt_rule(flops, law, sources) if sources.shares else None,
        served=None
        if served_tokens is None
        else cheapest_to_serve(chosen, law, sources, served_tokens),
        vocabulary=vocabulary,
        architecture=architecture,
        recipe=recipe,
        chosen=chosen,
        meshes=meshes,
        remat_memory=None if meshes is None else _memory_by_remat(architecture, meshes[0], recipe),
        checkpoint_bytes=checkpoint_bytes(architecture),
        checkpoint_period=min(
            recipe.steps,
            max(LEAST_CHECKPOINT_STEPS, math.ceil(recipe.steps / CHECKPOINTS_PER_RUN)),
        ),
        sensitivity=sensitivity(budget, sources, law, domain),
        warnings=_warnings(budget, sources, law, recipe, chosen, meshes),
    )


def _memory_by_remat(arch: Architecture, best: Candidate, recipe: Recipe) -> dict[str, Memory]:
    shape = StepShape(arch, recipe.batch_sequences, recipe.sequence_length)
    return {
        remat: step_memory(shape, dataclasses.replace(best.topology, remat=remat))
        for remat in REMAT_RECOMPUTES
    }


def _warnings(
    budget: Budget,
    sources: SourceLimits,
    law: ParametricLaw,
    recipe: Recipe,
    chosen: Allocation,
    meshes: list[Candidate] | None,
) -> list[str]:
    found = []
    if law.fitted_flops is not None:
        least, greatest = law.fitted_flops
        if not least <= budget.flops <= greatest:
            found.append(
                f"{law.name} was fitted on {scientific(least)} to {scientific(greatest)} FLOPs; "
                f"at {scientific(budget.flops)} it extrapolates"
            )
    for name, epochs in sources.epochs(chosen.tokens).items():
        if epochs > FREE_EPOCHS:
            found.append(
                f"{name} is read {epochs:.1f} times: past {FREE_EPOCHS:g} epochs, repeated tokens "
                f"teach less; {count(epochs * sources.unique_tokens[name])} tokens of it are "
                f"{count(sources.effective_tokens_of(name, chosen.tokens))} effective tokens"
            )
    spent = 6 * chosen.params * chosen.tokens
    if spent < 0.98 * budget.flops:
        found.append(
            f"the run takes {spent / budget.flops:.1%} of the budget: "
            + (
                f"{chosen.scarce_source} ends before it"
                if chosen.scarce_source
                else "whole steps of a batch leave the rest"
            )
        )
    batch = recipe.batch_sequences * recipe.sequence_length
    critical_batch = critical_batch_tokens(law.loss(chosen.params, chosen.effective_tokens))
    # Far below the law's own runs, its loss is too high to give a critical batch.
    fitted = law.fitted_flops is None or budget.flops >= law.fitted_flops[0]
    if fitted and batch > critical_batch:
        found.append(
            f"a batch of {count(batch)} tokens is above the critical batch of "
            f"{count(critical_batch)} (Kaplan et al. 2020): a larger batch gains little"
        )
    if meshes is not None and budget.mfu is not None:
        expected = meshes[0].roofline.mfu("6nd")
        if expected < budget.mfu:
            found.append(
                f"the budget assumes an MFU of {budget.mfu:.0%} by 6ND; the roofline expects "
                f"{expected:.0%} of the best mesh (bound by {meshes[0].roofline.bound})"
            )
    return found
