"""The values derived from a run's configuration before step 0."""

import dataclasses

from t5x_style.accounting import non_embedding_parameters, parameters
from t5x_style.quantities import count
from t5x_style.reporting import DerivedRun, Horizon, PhaseRecord, PlannedSource, VocabularyRecord
from t5x_style.training.identity import identity
from t5x_style.training.run import Run


def derive(run: Run) -> DerivedRun:
    """The content of plan.json.

    Raises:
      UsageError: a source would be read more often than its cap, and AT_CAP refuses that.
    """
    plan, auditor, architecture = run.plan, run.auditor, run.spec.architecture
    audit = auditor.audit_at(plan.tokens)
    tokenizer = run.stores.tokenizer
    return DerivedRun(
        identity=identity(run),
        architecture=architecture,
        topology=run.topology,
        parameters={
            "total": auditor.parameters,
            "non_embedding": non_embedding_parameters(architecture),
            **parameters(architecture),
        },
        flops_per_token=auditor.flops_per_token(0, plan.tokens),
        horizon=Horizon(
            tokens=plan.tokens,
            steps=plan.steps,
            sequence_length=plan.lengths[-1][1],
            phases=_phases(run),
            tokens_per_param=audit.tokens_per_param,
        ),
        optimizer=dataclasses.asdict(run.spec.optimizer),
        packing=dataclasses.asdict(run.spec.packing),
        compute_dtype=run.spec.compute_dtype,
        blend=[version.to_json() for version in run.blend],
        sources=_sources(run),
        held_out=list(run.held_out),
        notices=_notices(run),
        vocabulary=VocabularyRecord(
            path=tokenizer.name_in_run,
            eos=tokenizer.eos,
            hash=tokenizer.hash,
            vocab_size=tokenizer.vocab_size,
        ),
        early_stopping=None
        if run.early_stopping is None
        else {**dataclasses.asdict(run.early_stopping), "weights": run.watched_weights},
        own_law=run.own_law,
        laws=dict(audit.laws),
    )


def _phases(run: Run) -> list[PhaseRecord]:
    """The phases of constant batch shape, with FLOPs per token."""
    phases, first = [], 0
    for phase in run.plan.phases:
        end = first + phase.tokens
        flops = run.auditor.flops_per_token(first, end)
        phases.append(PhaseRecord(*phase, tokens=phase.tokens, flops_per_token=flops))
        first = end
    return phases


def _sources(run: Run) -> dict[str, PlannedSource]:
    """The tokens, shares and train store of each source over the whole run."""
    start, end = run.blend[0].shares(0), run.blend[-1].shares(run.plan.rows)
    planned = {}
    for name, account in run.accounts(run.plan.steps).items():
        planned[name] = PlannedSource(
            account=dataclasses.replace(account, share=run.shares[name]),
            first_share=start.get(name, 0.0),
            last_share=end.get(name, 0.0),
            store=str(run.stores.train[name].path.absolute()),
        )
    return planned


def _notices(run: Run) -> list[str]:
    """Warnings: text that is read twice, never evaluated or replaced; caps; a changed rate.

    Raises:
      UsageError: a source would be read more often than its cap, and AT_CAP refuses that.
    """
    notices = [*run.stores.notices, *run.seen_before, *map(str, run.replaced)]
    if run.shortened is not None:
        notices.append(run.shortened)
    if run.earlier is not None:
        change = run.earlier.rate_change(run.spec.optimizer, run.plan)
        notices += [] if change is None else [change]
    for row, name in run.blend[-1].capped_at:
        if row < run.plan.rows:
            notices.append(
                f"source {name!r} is at its cap of {run.caps[name]:g} epochs after "
                f"{count(run.plan.tokens_of_rows(row))} tokens: the others take its share"
            )
    caps = run.caps if run.at_cap in ("refuse", "stop") else None
    notices += run.reader.check_horizon(run.plan.rows, caps)
    if run.at_cap == "repeat":
        notices += [
            f"source {name!r} will be read {account.epochs:.1f} times, past its cap of "
            f"{run.caps[name]:g}"
            for name, account in run.accounts(run.plan.steps).items()
            if account.epochs > run.caps[name]
        ]
    return notices
