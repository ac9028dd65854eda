"""`t5x-style compile`: compiles the train step of a run, also for chips that are not attached."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gin

from t5x_style.accounting import Architecture, StepShape, Topology
from t5x_style.commands.runs.train import CONFIGURABLES, feature_length
from t5x_style.config.checks import refuse_unconsumed
from t5x_style.config.writing import check_target, layout_gin
from t5x_style.errors import UsageError
from t5x_style.files import MARK, refuse_foreign, write_whole
from t5x_style.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from t5x_style.data import Packing
    from t5x_style.optim import Optimizer
    from t5x_style.step.spec import StepSpec

__all__ = ["BINDINGS_OF", "CONFIGURABLES", "compile"]

# Bindings of `train` also apply to the parameters of the same name here.
BINDINGS_OF = "train"


@gin.configurable
def compile(
    *,
    architecture: Architecture,
    optimizer: Optimizer,
    topology: Topology,
    task_feature_lengths: Mapping[str, int | Sequence[tuple[int, int | None]]],
    batch_size: int | Sequence[tuple[int, int | None]],
    train_tokens: PositiveInt | None = None,
    train_steps: PositiveInt | None = None,
    compute_dtype: str = "bfloat16",
    packing: Packing | None = None,
    z_loss: NonNegativeFloat = 0.0,
    phase: PositiveInt | None = None,
    dollars_per_chip_hour: NonNegativeFloat | None = None,
    keep_hlo: str | None = None,
    keep_program: str | None = None,
    sources: PositiveInt = 1,
    eos_id: NonNegativeInt = 1,
    search: bool = False,
    search_minutes: PositiveFloat = 30.0,
    write: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Compiles the train step of a run, and reports its memory, FLOPs and communication.

    It takes the gin files, macros and flags of `train`. It needs neither text nor a MODEL_DIR. With
    Topology.chip and Topology.slice it compiles for that slice, which need not be attached. Without
    a slice it compiles for the devices of this process.

    Args:
      architecture: the model, @Architecture().
      optimizer: @AdamW(), or your own; see `optim.Optimizer`.
      topology: mesh, slice, kernel, remat and flags, @Topology().
      task_feature_lengths: {'targets': tokens per sequence}, or phases.
      batch_size: sequences per step, or phases.
      train_tokens: length of the run in tokens.
      train_steps: length of the run in steps; one of the two is given.
      compute_dtype: bfloat16 or float32.
      packing: how documents share a row, @Packing().
      z_loss: coefficient of log(Z)^2.
      phase: number of the phase of batch size and sequence length, from 1; the last if not given.
      dollars_per_chip_hour: price, to estimate the cost of the run.
      keep_hlo: file to write the compiled program to, as text.
      keep_program: folder for the compiled program, as a JAX compilation cache. `train` on the
        same slice loads the step from it instead of compiling. It needs the same versions of JAX
        and libtpu, and JAX_COMPILATION_CACHE_DIR set to this folder.
      sources: number of sources of the run's blend; it matters only for keep_program.
      eos_id: of the run's vocabulary; it matters only for keep_program.
      search: also compile other layouts of the slice (mesh, remat, microbatches, compiler flags),
        and print them with the fastest.
      search_minutes: time limit of the search; a compilation that has started is finished.
      write: gin file to write the fastest layout of a search to.
      dry_run: check that the mesh fits the slice and the model, and compile nothing.
    """
    refuse_unconsumed()
    from t5x_style.compiling import compiled_report, mesh_of, refusal_of
    from t5x_style.compiling.report_text import report_text
    from t5x_style.data import BatchPlan, Packing
    from t5x_style.step.program import keep_programs_in
    from t5x_style.step.spec import StepSpec

    plan = BatchPlan.from_settings(
        batch_size,
        feature_length(task_feature_lengths),
        train_tokens=train_tokens,
        train_steps=train_steps,
    )
    if phase is not None and not 1 <= phase <= len(plan.phases):
        raise UsageError(f"--phase={phase}: the run has phases 1 to {len(plan.phases)}: {plan}")
    sequences, length, _ = plan.phases[-1 if phase is None else phase - 1]
    spec = StepSpec(
        architecture=architecture,
        optimizer=optimizer,
        plan=plan,
        compute_dtype=compute_dtype,
        packing=packing or Packing(),
        z_loss=z_loss,
        sources=sources,
        eos_id=eos_id,
    )
    shape = spec.shape(sequences, length)
    if search:
        if keep_hlo is not None or keep_program is not None or dry_run:
            raise UsageError(
                "--search compiles many programs: omit --keep_hlo, --keep_program and --dry_run"
            )
        return _search(spec, shape, topology, search_minutes, write)
    if write is not None:
        raise UsageError(f"--write={write} writes the layout of a search: add --search")
    if keep_hlo is not None:
        refuse_foreign(keep_hlo, "--keep_hlo")
    if keep_program is not None:
        keep_programs_in(keep_program)
    report, text = compiled_report(
        spec,
        shape,
        topology,
        mesh_of(topology),
        dollars_per_chip_hour=dollars_per_chip_hour,
        compiles=not dry_run,
    )
    if keep_hlo is not None and not dry_run:
        write_whole(keep_hlo, f"// {MARK}\n{text}")
    print(report_text(report))
    if (refusal := refusal_of(report)) is not None:
        raise UsageError(refusal)
    return report.to_json()


def _search(
    spec: StepSpec, shape: StepShape, topology: Topology, minutes: float, write: str | None
) -> dict[str, Any]:
    from t5x_style.compiling.search import fastest, search, unbeaten
    from t5x_style.compiling.search_text import trial_line, trials_text

    target = None if write is None else check_target(write)
    trials = search(
        spec, shape, topology, minutes, lambda trial: print(trial_line(trial), flush=True)
    )
    kept, best = unbeaten(trials), fastest(trials)
    print(f"\n{trials_text(trials)}")
    text = layout_gin(
        best.topology,
        f"{trial_line(best)}.\nFound by\n  {shlex.join(['t5x-style', *sys.argv[1:]])}",
    )
    if target is None:
        print(f"\nThe fastest, as a gin file (--write=FILE.gin):\n\n{text}")
    else:
        write_whole(target, text)
        print(f"\nwritten: {target}")
    return {
        "trials": [trial.to_json() | {"unbeaten": trial in kept} for trial in trials],
        "fastest": best.report.to_json() if best.report else None,
        "gin": text,
    }
