"""An activation as it crosses an edge, and the check that it is the one that was asked for.

Pipelines that trust the order of arrival train silently on another batch's labels, or drop a third tensor. Here
labels travel with the features, and the header says which run, edge and microbatch they belong to, and the shape and
type of every tensor; the receiver compares all of it before it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from distblock.messages import Departure, Item


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorHeader:
    """One tensor of a payload.

    Attributes:
        key: its key where the features are a dict, its position where they are a tuple, None for a lone tensor.
        shape: its shape, samples first.
        dtype: its type before the codec, e.g. ``"float32"``.
        wire_dtype: its type on the wire, or the codec that takes it apart.
        channels_last: its bytes are in NHWC order.
        parts: type and shape of each array that stands for it; none: it is one array, of the shape itself.
    """

    key: str | int | None
    shape: tuple[int, ...]
    dtype: str
    wire_dtype: str
    channels_last: bool
    parts: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def layout(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Type, as numpy names it, and shape of each of its arrays."""
        if self.parts:
            return tuple((_OF_NUMPY.get(dtype, dtype), shape) for dtype, shape in self.parts)
        shape = (self.shape[0], *self.shape[2:], self.shape[1]) if self.channels_last else self.shape
        return ((_OF_NUMPY.get(self.wire_dtype, self.wire_dtype), shape),)


_OF_NUMPY = {"bfloat16": "int16", "float8_e4m3fn": "uint8"}
"""What carries the types that numpy does not have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What a payload says of itself."""

    run: str
    edge: int
    number: int
    tensors: tuple[TensorHeader, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Payload:
    """Features and labels of one microbatch on one edge.

    Attributes:
        header: what they are.
        arrays: the features' bytes as C-contiguous arrays; bf16 as int16.
        labels: int64, ``(N,)``.
        payload_bytes: bytes of the features before the codec.
        samples: which of the training samples they are, int32 ``(N,)``; None: no codec on the way asks.
    """

    header: Header
    arrays: tuple[np.ndarray, ...]
    labels: np.ndarray
    payload_bytes: int
    samples: np.ndarray | None = None

    @property
    def wire_bytes(self) -> int:
        """Bytes that cross: features after the codec, labels, and what tells the samples apart."""
        extra = 0 if self.samples is None else self.samples.nbytes
        return sum(array.nbytes for array in self.arrays) + self.labels.nbytes + extra

    def with_samples(self, samples: np.ndarray | None) -> Payload:
        """The same, saying which samples these are."""
        return replace(self, samples=samples)

    def departure(self, *, encode_s: float, put_s: float, in_turn_s: float = 0.0) -> Departure:
        """The sender's side of its hop, which took so many seconds."""
        return Departure(
            edge=self.header.edge,
            payload_bytes=self.payload_bytes,
            wire_bytes=self.wire_bytes,
            encode_s=encode_s,
            put_s=put_s,
            in_turn_s=in_turn_s,
        )


def check_payload(
    payload: Payload, *, run: str, edge: int, item: Item, sample_shapes: tuple[tuple[int, ...], ...]
) -> None:
    """Compare a payload with what the receiver expects.

    Args:
        payload: what came.
        run: the run.
        edge: the edge.
        item: the microbatch.
        sample_shapes: shape of one sample of each tensor that enters the stage.

    Raises:
        ValueError: it is another one's, or its shapes or types are not those announced.
    """
    header = payload.header
    expected = f"run {run}, edge {edge}, microbatch {item.number}"
    came = f"run {header.run}, edge {header.edge}, microbatch {header.number}"
    if came != expected:
        raise ValueError(f"expected the activation of {expected}, got that of {came}")
    shapes = tuple(tensor.shape for tensor in header.tensors)
    wanted = tuple((item.num_samples, *shape) for shape in sample_shapes)
    if shapes != wanted:
        raise ValueError(f"expected activations of shape {_text(wanted)}, got {_text(shapes)}")
    if payload.labels.shape != (item.num_samples,):
        raise ValueError(f"expected {item.num_samples} labels, got shape {payload.labels.shape}")
    announced = [each for tensor in header.tensors for each in tensor.layout]
    came = [(array.dtype.name, array.shape) for array in payload.arrays]
    if came != announced:
        raise ValueError(f"expected bytes of {_bytes(announced)} as announced, got {_bytes(came)}")


def _bytes(layout: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{dtype} {shape}" for dtype, shape in layout)


def _text(shapes: tuple[tuple[int, ...], ...]) -> str:
    return ", ".join(str(shape) for shape in shapes)
