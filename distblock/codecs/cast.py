"""Encode and decode: a cast where the codec is narrower than the activation, otherwise a view of the same bytes.

Ray pickles a torch tensor with a copy, a numpy array without one; numpy has no bf16. So tensors cross as arrays over
the same memory, bf16 as int16, channels-last ones in NHWC order so that they stay contiguous. What arrives is
read-only shared memory: a stage never writes to its input, and the warning that torch gives is silenced here, once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from distblock.codecs.payload import Header, Payload, TensorHeader
from distblock.codecs.staging import Staging

warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

Features = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""What passes between blocks."""

WIRE_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Widest floating type of each codec."""


def encode(
    features: Features, labels: Tensor, *, codec: str, run: str, edge: int, number: int, staging: Staging
) -> Payload:
    """Make a payload of a stage's output.

    Args:
        features: tensors ``(N, ...)`` on any device, detached.
        labels: int64 ``(N,)``.
        codec: a key of `WIRE_TYPES`; narrower floating types than it are left as they are.
        run, edge, number: whose activation it is.
        staging: copies from the device.
    """
    with staging.stream():
        encoded = [encode_tensor(key, tensor, WIRE_TYPES[codec], staging) for key, tensor in named_tensors(features)]
    return Payload(
        header=Header(run=run, edge=edge, number=number, tensors=tuple(header for header, _ in encoded)),
        arrays=tuple(array for _, array in encoded),
        labels=staging.to_host(labels).numpy(),
        payload_bytes=num_bytes(features),
    )


def decode(payload: Payload, *, staging: Staging) -> tuple[Features, Tensor]:
    """Features and labels on the stage's device; on a CPU in the payload's memory unless it was cast."""
    tensors = {
        header.key: decode_tensor(header, array, staging)
        for header, array in zip(payload.header.tensors, payload.arrays, strict=True)
    }
    labels = staging.to_device(torch.from_numpy(payload.labels))
    return rebuild(tensors), labels


def round_trip(features: Features, *, codec: str) -> Features:
    """What `decode` would give for what `encode` makes, without leaving the device: the hop inside one process."""
    widest = WIRE_TYPES[codec]
    return rebuild({key: _round_trip_tensor(tensor, widest) for key, tensor in named_tensors(features)})


def named_tensors(features: Features) -> Iterable[tuple[str | int | None, Tensor]]:
    """Each tensor with its key, position or None, in order."""
    if isinstance(features, Tensor):
        return [(None, features)]
    if isinstance(features, dict):
        return features.items()
    return enumerate(features)


def num_bytes(features: Features) -> int:
    """Bytes of the features as they are."""
    return sum(tensor.numel() * tensor.element_size() for _, tensor in named_tensors(features))


def rebuild(tensors: dict[str | int | None, Tensor]) -> Features:
    """Features of the tensors that `named_tensors` names."""
    keys = list(tensors)
    if keys == [None]:
        return tensors[None]
    if all(isinstance(key, int) for key in keys):
        return tuple(tensors.values())
    return {str(key): tensor for key, tensor in tensors.items()}


def encode_tensor(
    key: str | int | None, tensor: Tensor, widest: torch.dtype, staging: Staging
) -> tuple[TensorHeader, np.ndarray]:
    """One tensor, no wider than that, as an array."""
    wire = _narrow(tensor, widest)
    header = TensorHeader(
        key=key,
        shape=tuple(tensor.shape),
        dtype=name_of(tensor.dtype),
        wire_dtype=name_of(wire.dtype),
        channels_last=is_channels_last(tensor),
    )
    if header.channels_last:
        wire = wire.permute(0, 2, 3, 1)
    host = staging.to_host(wire.contiguous())
    return header, (host.view(torch.int16) if host.dtype == torch.bfloat16 else host).numpy()


def _round_trip_tensor(tensor: Tensor, widest: torch.dtype) -> Tensor:
    order = torch.channels_last if is_channels_last(tensor) else torch.contiguous_format
    return _narrow(tensor, widest).to(tensor.dtype).contiguous(memory_format=order)


def _narrow(tensor: Tensor, widest: torch.dtype) -> Tensor:
    if tensor.is_floating_point() and tensor.element_size() > widest.itemsize:
        return tensor.to(widest)
    return tensor


def decode_tensor(header: TensorHeader, array: np.ndarray, staging: Staging) -> Tensor:
    """The tensor of what `encode_tensor` gave."""
    host = torch.from_numpy(array)
    if header.wire_dtype == "bfloat16":
        host = host.view(torch.bfloat16)
    tensor = staging.to_device(host)
    if header.channels_last:
        tensor = tensor.permute(0, 3, 1, 2)
    return tensor.to(getattr(torch, header.dtype))


def is_channels_last(tensor: Tensor) -> bool:
    """Its bytes are in NHWC order."""
    return tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def name_of(dtype: torch.dtype) -> str:
    """As ``getattr(torch, name)`` finds it."""
    return str(dtype).removeprefix("torch.")
