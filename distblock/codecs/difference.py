"""What has changed of a sample since it crossed the edge last.

A network changes slowly, so the difference to a sample's last activation is small beside it, and so is the error of
sending it with few bits. Both ends keep what the receiver made of a sample, so that errors do not add up. A budget
bounds what is kept: the samples that came first are kept for good. Under shuffling every sample comes once an epoch,
and one that gives way to those used last is gone just before it is needed.

Source: Wang et al. 2022 (AQ-SGD), arXiv:2206.01299; with the largest values of the difference instead of few bits it
is error feedback as in EF21, Richtarik et al. 2021, arXiv:2106.05203, a sample at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from distblock.codecs.lossy import LossyCodec, Occasion, Parts
from distblock.codecs.quantized import LARGEST, values_of

KEPT = torch.float16
"""Type of what is kept; its error is part of the next difference, so it does not add up."""


class SampleCache:
    """The last activation of some samples.

    Args:
        capacity: of how many.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._rows: dict[int, int] = {}
        self._values: Tensor | None = None

    def find(self, samples: np.ndarray) -> np.ndarray:
        """The row of each, int64; -1: it is not kept."""
        return np.fromiter((self._rows.get(sample, -1) for sample in samples.tolist()), np.int64, len(samples))

    def take(self, rows: np.ndarray) -> Tensor:
        """Float32 ``(rows, values)``."""
        assert self._values is not None
        return self._values[torch.from_numpy(rows).to(self._values.device)].float()

    def put(self, samples: np.ndarray, rows: np.ndarray, values: Tensor) -> None:
        """Keep the values ``(N, values)`` of samples, in their rows; new ones as long as there is room."""
        for place in np.flatnonzero(rows < 0).tolist():
            if len(self._rows) < self._capacity:
                rows[place] = self._rows[int(samples[place])] = len(self._rows)
        self._make_room(values)
        assert self._values is not None
        kept = np.flatnonzero(rows >= 0)
        into = torch.from_numpy(rows[kept]).to(values.device)
        own = values if len(kept) == len(values) else values[torch.from_numpy(kept).to(values.device)]
        self._values[into] = own.clamp(-LARGEST, LARGEST).to(KEPT)

    def _make_room(self, values: Tensor) -> None:
        size = 0 if self._values is None else len(self._values)
        if size >= len(self._rows) and self._values is not None:
            return
        larger = torch.zeros(
            min(self._capacity, max(2 * size, len(self._rows))), values.shape[1], dtype=KEPT, device=values.device
        )
        if self._values is not None:
            larger[:size] = self._values
        self._values = larger

    def state(self) -> dict[str, Tensor]:
        """Samples, int64 ``(rows,)``, and their values, float16 ``(rows, values)``."""
        if self._values is None:
            return {}
        return {"samples": torch.tensor(list(self._rows), dtype=torch.int64), "values": self._values[: len(self._rows)]}

    def load(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from that."""
        if state:
            self._rows = {sample: row for row, sample in enumerate(state["samples"].tolist())}
            self._values = state["values"].to(device, copy=True)


@dataclass(frozen=True, slots=True)
class _Found:
    """Rows of a microbatch's samples, and which places have one."""

    rows: np.ndarray
    known: Tensor
    new: Tensor


class Difference(LossyCodec):
    """The difference where the sample is kept, otherwise all of it.

    Parts: those of the differences, then those of the others.

    Args:
        capacity: samples to keep.
        difference, first, whole: how a difference crosses, a training sample that is not kept, and a microbatch that is
            not trained on.
        device: where samples are kept.
    """

    def __init__(
        self, capacity: int, *, difference: LossyCodec, first: LossyCodec, whole: LossyCodec, device: torch.device
    ) -> None:
        self._cache = SampleCache(capacity)
        self._difference = difference
        self._first = first
        self._whole = whole
        self._device = device

    @override
    def encode(self, values: Tensor, occasion: Occasion) -> Parts:
        return self._send(values, occasion)[0]

    @override
    def round_trip(self, values: Tensor, occasion: Occasion) -> Tensor:
        return self._send(values, occasion)[1]

    def _send(self, values: Tensor, occasion: Occasion) -> tuple[Parts, Tensor]:
        """The parts, and what the receiver makes of them."""
        shape = tuple(values.shape)
        if occasion.samples is None:
            parts = self._whole.encode(values, occasion)
            return parts, self._whole.decode(parts, shape, occasion)
        found = self._find(occasion.samples)
        base = self._cache.take(found.rows[found.rows >= 0]) if len(found.known) else None
        changed: Parts = ()
        if base is not None:
            own = values.flatten(1) if not len(found.new) else values.flatten(1)[found.known]
            changed = self._difference.encode((own - base).view(-1, *shape[1:]), occasion)
        others = self._first.encode(values[found.new], occasion) if len(found.new) else ()
        return (*changed, *others), self._receive(base, changed, others, shape, occasion, found)

    @override
    def decode(self, parts: Sequence[Tensor], shape: tuple[int, ...], occasion: Occasion) -> Tensor:
        if occasion.samples is None:
            return self._whole.decode(parts, shape, occasion)
        found = self._find(occasion.samples)
        middle = (len(parts) // 2 if len(found.new) else len(parts)) if len(found.known) else 0
        base = self._cache.take(found.rows[found.rows >= 0]) if len(found.known) else None
        return self._receive(base, parts[:middle], parts[middle:], shape, occasion, found)

    def _receive(
        self,
        base: Tensor | None,
        changed: Sequence[Tensor],
        others: Sequence[Tensor],
        shape: tuple[int, ...],
        occasion: Occasion,
        found: _Found,
    ) -> Tensor:
        """What the receiver makes of it; both ends keep that."""
        assert occasion.samples is not None
        if base is not None:
            base.add_(self._difference.decode(changed, (len(found.known), *shape[1:]), occasion).flatten(1))
        if base is not None and not len(found.new):
            out = base
        else:
            out = torch.empty(shape[0], values_of(shape), device=self._device)
            size = (len(found.new), *shape[1:])
            out[found.new] = self._first.decode(others, size, occasion).flatten(1)
            if base is not None:
                out[found.known] = base
        self._cache.put(occasion.samples, found.rows, out)
        return out.view(shape)

    def _find(self, samples: np.ndarray) -> _Found:
        rows = self._cache.find(samples)
        places = [torch.from_numpy(np.flatnonzero(is_there)).to(self._device) for is_there in (rows >= 0, rows < 0)]
        return _Found(rows, *places)

    @override
    def state(self) -> dict[str, Tensor]:
        return self._cache.state()

    @override
    def load(self, state: Mapping[str, Tensor]) -> None:
        self._cache.load(state, self._device)
