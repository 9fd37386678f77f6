"""Vector quantization that learns its codebook while it runs.

Values of neighbouring channels at one place form a vector, and the number of the nearest vector of a codebook crosses
instead of it. The codebook follows the activations by moving averages and travels with every microbatch, 4 kB, so the
receiver remembers nothing.

Source: Belilovsky et al. 2021, arXiv:2106.06401, section 4; van den Oord et al. 2017, arXiv:1711.00937, appendix A.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from distblock.codecs.lossy import LossyCodec, Occasion, Parts
from distblock.codecs.quantized import LARGEST

CODES = 256
SIZE = 8
"""Values of a vector, or what divides the channels and them."""

DECAY = 0.99
RARE = 0.1
"""Average uses a microbatch below which a vector starts anew at one of the microbatch's."""


class VectorQuantized(LossyCodec):
    """One byte for up to eight values.

    Parts: codes, uint8 ``(N, vectors of a sample)``; and the codebook, float16 ``(256, values of a vector)``.
    """

    def __init__(self) -> None:
        self._codebook: Tensor | None = None
        self._uses = torch.empty(0)
        self._sums = torch.empty(0)

    @override
    def encode(self, values: Tensor, occasion: Occasion) -> Parts:
        vectors = _vectors(values)
        if self._codebook is None:
            self._begin(vectors, occasion)
        assert self._codebook is not None
        sent = self._codebook.clamp(-LARGEST, LARGEST).half()
        codes = _nearest(vectors, sent.float())
        if occasion.samples is not None:
            self._follow(vectors, codes, occasion)
        return codes.to(torch.uint8).view(len(values), -1), sent

    @override
    def decode(self, parts: Sequence[Tensor], shape: tuple[int, ...], occasion: Occasion) -> Tensor:
        codes, codebook = parts
        vectors = codebook.float()[codes.long().flatten()]
        last = vectors.view(shape[0], *shape[2:], shape[1]) if len(shape) > 2 else vectors.view(shape)
        return last.movedim(-1, 1).contiguous() if len(shape) > 2 else last

    def _begin(self, vectors: Tensor, occasion: Occasion) -> None:
        self._codebook = _drawn(vectors, CODES, occasion.seed)
        self._uses = torch.ones(CODES, device=vectors.device)
        self._sums = self._codebook.clone()

    def _follow(self, vectors: Tensor, codes: Tensor, occasion: Occasion) -> None:
        sums = torch.zeros_like(self._sums).index_add_(0, codes, vectors)
        self._uses = self._uses * DECAY + torch.bincount(codes, minlength=CODES) * (1 - DECAY)
        self._sums = self._sums * DECAY + sums * (1 - DECAY)
        rare = self._uses < RARE
        fresh = _drawn(vectors, CODES, occasion.seed)
        self._sums = torch.where(rare.unsqueeze(1), fresh, self._sums)
        self._uses = torch.where(rare, 1.0, self._uses)
        self._codebook = self._sums / self._uses.unsqueeze(1)

    @override
    def state(self) -> dict[str, Tensor]:
        if self._codebook is None:
            return {}
        return {"codebook": self._codebook, "uses": self._uses, "sums": self._sums}

    @override
    def load(self, state: Mapping[str, Tensor]) -> None:
        if state:
            self._codebook, self._uses, self._sums = (state[name].clone() for name in ("codebook", "uses", "sums"))


def _vectors(values: Tensor) -> Tensor:
    """``(vectors, values of one)``, of each place's channels in turn."""
    last = values.movedim(1, -1) if values.ndim > 2 else values
    return last.reshape(-1, math.gcd(last.shape[-1], SIZE))


def _nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The code of each vector, int64: the least of |v|^2 - 2 v.c + |c|^2, of which the first is the same for all."""
    norms = codebook.square().sum(dim=1)
    # Distances of a chunk stay in a core's cache, 2 MB; a GPU would rather have few large ones.
    chunks = vectors.split(2**11 if vectors.device.type == "cpu" else 2**16)
    # On a CPU min is half again as quick as argmin.
    return torch.cat([torch.addmm(norms, chunk, codebook.t(), alpha=-2.0).min(dim=1).indices for chunk in chunks])


def _drawn(vectors: Tensor, count: int, seed: int) -> Tensor:
    generator = torch.Generator(vectors.device).manual_seed(seed)
    places = torch.randint(len(vectors), (count,), generator=generator, device=vectors.device)
    return vectors[places].clone()
