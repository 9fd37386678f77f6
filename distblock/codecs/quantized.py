"""Fewer bits a value: integers on a grid of each channel's own range, and eight-bit floats.

Rounding is stochastic: up or down by chance, so that the mean is right and small values do not all vanish; see Gupta et
al. 2015, arXiv:1502.02551.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from distblock.codecs.lossy import LossyCodec, Occasion, Parts

LARGEST = 65504.0
"""Of float16: a range's beginning and step are kept in it; what lies beyond saturates."""


class Quantized(LossyCodec):
    """Unsigned integers from each channel's smallest value up, of each sample; exact where a channel is constant at a
    value of float16, as at zero.

    Parts: codes, uint8 ``(N, bytes of a sample)``, several values a byte below 8 bits; and grids, float16
    ``(N, channels, 2)``: beginning and step.

    Args:
        bits: 2, 4 or 8 a value.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self._steps = 2**bits - 1

    @override
    def encode(self, values: Tensor, occasion: Occasion) -> Parts:
        grouped = by_channel(values)
        low, high = grouped.amin(dim=2).clamp(-LARGEST, LARGEST).half(), grouped.amax(dim=2)
        step = ((high - low.float()) / self._steps).clamp(0.0, LARGEST).half()
        generator = torch.Generator(values.device).manual_seed(occasion.seed)
        codes = grouped - low.float().unsqueeze(2)
        # A range too small for a step of float16 is its beginning.
        codes *= torch.where(step > 0, 1.0 / step.float(), 0.0).unsqueeze(2)
        # One draw for all samples: their values differ, so their errors do, and a share of them draws the same.
        codes += torch.rand(codes.shape[1:], generator=generator, device=values.device)
        rounded = codes.floor_().clamp_(0, self._steps).to(torch.uint8)
        return self._pack(rounded.flatten(1)), torch.stack([low, step], dim=2)

    @override
    def decode(self, parts: Sequence[Tensor], shape: tuple[int, ...], occasion: Occasion) -> Tensor:
        codes, grids = parts
        low, step = grids.float().unbind(2)
        grouped = self._unpack(codes, count=values_of(shape)).view(*low.shape, -1).float()
        return torch.addcmul(low.unsqueeze(2), grouped, step.unsqueeze(2)).view(shape)

    def _pack(self, codes: Tensor) -> Tensor:
        """Several a byte, the first one lowest; the last byte is filled up with zeros."""
        per_byte = 8 // self.bits
        if per_byte == 1:
            return codes
        filled = functional.pad(codes, (0, -codes.shape[1] % per_byte)).view(len(codes), -1, per_byte)
        packed = filled[:, :, 0].clone()
        for place in range(1, per_byte):
            packed |= filled[:, :, place] << (self.bits * place)
        return packed

    def _unpack(self, packed: Tensor, *, count: int) -> Tensor:
        per_byte = 8 // self.bits
        if per_byte == 1:
            return packed
        places = [(packed >> (self.bits * place)) & self._steps for place in range(per_byte)]
        return torch.stack(places, dim=2).flatten(1)[:, :count]


class Float8(LossyCodec):
    """Eight-bit floats (e4m3: three bits of mantissa), each channel of each sample scaled to their range; rounded to
    the nearest.

    Parts: codes, float8 ``(N, values of a sample)``; and scales, float32 ``(N, channels)``.

    Source: Micikevicius et al. 2022, arXiv:2209.05433.
    """

    @override
    def encode(self, values: Tensor, occasion: Occasion) -> Parts:
        grouped = by_channel(values)
        scale = grouped.abs().amax(dim=2) / torch.finfo(torch.float8_e4m3fn).max
        scaled = grouped / torch.where(scale > 0, scale, 1.0).unsqueeze(2)
        return scaled.to(torch.float8_e4m3fn).flatten(1), scale

    @override
    def decode(self, parts: Sequence[Tensor], shape: tuple[int, ...], occasion: Occasion) -> Tensor:
        codes, scale = parts
        return (codes.float().view(*scale.shape, -1) * scale.unsqueeze(2)).view(shape)


def by_channel(values: Tensor) -> Tensor:
    """``(N, channels, values)``; a sample without channels is one."""
    channels = values.shape[1] if values.ndim > 2 else 1
    return values.reshape(len(values), channels, values_of(tuple(values.shape)) // channels)


def values_of(shape: tuple[int, ...]) -> int:
    """Of one sample."""
    return math.prod(shape[1:])
