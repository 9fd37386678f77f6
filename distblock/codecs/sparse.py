"""The largest values of a sample alone, with their places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from distblock.codecs.lossy import LossyCodec, Occasion, Parts
from distblock.codecs.quantized import LARGEST, values_of

SHORT = 2**15
"""Values of a sample up to which a place takes two bytes."""


class TopK(LossyCodec):
    """A share of the values, the largest by magnitude; the others are taken for zero.

    Parts: values, float16 ``(N, kept)``; and places, int16 or int32 ``(N, kept)``.

    Args:
        share: of the values of a sample, above 0, at most 1; one at least is kept.
    """

    def __init__(self, share: float) -> None:
        self._share = share

    @override
    def encode(self, values: Tensor, occasion: Occasion) -> Parts:
        flat = values.flatten(1)
        kept = max(1, round(self._share * flat.shape[1]))
        places = flat.abs().topk(kept, dim=1, sorted=False).indices.sort(dim=1).values
        narrow = torch.int16 if flat.shape[1] <= SHORT else torch.int32
        return flat.gather(1, places).clamp(-LARGEST, LARGEST).half(), places.to(narrow)

    @override
    def decode(self, parts: Sequence[Tensor], shape: tuple[int, ...], occasion: Occasion) -> Tensor:
        kept, places = parts
        flat = torch.zeros(shape[0], values_of(shape), device=kept.device)
        return flat.scatter_(1, places.long(), kept.float()).view(shape)
