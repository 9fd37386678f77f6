"""What a codec that loses something looks like: one tensor in, a few small ones out, and an approximation back.

Each works on float32, samples first, and treats every sample by itself, so that what one becomes does not depend on
which others it travels with. Chance (stochastic rounding) comes from a seed of the microbatch's own: whoever encodes
the same values again, another process or the plain loop, gets the same bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

Parts = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Occasion:
    """What is known of a microbatch beside its values.

    Attributes:
        seed: of all chance.
        samples: which training samples they are, ``(N,)``; None: it is not trained on.
    """

    seed: int
    samples: np.ndarray | None = None


class LossyCodec(ABC):
    """Of one tensor on one edge, at one end of it, or at both where it stays in the process."""

    @abstractmethod
    def encode(self, values: Tensor, occasion: Occasion) -> Parts:
        """Contiguous float32 ``(N, ...)`` as parts, each with samples first unless it is for all of them."""

    @abstractmethod
    def decode(self, parts: Sequence[Tensor], shape: tuple[int, ...], occasion: Occasion) -> Tensor:
        """What remains, float32, of this shape."""

    def round_trip(self, values: Tensor, occasion: Occasion) -> Tensor:
        """What the other end would decode."""
        return self.decode(self.encode(values, occasion), tuple(values.shape), occasion)

    def state(self) -> dict[str, Tensor]:
        """What it remembers from one microbatch to the next; by default nothing."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Go on from what `state` gave."""
