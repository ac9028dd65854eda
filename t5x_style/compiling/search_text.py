"""The layouts that a search has compiled, as text for people."""

from collections.abc import Sequence

from t5x_style.compiling.search import Trial, unbeaten
from t5x_style.quantities import GIB
from t5x_style.reporting.text.tables import table

_REFUSED = ("does not fit", "-", "-")
_HEADERS = (
    "",
    "mesh",
    "remat",
    "microbatches",
    "change",
    "peak GiB per chip",
    "seconds per step",
    "MFU hidden / exposed",
)


def trial_line(trial: Trial) -> str:
    """One layout and its result on one line."""
    topology = trial.topology
    name = f"{topology.mesh_text}, remat {topology.remat}, microbatches {topology.microbatches}"
    if trial.change:
        name += f", {trial.change}"
    if trial.refusal is not None:
        return f"{name}: {trial.refusal.splitlines()[0]}"
    hidden, exposed = trial.mfu
    return (
        f"{name}: {trial.seconds:.4g} s per step, MFU {hidden:.1%} hidden / {exposed:.1%} exposed, "
        f"{trial.peak / GIB:.1f} GiB per chip"
    )


def trials_text(trials: Sequence[Trial]) -> str:
    """All layouts, the fastest first; a star marks those that no other beats in time and memory."""
    done = sorted((trial for trial in trials if trial.report is not None), key=lambda t: t.seconds)
    best = unbeaten(trials)
    rows: list[tuple[object, ...]] = []
    for trial in done:
        hidden, exposed = trial.mfu
        rows.append(
            (
                "*" if trial in best else "",
                *_layout_cells(trial),
                f"{trial.peak / GIB:.2f}",
                f"{trial.seconds:.4g}",
                f"{hidden:.1%} / {exposed:.1%}",
            )
        )
    rows += [("", *_layout_cells(trial), *_REFUSED) for trial in trials if trial.report is None]
    return table(rows, _HEADERS) + "\n* no other layout is as fast in as little memory"


def _layout_cells(trial: Trial) -> tuple[str, str, int, str]:
    topology = trial.topology
    return topology.mesh_text, topology.remat, topology.microbatches, trial.change
