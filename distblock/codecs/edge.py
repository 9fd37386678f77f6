"""One edge's codec: features and labels of a microbatch to a payload, and back, at either end.

A codec that remembers something (differences, a codebook) has to see the microbatches in the stream's order, so it is
called where a worker computes; the others wherever there is time. Floating tensors go through the codec, whatever else
a network passes on crosses as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distblock.codecs import cast
from distblock.codecs.cast import Features, named_tensors, num_bytes, rebuild
from distblock.codecs.difference import KEPT, Difference
from distblock.codecs.lossy import LossyCodec, Occasion
from distblock.codecs.payload import Header, Payload, TensorHeader
from distblock.codecs.quantized import Float8, Quantized
from distblock.codecs.sparse import TopK
from distblock.codecs.staging import Staging
from distblock.codecs.vectors import VectorQuantized
from distblock.config import ChannelConfig
from distblock.messages import Item
from distblock.seeds import derive_seed

_BITS: Mapping[str, int] = {"diff8": 8, "diff4": 4, "diff2": 2}
"""Bits of a difference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Microbatch:
    """Whose activation it is.

    Attributes:
        item: the microbatch.
        samples: which of the training samples, int64 ``(N,)``; None: nobody asks.
    """

    item: Item
    samples: np.ndarray | None = None


class EdgeCodec:
    """The codec of one edge.

    Args:
        channel: the run's settings of what crosses.
        run: its name.
        edge: the stage that the edge enters.
        seed: the run's.
        staging: copies from and to the worker's device.
    """

    def __init__(self, channel: ChannelConfig, *, run: str, edge: int, seed: int, staging: Staging) -> None:
        self._channel = channel
        self._run = run
        self._edge = edge
        self._seed = seed
        self._staging = staging
        self.name = channel.codec_of(edge)
        self._codecs: dict[str | int | None, LossyCodec] = {}
        self._loaded: dict[str, dict[str, Tensor]] = {}

    @property
    def remembers(self) -> bool:
        """It has to see the microbatches in order."""
        return self.name in self._channel.REMEMBERING

    def encode(self, features: Features, labels: Tensor, microbatch: Microbatch) -> Payload:
        """Make a payload of a stage's output.

        Args:
            features: tensors ``(N, ...)`` on the device, detached.
            labels: int64 ``(N,)``.
            microbatch: whose they are.
        """
        if self.name in cast.WIRE_TYPES:
            payload = cast.encode(
                features,
                labels,
                codec=self.name,
                run=self._run,
                edge=self._edge,
                number=microbatch.item.number,
                staging=self._staging,
            )
        else:
            payload = self._encode(features, labels, microbatch)
        return payload.with_samples(microbatch.samples)

    def decode(self, payload: Payload, microbatch: Microbatch) -> tuple[Features, Tensor]:
        """Features and labels on the device.

        Args:
            payload: what came; checked.
            microbatch: whose it is.
        """
        if self.name in cast.WIRE_TYPES:
            return cast.decode(payload, staging=self._staging)
        arrays = iter(payload.arrays)
        tensors: dict[str | int | None, Tensor] = {}
        size = sum(_kept_bytes(header.shape, getattr(torch, header.dtype)) for header in payload.header.tensors)
        for header in payload.header.tensors:
            if not header.parts:
                tensors[header.key] = cast.decode_tensor(header, next(arrays), self._staging)
                continue
            parts = [self._part(next(arrays), dtype) for dtype, _ in header.parts]
            codec = self._codec(header.key, size)
            values = codec.decode(parts, header.shape, self._occasion(header.key, microbatch))
            tensors[header.key] = _as_before(
                values, getattr(torch, header.dtype), is_channels_last=header.channels_last
            )
        labels = self._staging.to_device(torch.from_numpy(payload.labels))
        return rebuild(tensors), labels

    def round_trip(self, features: Features, microbatch: Microbatch) -> Features:
        """What `decode` would give for what `encode` makes, without leaving the device: the hop inside one process."""
        if self.name in cast.WIRE_TYPES:
            return cast.round_trip(features, codec=self.name)
        size = _kept_bytes_of(features)
        tensors: dict[str | int | None, Tensor] = {}
        for key, tensor in named_tensors(features):
            tensors[key] = tensor
            if tensor.is_floating_point():
                codec, occasion = self._codec(key, size), self._occasion(key, microbatch)
                values = codec.round_trip(tensor.float().contiguous(), occasion)
                is_channels_last = cast.is_channels_last(tensor)
                tensors[key] = _as_before(values, tensor.dtype, is_channels_last=is_channels_last)
        return rebuild(tensors)

    def state(self) -> dict[str, np.ndarray]:
        """What it remembers, as a copy: ``<key of a tensor>.<name>``."""
        own = {str(key): codec.state() for key, codec in self._codecs.items()}
        return {
            f"{key}.{name}": tensor.detach().cpu().numpy().copy()
            for key, state in (self._loaded | own).items()
            for name, tensor in state.items()
        }

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state` gave, at either end."""
        self._codecs.clear()
        self._loaded.clear()
        for name, array in state.items():
            key, _, what = name.rpartition(".")
            tensor = torch.from_numpy(array.copy()).to(self._staging.device)
            self._loaded.setdefault(key, {})[what] = tensor

    def _encode(self, features: Features, labels: Tensor, microbatch: Microbatch) -> Payload:
        begun = list(self._encoded(features, microbatch))
        return Payload(
            header=Header(
                run=self._run,
                edge=self._edge,
                number=microbatch.item.number,
                tensors=tuple(header for header, _ in begun),
            ),
            arrays=tuple(array for _, arrays in begun for array in arrays),
            labels=self._staging.to_host(labels).numpy(),
            payload_bytes=num_bytes(features),
        )

    def _encoded(
        self, features: Features, microbatch: Microbatch
    ) -> Iterable[tuple[TensorHeader, tuple[np.ndarray, ...]]]:
        size = _kept_bytes_of(features)
        for key, tensor in named_tensors(features):
            if not tensor.is_floating_point():
                header, array = cast.encode_tensor(key, tensor, torch.float64, self._staging)
                yield header, (array,)
                continue
            codec = self._codec(key, size)
            parts = codec.encode(tensor.float().contiguous(), self._occasion(key, microbatch))
            # What follows on the copy stream waits for what has just been computed.
            self._staging.mark()
            yield (
                TensorHeader(
                    key=key,
                    shape=tuple(tensor.shape),
                    dtype=cast.name_of(tensor.dtype),
                    wire_dtype=self.name,
                    channels_last=cast.is_channels_last(tensor),
                    parts=tuple((cast.name_of(part.dtype), tuple(part.shape)) for part in parts),
                ),
                tuple(_array(self._staging.to_host(part.contiguous())) for part in parts),
            )

    def _part(self, array: np.ndarray, dtype: str) -> Tensor:
        host = torch.from_numpy(array)
        return self._staging.to_device(host.view(torch.float8_e4m3fn) if dtype == "float8_e4m3fn" else host)

    def _occasion(self, key: str | int | None, microbatch: Microbatch) -> Occasion:
        """Chance goes by the microbatch's place in the training, not in this process's stream, so that it is the same
        whoever encodes it, and whenever, be it a share of it."""
        item = microbatch.item
        place = (item.part, item.lap, -1 if item.stage is None else item.stage, item.epoch, item.index)
        seed = derive_seed(self._seed, "codec", self._edge, str(key), item.purpose, *place)
        return Occasion(seed=seed, samples=microbatch.samples if item.purpose == "train" else None)

    def _codec(self, key: str | int | None, sample_bytes: int) -> LossyCodec:
        if key not in self._codecs:
            self._codecs[key] = codec = self._make(sample_bytes)
            codec.load(self._loaded.pop(str(key), {}))
        return self._codecs[key]

    def _make(self, sample_bytes: int) -> LossyCodec:
        whole = Quantized(8)
        capacity = self._channel.codec_cache_bytes // sample_bytes
        device = self._staging.device
        match self.name:
            case "int8" | "int4":
                return Quantized(int(self.name.removeprefix("int")))
            case "fp8":
                return Float8()
            case "vq":
                return VectorQuantized()
            case "topk":
                largest = TopK(self._channel.topk_share)
                return Difference(capacity, difference=largest, first=largest, whole=whole, device=device)
            case _:
                difference = Quantized(_BITS[self.name])
                return Difference(capacity, difference=difference, first=whole, whole=whole, device=device)


def kept_sample_bytes(shapes: Iterable[tuple[int, ...]]) -> int:
    """What each end keeps of a sample, where its codec keeps samples, by the shape of each of its tensors."""
    return KEPT.itemsize * sum(math.prod(shape) for shape in shapes)


def _kept_bytes_of(features: Features) -> int:
    return sum(_kept_bytes(tuple(tensor.shape), tensor.dtype) for _, tensor in named_tensors(features))


def _kept_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """What keeping one sample of a tensor takes."""
    return kept_sample_bytes([shape[1:]]) if dtype.is_floating_point else 0


def _as_before(values: Tensor, dtype: torch.dtype, *, is_channels_last: bool) -> Tensor:
    order = torch.channels_last if is_channels_last else torch.contiguous_format
    return values.to(dtype).contiguous(memory_format=order)


def _array(host: Tensor) -> np.ndarray:
    """numpy has no float8."""
    return (host.view(torch.uint8) if host.dtype == torch.float8_e4m3fn else host).numpy()
