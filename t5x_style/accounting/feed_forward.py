"""The kinds of feed-forward, built in or a user's own, as plain numbers for the accounts.

The accounts read a kind's numbers, never its name. `models/layers.py` has the functions of the
built-in kinds; a kind from outside the package brings its own.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from t5x_style.errors import UsageError, did_you_mean
from t5x_style.plugins import load


@dataclasses.dataclass(frozen=True)
class FeedForwardKind:
    """An activation between the input matrices [D, F] and the output matrix [F, D].

    Attributes:
      gated: a second input matrix makes the gate (Shazeer 2020).
      factor_arrays: arrays of F numbers a token, in the compute dtype, that are held at once while
        the backward pass is in the activation; see `layouts.memory`.
      mask_bytes: bytes of its boolean masks then, for each of the F.
      activation: elementwise, from up [B, S, F], or from up and gate, to [B, S, F] in their dtype.
        None for a built-in kind.
    """

    gated: bool
    factor_arrays: int
    mask_bytes: int = 0
    activation: Callable[..., Any] | None = None

    @property
    def input_matrices(self) -> int:
        """Matrices [D, F] that the activation reads the products of."""
        return 2 if self.gated else 1

    @property
    def matrices(self) -> int:
        """All matrices of D F numbers."""
        return self.input_matrices + 1

    @property
    def kept_arrays(self) -> int:
        """Arrays of F numbers a token that a layer keeps without remat: the products of the input
        matrices, and what the output matrix reads."""
        return self.input_matrices + 1

    def factor_bytes(self, number_bytes: int) -> int:
        """Bytes of the backward pass in the activation, for each of the F of a token.

        Args:
          number_bytes: of a number in the compute dtype.
        """
        return self.factor_arrays * number_bytes + self.mask_bytes


FEED_FORWARDS = {
    # Tanh form (Hendrycks and Gimpel 2016).
    "gelu": FeedForwardKind(gated=False, factor_arrays=6),
    # Two products and their gradients: the rest is computed from them where it is read.
    "swiglu": FeedForwardKind(gated=True, factor_arrays=4),
    # Squared ReLU (So et al. 2021).
    "relu2": FeedForwardKind(gated=False, factor_arrays=2, mask_bytes=1),
}


@functools.cache
def feed_forward_kind(name: str) -> FeedForwardKind:
    """A kind by `Architecture.feed_forward`.

    Args:
      name: of a built-in kind; or the dotted path of a FeedForwardKind, 'my_team.GEGLU', whose
        module is imported from the Python path.

    Raises:
      UsageError: there is no such kind; or the object is of another type, or has no activation.
    """
    if name in FEED_FORWARDS:
        return FEED_FORWARDS[name]
    where = f"Architecture.feed_forward = {name!r}"
    if "." not in name:
        raise UsageError(
            f"{where} is not one of {', '.join(FEED_FORWARDS)}, nor the dotted path of your own, "
            f"such as 'my_team.GEGLU'{did_you_mean(name, FEED_FORWARDS)}"
        )
    kind = load(where, name, FeedForwardKind)
    if kind.activation is None:
        raise UsageError(f"{where} must have an activation, not {kind!r}")
    return kind
