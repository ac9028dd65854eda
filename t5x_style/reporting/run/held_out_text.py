"""The held-out text of a run: which losses are of one text, and so can be compared."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class HeldOutStore:
    """The validation store of a source.

    Attributes:
      store: absolute path of its folder.
      fingerprint: over all that it was made from.
      tokens_digest: SHA-256 of its tokens. Losses are of one text where it is the same. None in a
        run of an older version, which did not record it.
    """

    store: str
    fingerprint: str | None = None
    tokens_digest: str | None = None


@dataclasses.dataclass(frozen=True)
class HeldOutText:
    """The validation stores of a run from one start on, until another one changes them.

    Attributes:
      after_step: evaluations of later steps are of these stores; -1 for those of a run's beginning.
      tokens: training tokens before that start.
      stores: by source.
    """

    after_step: int
    tokens: int
    stores: dict[str, HeldOutStore]

    def to_json(self) -> dict[str, Any]:
        """As it stands in plan.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "HeldOutText":
        """The inverse of `to_json`."""
        stores = {name: HeldOutStore(**store) for name, store in fields["stores"].items()}
        return cls(fields["after_step"], fields["tokens"], stores)


@dataclasses.dataclass(frozen=True)
class Replacement:
    """The held-out text of a source was replaced by another one.

    Attributes:
      source: its name.
      step: evaluations up to this step are of the text before, later ones of the text after.
      tokens: training tokens up to that step.
      before, after: `HeldOutStore.tokens_digest`.
    """

    source: str
    step: int
    tokens: int
    before: str
    after: str

    def __str__(self) -> str:
        return (
            f"the held-out text of {self.source!r} was replaced at step {self.step:,}: its losses "
            f"before and after are of different texts"
        )


def replacements(versions: Sequence[HeldOutText]) -> list[Replacement]:
    """What was replaced between the starts of a run, in order of step."""
    found = []
    known: dict[str, str] = {}
    for version in versions:
        for name, store in version.stores.items():
            digest = store.tokens_digest
            if digest is None:
                continue
            before = known.get(name, digest)
            if before != digest:
                change = Replacement(name, version.after_step, version.tokens, before, digest)
                found.append(change)
            known[name] = digest
    return found


def continued(
    written: Sequence[HeldOutText],
    stores: dict[str, HeldOutStore],
    resume: tuple[int, int] | None,
) -> list[HeldOutText]:
    """The held-out texts of a run, those of a new start included.

    Args:
      written: by the starts before.
      stores: of the new start.
      resume: (step, training tokens) from which it continues; None if it begins.
    """
    if resume is None:
        return [HeldOutText(-1, 0, stores)]
    step, tokens = resume
    # What began at this step or later has no evaluation that is kept.
    kept = [version for version in written if version.after_step < step]
    if not kept:
        return [HeldOutText(-1, 0, stores)]
    newest = kept[-1]
    if _digests(newest.stores) == _digests(stores):
        return [*kept[:-1], dataclasses.replace(newest, stores=stores)]
    return [*kept, HeldOutText(step, tokens, stores)]


def evaluation_weights(shares: Mapping[str, float], evaluated: Sequence[str]) -> dict[str, float]:
    """{source: weight} in a mean over evaluations; the weights add up to one.

    Sources are weighted by their shares. One that is never evaluated has no part in the mean, nor
    has one with a share of 0. If no evaluated source has a share, all of them weigh the same.

    Args:
      shares: {source: share of the run's tokens}.
      evaluated: the sources with a validation split.
    """
    weights = {name: shares[name] for name in evaluated if shares.get(name)}
    weights = weights or dict.fromkeys(evaluated, 1.0)
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def weights_text(weights: Mapping[str, float]) -> str:
    """The sources of a mean: `legal 51.0%, general 49.0%`, or the name of the only one."""
    if len(weights) == 1:
        return next(iter(weights))
    return ", ".join(f"{name} {weight:.1%}" for name, weight in weights.items())


def _digests(stores: Mapping[str, HeldOutStore]) -> dict[str, str | None]:
    return {name: store.tokens_digest for name, store in stores.items()}
