"""How much of each source a run reads, for the tables before step 0 and after the run."""

import math
from collections.abc import Mapping, Sequence

from t5x_style.accounting import SourceAccount
from t5x_style.accounting.laws import data_constrained
from t5x_style.accounting.planner.sources import WORTHLESS_EPOCHS
from t5x_style.data import BatchReader, TokenStore
from t5x_style.errors import UsageError, did_you_mean

# A source at its cap: the run is refused; it is planned to end there; the other sources take the
# share; or reading continues, with a warning.
AT_CAP = ("refuse", "stop", "renormalise", "repeat")


def checked_caps(max_epochs: float | Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """{source: most epochs}, from one number or {source: number}.

    Sources that a mapping leaves out have a cap of 40 epochs: later ones teach nothing.

    Raises:
      UsageError: a cap that is not above 0, or a cap of an unknown source.
    """
    if not isinstance(max_epochs, Mapping):
        max_epochs = dict.fromkeys(names, max_epochs)
    for name, cap in max_epochs.items():
        if name not in names:
            raise UsageError(
                f"train.max_epochs names {name!r}; the sources of the blend are "
                f"{', '.join(names)}{did_you_mean(name, names)}"
            )
        if not cap > 0:
            raise UsageError(f"train.max_epochs of {name!r} = {cap!r}: must be above 0")
    return {name: float(max_epochs.get(name, WORTHLESS_EPOCHS)) for name in names}


def rows_within(reader: BatchReader, caps: Mapping[str, float], rows: int) -> int:
    """The most rows, up to `rows`, that read no source more often than its cap."""
    most = [caps[name] for name in reader.names]
    fits, beyond = 0, rows + 1
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        within = (reader.epochs(middle) <= most).all()
        fits, beyond = (middle, beyond) if within else (fits, middle)
    return fits


def effective_tokens(reader: BatchReader, stores: Mapping[str, TokenStore], rows: int) -> float:
    """Fresh tokens that teach as much as the first `rows` rows, summed over the sources."""
    return math.fsum(
        data_constrained.effective_tokens(int(tokens), stores[name].num_tokens)
        for name, tokens in zip(reader.names, reader.tokens_by_source(rows), strict=True)
    )


def accounts(
    reader: BatchReader,
    stores: Mapping[str, TokenStore],
    rows: int,
    skipped: Mapping[str, int] | None = None,
) -> dict[str, SourceAccount]:
    """What the first `rows` rows read of each source, by name.

    Args:
      skipped: {source: tokens of these rows that nothing was learnt from}.
    """
    skipped = skipped or {}
    tokens, epochs = reader.tokens_by_source(rows).tolist(), reader.epochs(rows).tolist()
    total = max(1, sum(tokens))
    return {
        name: SourceAccount(
            unique_tokens=stores[name].num_tokens,
            tokens=tokens[index],
            share=tokens[index] / total,
            epochs=epochs[index],
            effective_tokens=data_constrained.effective_tokens(
                tokens[index] - skipped.get(name, 0), stores[name].num_tokens
            ),
            skipped=skipped.get(name, 0),
        )
        for index, name in enumerate(reader.names)
    }
